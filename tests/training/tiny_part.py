"""The real transformer at tiny size on noise, for the tests of several processes."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.references import ReferenceInputs
from training.parts import PARTS, PartEntry
from training.parts.base import Metrics, PartContext
from training.parts.objective import Draws, EncodedClips, ReferenceDraws, dual_guidance_step
from training.parts.transformer_base import TransformerSettings, TransformerTraining, starting_network
from training.randomness import torch_generator


class Settings(TransformerSettings):
    name: Literal["tiny"] = "tiny"
    first_only: bool = False  # references in the first process only; else in every other step
    nan_draws: tuple[int, ...] = ()


class TinyPart(TransformerTraining):
    """Trains on noise."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        transformer = starting_network(settings, context, ContextAnyoneConfig.tiny)
        for parameter in transformer.parameters() if context.init_from is None else ():
            drawn = nn.init.normal_(torch.empty(parameter.shape), std=0.05)
            if context.shares is None:
                parameter.data.copy_(drawn)
            else:
                context.shares.keep(parameter, drawn)
        super().__init__(settings, transformer, context.shares)
        self.settings, self.context = settings, context

    def batch(self, step: int) -> dict[str, Tensor]:
        generator = torch_generator(self.context.own_seed, step, "tiny")
        shapes = {"latents": (1, 16, 3, 4, 6), "reference_latents": (1, 16, 1, 4, 6), "image_embeds": (1, 5, 24)}
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        latents, still = batch["latents"], batch["reference_latents"]
        clips = EncodedClips(latents, torch.ones(1, 1, 3, 4, 6), still, batch["image_embeds"], latents[:, :, :1], None)
        with_reference = self.context.rank == 0 if self.settings.first_only else step % 2 == 0
        used = ReferenceDraws(torch.zeros(1), torch.zeros_like(still)) if with_reference else None
        draws = Draws(torch.full((1,), 0.5), torch.randn(latents.shape, generator=generator), [True], used)
        texts = (torch.ones(1, 12, 32), torch.ones(1, 12, 32))
        loss, metrics = dual_guidance_step(self.transformer, self.settings, clips, draws, texts)
        return (loss * torch.nan if step in self.settings.nan_draws else loss), metrics

    def sample(self, step: int, folder: Path) -> None:
        """A velocity from the references' cache, as sampling computes it."""
        noise, text = torch.ones(1, 16, 3, 4, 6), torch.ones(1, 12, 32)
        references = ReferenceInputs([noise[:, :, :1]], text, [torch.ones(1, 5, 24)])
        cache = self.transformer.encode_references(references)
        found = self.transformer(noise, torch.full((1,), 500.0), text, cache=cache).velocity
        save_file({"velocity": found.float().contiguous()}, folder / "sample.safetensors")


PARTS["tiny"] = PartEntry(__name__, "TinyPart")
