"""Training of the transformer, independent of its data: the network, its trained parameters, and its export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch._dynamo
from pydantic import Field, model_validator
from torch import Tensor, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.blocks import TransformerBlock
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.compile import compile_blocks
from contextanyone_core.weights.checkpoint import save_transformer
from contextanyone_core.weights.lora import merged, save_lora
from contextanyone_core.weights.writer import OnDemand
from training.block_offload import BlockOffload
from training.flops import backward_flops, forward_flops
from training.lora import trained_lora
from training.parts.base import Metrics, ParameterGroup, PartContext, Work, default_groups, scaled_groups
from training.parts.objective import (
    Draws,
    EncodedClips,
    ObjectiveSettings,
    draw,
    dual_guidance_step,
    fixed_draws,
    loss_terms,
)
from training.parts.start import StartFile, new_network
from training.quantised import quantise_frozen
from training.recompute import Recompute, keeping_attention, recompute_blocks
from training.shares import Shares
from training.trainable import TrainSettings, choose_trained, frozen_names, lr_scales

_LOG = logging.getLogger(__name__)


class TransformerSettings(ObjectiveSettings):
    """The objective, what is trained, and how the network is run."""

    gap: float | None = Field(default=None, ge=0)  # latent frames; None: as in `init.from`, 10 without one
    condition: bool | None = None  # channels for poses and first frames; None: as in `init.from`, false without one
    emphasize: bool | None = None  # Emphasize-Attention in the blocks; None: as in `init.from`, true without one
    anchor: Literal["reference", "none"] = "reference"  # none: no reference stream, and plain backbones will do
    train: TrainSettings = TrainSettings()
    compile: bool = False  # torch.compile of the blocks; needs a C++ compiler: docs/TRAINING_SETTINGS.md
    recompute: Recompute = "none"  # activation checkpointing of the blocks; selective keeps the attentions' outputs
    explicit_attention: bool = False  # plain matrix products: on a CPU their backward is faster than the fused kernel's

    @model_validator(mode="after")
    def _recompute_fits(self) -> Self:
        if self.recompute == "selective" and self.explicit_attention:
            raise ValueError(
                "part.recompute: selective needs fused attention, not part.explicit_attention; full does not"
            )
        return self

    @model_validator(mode="after")
    def _offload_recomputes(self) -> Self:
        if self.train.lora is None or not self.train.lora.offload:
            return self
        if self.recompute == "none" or (self.recompute == "selective" and self.compile):
            raise ValueError(
                "part.train.lora.offload needs part.recompute: full, or selective without part.compile; else the "
                "backward pass would keep every block on the card"
            )
        return self

    @model_validator(mode="after")
    def _stream_of_its_own(self) -> Self:
        settings = (self.gap, self.emphasize, self.condition)
        if self.one_stream and any(setting is not None for setting in settings):
            raise ValueError(
                "part.gap, part.emphasize and part.condition need a reference stream; with part.reading: "
                f"{self.reading} leave them out"
            )
        return self

    def network_config(self, config: ContextAnyoneConfig) -> ContextAnyoneConfig:
        """The config of the network that is trained: a file's or a preset's, with what these settings choose."""
        if self.one_stream:
            return backbone_config(config)
        gap = config.gap if self.gap is None else self.gap
        emphasize = config.emphasize if self.emphasize is None else self.emphasize
        conditioned = config.condition_dim > 0 if self.condition is None else self.condition
        condition_dim = 2 * config.in_dim if conditioned else 0
        return replace(config, gap=gap, emphasize=emphasize, condition_dim=condition_dim)


class TransformerTraining:
    """The common part of the parts that train a `ContextAnyoneTransformer`."""

    settings: TransformerSettings
    context: PartContext

    def __init__(
        self, settings: TransformerSettings, transformer: ContextAnyoneTransformer, shares: Shares | None = None
    ) -> None:
        self.transformer, self.settings = transformer, settings
        choose_trained(transformer, settings.train, shares)
        if settings.train.lora is not None:
            quantise_frozen(transformer.blocks, settings.train.lora.base)
        self._fixed = {name for name, parameter in transformer.named_parameters() if not parameter.requires_grad}
        if settings.explicit_attention:
            transformer.attention = explicit_attention
        selective_inside = settings.compile and settings.recompute == "selective"
        if settings.compile:
            compile_for_buckets(transformer, keeping_attention if selective_inside else TransformerBlock.forward)
        self.offload: BlockOffload | None = None
        if settings.train.lora is not None and settings.train.lora.offload:
            self.offload = BlockOffload(list(transformer.blocks))
        recompute_blocks(transformer, "none" if selective_inside else settings.recompute)

    @property
    def conditioned(self) -> bool:
        """Whether the network has channels for poses and first frames."""
        return self.transformer.config.condition_dim > 0

    @property
    def start_frames(self) -> int:
        """How many first latent frames a sample may be shown: one as Wan2.1-Fun-Control, in the miniature two."""
        return 1 if self.transformer.config.pose_style == "full" else 2

    def modules(self) -> dict[str, nn.Module]:
        """The transformer; its encoders stay frozen."""
        return {"transformer": self.transformer}

    def parameter_groups(self) -> list[ParameterGroup]:
        """What `part.train` chooses, by default all of it (Paper: all DiT blocks are fine-tuned)."""
        groups = default_groups(self.modules(), hidden=_hidden)
        named = dict(self.transformer.named_parameters())
        scales = lr_scales(named, self.settings.train)
        return scaled_groups(groups, {named[name]: scale for name, scale in scales.items()})

    def frozen(self, step: int) -> list[nn.Parameter]:
        """The parameters that `part.train.thaw` still freezes at a step."""
        named = dict(self.transformer.named_parameters())
        return [named[name] for name in frozen_names(named, self.settings.train, step)]

    def kept(self) -> list[nn.Parameter]:
        """Of a LoRA, the network that it adapts."""
        named = self.transformer.named_parameters() if self.settings.train.lora is not None else ()
        return [parameter for name, parameter in named if name in self._fixed]

    def needs_whole(self) -> str | None:
        """The setting by which every process needs the whole network."""
        lora = self.settings.train.lora
        if lora is not None and lora.base != "float32":
            return f"part.train.lora.base is {lora.base}"
        return "part.train.lora.offload is true" if self.offload is not None else None

    def start(self) -> ContextAnyoneTransformer:
        """The network of `init.from`, which there is, as the training started from it."""
        assert self.context.init_from is not None
        return _start_file(self.settings, self.context.init_from).network()

    def encoded(self, batch: Any) -> EncodedClips:
        """A batch in the form of the objective."""
        raise NotImplementedError

    def texts(self, batch: Any, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Text embeddings of the video stream, and of the reference stream where it is used."""
        raise NotImplementedError

    def encoders(self) -> Path | None:
        """The folder of the frozen encoders that the network is trained with, and generates with."""
        return None

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The dual-guidance loss of a batch."""
        clips = self.encoded(batch)
        draws = self.draws(clips, step, generator)
        return dual_guidance_step(self.transformer, self.settings, clips, draws, self.texts(batch, draws))

    def draws(self, clips: EncodedClips, step: int, generator: torch.Generator) -> Draws:
        """Everything random about a step."""
        drawn = draw(self.settings, clips, generator, self.context.common_generator(step, "drop references"))
        return self._anchored(drawn)

    def _anchored(self, draws: Draws) -> Draws:
        return draws if self.settings.anchor == "reference" else replace(draws, reference=None)

    def validation_loss(self, batch: Any, sigma: float, generator: torch.Generator) -> Metrics:
        """The terms of the loss at one noise level."""
        clips = self.encoded(batch)
        draws = self._anchored(fixed_draws(clips, sigma, generator))
        terms = loss_terms(self.transformer, self.settings, clips, draws, self.texts(batch, draws))
        return {"video": terms.video, "reference": terms.reference}

    def work(self, batch: Any, *, with_reference: bool) -> Work:
        """Tokens and FLOPs of a batch with `latents`, `reference_latents` and maybe `image_embeds`.

        FLOPs are None where part of the network is frozen, which saves some.
        """
        config, latents, pictures = self.transformer.config, batch["latents"], batch["reference_latents"]
        patch = math.prod(config.patch_size)
        video, shown = (math.prod(size) // patch for size in (latents.shape[2:], pictures.shape[3:]))
        references = [shown] * pictures.shape[2]
        if self.settings.one_stream:  # always there: where they are dropped, zeros or all the same
            video, references = video + sum(references), []
        elif not with_reference:
            references = []
        clip_tokens = batch["image_embeds"].shape[1] if references and "image_embeds" in batch else 0
        flops = None
        if all(parameter.requires_grad for parameter in self.transformer.parameters()):
            passes = (forward_flops, backward_flops)
            flops = len(latents) * sum(count(config, video, references, clip_tokens) for count in passes)
        return Work(len(latents) * (video + sum(references)), flops)

    def lora_strength(self) -> float:
        """What of the trained LoRA an export has as its strength 1."""
        return 1.0

    def lora_header(self) -> dict[str, str]:
        """Entries of the header of an exported LoRA, beside the record."""
        return {}

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write transformer.safetensors; of a LoRA, lora.safetensors and, unless left out, the merged network."""
        self.export_in(folder, record, torch.float16)

    def export_in(self, folder: Path, record: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Write as `export` does, in a dtype."""
        self._write(folder, record, dtype, self.transformer.state_dict())

    def export_stored(self, folder: Path, record: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
        """Write as `export` does, from a checkpoint's tensors, with one of them in memory at a time."""
        own = OnDemand(self.transformer.state_dict(), lambda name: stored[f"transformer.{name}"])
        self._write(folder, record, torch.float16, own)

    def _write(self, folder: Path, record: Mapping[str, Any], dtype: torch.dtype, own: Mapping[str, Tensor]) -> None:
        """Write an export; `own` are the tensors of the network as it is trained."""
        extra, network, tensors = {"record": json.dumps(dict(record))}, self.transformer, own
        if self.settings.train.lora is not None:
            assert self.context.init_from is not None
            file = _start_file(self.settings, self.context.init_from)
            network, start = file.empty(), file.tensors()
            lora = trained_lora(own, self.settings.train.lora, start, self.lora_strength())
            save_lora(folder / "lora.safetensors", lora, dtype=dtype, extra=extra | self.lora_header())
            if not self.settings.train.lora.merged:
                return
            tensors = OnDemand(start, lambda name: merged(lora, 1.0, name, start[name]))
        save_transformer(folder / "transformer.safetensors", network, dtype=dtype, extra=extra, tensors=tensors)
        if (encoders := self.encoders()) is not None:
            names = ("vae", "text_encoder", "image_encoder")[: 2 if network.config.image_dim is None else 3]
            files = ", ".join(f"{name}.safetensors" for name in names)
            _LOG.info("contextanyone generate --weights %s also needs %s there, from %s.", folder, files, encoders)


def starting_network(
    settings: TransformerSettings, context: PartContext, fresh: Callable[[], ContextAnyoneConfig]
) -> ContextAnyoneTransformer:
    """The network of `init.from`, float32 as training needs its weights, else a newly initialised one.

    Where `context.shares` is given, the network is on the meta device, and this process's rows are kept there.

    Raises:
        InputError: a LoRA without `init.from`, or `part.emphasize` of a file that has no Emphasize-Attention.
    """
    if context.init_from is not None:
        file = _start_file(settings, context.init_from)
        return file.network() if context.shares is None else file.shared(context.shares)
    if settings.train.lora is not None:
        raise InputError("part.train.lora needs init.from: the file with the network that it is a LoRA of.")
    return new_network(settings.network_config(fresh()), context.shares)


def _start_file(settings: TransformerSettings, path: Path) -> StartFile:
    return StartFile(path, settings.network_config, plain=settings.one_stream or settings.anchor == "none")


def backbone_config(config: ContextAnyoneConfig) -> ContextAnyoneConfig:
    """The config of Wan's part of a network."""
    return replace(config, emphasize=False, image_dim=None, condition_dim=0)


def _hidden(name: str) -> bool:
    """Whether a tensor is a hidden layer's weight, for Muon; the two of a low-rank update are not."""
    return ".blocks." in name and name.endswith("weight") and ".lora_" not in name


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`torch_attention` written out as two matrix products and a softmax in float32; shapes as there."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    read: Tensor = scores.float().softmax(-1).to(v.dtype) @ v
    return read.transpose(1, 2).flatten(-2)


def compile_for_buckets(
    transformer: ContextAnyoneTransformer, forward: Callable[..., Any] = TransformerBlock.forward
) -> None:
    """Compile the repeated block for each shape, of which every bucket has its own, with references and without."""
    # With and without references, in training and in validation: buckets four times, and eight is torch's own limit.
    torch._dynamo.config.recompile_limit = 256
    compile_blocks(transformer, forward)
