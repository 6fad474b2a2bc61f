"""The training part of an ablation's cells: the transformer on the world, in one variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.reference import clip_picture
from contextanyone_core.prompts import TwoStagePrompt
from evaluation.ablation.alignment import ReferenceAlignment
from evaluation.ablation.vace import VaceTransformer, context_share, save_context, with_place
from evaluation.ablation.variants import Variant, as_variant
from training.files import write_tensors
from training.parts import PARTS, PartEntry, transformer
from training.parts.base import Metrics, PartContext, Work
from training.parts.objective import Draws, EncodedClips, dual_guidance_step
from training.randomness import numpy_generator
from training.world import ACTIONS, ATTRIBUTES, LIGHTS, PLACES, Character, Scene, sample
from training.world.captions import first_caption, later_caption

_WRONG_SHARE = 0.1
_FRAMES_A_FILE = 1024


class Settings(transformer.Settings):
    """The transformer's settings, the variant, and the config fields that differ in the cell's network."""

    name: Literal["ablation"] = "ablation"  # type: ignore[assignment]
    variant: Variant = "none"
    network: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _vace_is_one_stream(self) -> Self:
        if self.variant == "vace" and self.reading != "phantom":
            raise ValueError("variant: vace has no reference stream; it needs part.reading: phantom")
        return self


class AblationPart(transformer.TransformerPart):
    """Trains a network that differs from the model as specified by one cell."""

    settings: Settings

    def __init__(self, settings: Settings, context: PartContext) -> None:
        super().__init__(settings, replace(context, shares=None))  # variants are made of whole networks
        self._frames: dict[str, Tensor] = {}
        self.alignment: ReferenceAlignment | None = None
        if settings.variant == "aligned":
            self.alignment = ReferenceAlignment(self.transformer, self.image_encoder.image_dim)

    def starting_network(self) -> Any:
        """The variant's network, newly initialised."""
        return as_variant(super().starting_network(), self.settings.variant)

    def _config(self, vae_path: Path) -> ContextAnyoneConfig:
        return replace(super()._config(vae_path), **self.settings.network)

    def modules(self) -> dict[str, nn.Module]:
        """The transformer, and the projections of the aligned tokens."""
        return super().modules() | ({} if self.alignment is None else {"alignment": self.alignment})

    def open_data(self) -> None:
        """Open the pool; if the references are frames of the clips, also CLIP tokens of the first frames."""
        super().open_data()
        if self.settings.variant == "clip_frame":
            self._frames = self._first_frames()

    def batch(self, step: int) -> Any:
        """Encoded pairs, modified for the variant."""
        batch, variant = super().batch(step), self.settings.variant
        rng = numpy_generator(self.context.own_seed, step, "variant")
        if variant == "wrong_people":
            self._show_others(batch, rng)
        if variant == "clip_frame":
            chosen = numpy_generator(self.context.own_seed, step, "pairs").integers(
                len(self.pool), size=self.settings.batch
            )
            batch["reference_latents"] = batch["latents"][:, :, :1]
            batch["image_embeds"] = self._frames["image_embeds"][torch.from_numpy(chosen)]
        if variant == "plain_captions":
            people = [(_character(row), _scene(row)) for row in batch["labels"].tolist()]
            batch["first"] = [first_caption(*person, frozenset(), rng) for person in people]
            batch["later"] = [later_caption(*person, frozenset(), rng) for person in people]
        return batch

    def encoded(self, batch: Any) -> EncodedClips:
        """A batch in the network's form: without CLIP tokens if it has no CLIP branch."""
        clips = super().encoded(batch)
        if self.settings.variant == "vace":
            clips = with_place(clips)
        return clips if self.transformer.config.image_dim is not None else replace(clips, image_embeds=None)

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The objective; with references also the alignment of their tokens."""
        if self.alignment is None:
            return super().loss(batch, step, generator)
        self.alignment.forget()  # left by a validation
        clips = self.encoded(batch)
        draws = self.draws(clips, step, generator)
        losses, metrics = dual_guidance_step(self.transformer, self.settings, clips, draws, self.texts(batch, draws))
        if draws.reference is None:
            return losses, metrics
        aligned = self.alignment(batch["image_embeds"], draws.sigma)
        return losses + aligned, {**metrics, "alignment": aligned.detach()}

    def work(self, batch: Any, *, with_reference: bool) -> Work:
        """As the transformer's, and of the context blocks; the alignment's projections are not counted."""
        found = super().work(batch, with_reference=with_reference)
        more = 1 + context_share(self.transformer)
        return found if found.flops is None else found._replace(flops=round(found.flops * more))

    def export_in(self, folder: Path, record: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Write transformer.safetensors, and context.safetensors of a network with context blocks."""
        trained = self.transformer
        if not isinstance(trained, VaceTransformer):
            super().export_in(folder, record, dtype)
            return
        save_context(folder / "context.safetensors", trained, dtype)
        self.transformer = trained.backbone()
        try:
            super().export_in(folder, record, dtype)
        finally:
            self.transformer = trained

    def draws(self, clips: EncodedClips, step: int, generator: torch.Generator) -> Draws:
        """As in the objective; never a reference for the variant `text_only`."""
        drawn = super().draws(clips, step, generator)
        return replace(drawn, reference=None) if self.settings.variant == "text_only" else drawn

    def texts(self, batch: Any, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the captions; only of the later one for the variant `one_prompt`."""
        if self.settings.variant == "one_prompt":
            batch = {**batch, "first": [""] * len(batch["later"])}
        return super().texts(batch, draws)

    def _show_others(self, batch: dict[str, Any], rng: np.random.Generator) -> None:
        wrong = rng.random(self.settings.batch) < _WRONG_SHARE
        others = rng.integers(len(self.pool), size=int(wrong.sum()))
        for name in ("reference_latents", "image_embeds"):
            batch[name] = batch[name].clone()
            batch[name][torch.from_numpy(wrong)] = getattr(self.pool, name)[torch.from_numpy(others)]

    def _first_frames(self) -> dict[str, Tensor]:
        """CLIP tokens of every clip's first frame, computed once and stored beside the pool."""
        folder = self._key.folder(self.settings.pools) / "first_frames"
        folder.mkdir(exist_ok=True)
        parts = []
        for start in tqdm(range(0, len(self.pool), _FRAMES_A_FILE), desc="first frames", disable=None):
            path, stop = folder / f"{start:06d}.safetensors", min(start + _FRAMES_A_FILE, len(self.pool))
            if not path.exists():
                write_tensors(path, {"image_embeds": torch.stack([self._tokens(i) for i in range(start, stop)])})
            parts.append(load_file(path)["image_embeds"][: stop - start])
        return {"image_embeds": torch.cat(parts)}

    def _tokens(self, index: int) -> Tensor:
        size = self.settings.size
        frame = sample(self._key.world_seed(index), self.settings.num_frames, (size, size)).video[0]
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        return self.image_encoder.encode(clip_picture(image, self.image_encoder.image_size))[0].half().cpu()


def prompt_of(variant: Variant, prompt: TwoStagePrompt) -> TwoStagePrompt:
    """The prompt in the form that the variant's network was trained with."""
    return TwoStagePrompt("", prompt.later) if variant == "one_prompt" else prompt


def _character(labels: list[int]) -> Character:
    return Character(**{name: ATTRIBUTES[name][value] for name, value in zip(ATTRIBUTES, labels, strict=False)})


def _scene(labels: list[int]) -> Scene:
    action, place, light = labels[-3:]
    return Scene(ACTIONS[action], PLACES[place], LIGHTS[light])


PARTS["ablation"] = PartEntry(__name__, "AblationPart")
