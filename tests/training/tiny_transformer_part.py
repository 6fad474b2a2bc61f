"""The transformer's part on the tiny stack: four pairs of five frames of 32 pixels, for the tests of it."""

from pathlib import Path
from typing import Any

import torch

from training.parts.base import PartContext
from training.parts.objective import dual_guidance_step
from training.parts.transformer import Settings, TransformerPart


def context(init_from: Path | None = None) -> PartContext:
    return PartContext(seed=5, device=torch.device("cpu"), init_from=init_from)


def tiny_transformer_part(weights: Path, pools: Path, **changed: Any) -> TransformerPart:
    torch.manual_seed(0)
    small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1}
    settings = Settings(weights=weights, pools=pools, **small | changed)
    return TransformerPart(settings, context(weights / "transformer.safetensors"))


def short(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with captions that fit the tiny text encoder."""
    count = len(batch["first"])
    later = ["The same person is waving."] * count
    return batch | {"first": ["A woman."] * count, "later": later, "later_posed": later}


def loss_of(part: TransformerPart, clips: Any, draws: Any, text: torch.Tensor) -> Any:
    return dual_guidance_step(part.transformer, part.settings, clips, draws, (text, None))
