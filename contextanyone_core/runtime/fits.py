"""Which models fit a GPU, in which memory mode, at which sizes: by the arithmetic of `memory`, without any file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from ..config import ContextAnyoneConfig
from ..model.transformer import ContextAnyoneTransformer
from ..model_specs import MODELS, ModelSpec
from ..shapes import VideoShape
from .memory import MODES, ModelSizes, fitting_mode, stage_bytes
from .options import Video

GIB = 1 << 30
CONTEXT_BYTES = GIB // 2
"""What CUDA and its libraries take of a GPU before anything is loaded."""
SIZES = (VideoShape(81, 480, 832), VideoShape(49, 480, 832), VideoShape(81, 320, 576))
"""Sizes that are asked about; models were trained at the first."""
_HALF = 2
# Parameters of umT5-XXL, its table and one of its blocks; of CLIP ViT-H/14; of Wan's VAE.
_TEXT, _TEXT_TABLE, _TEXT_BLOCK, _IMAGE, _VAE = 5_680_910_336, 1_050_148_864, 192_948_224, 630_766_080, 126_892_531
_WIDTHS = {"1.3B": ContextAnyoneConfig.wan_1_3b, "14B": ContextAnyoneConfig.wan_14b}
_PUBLIC = {
    "contextanyone": ("1.3B",),
    "refalign": ("1.3B", "14B"),
    "bernini": ("1.3B",),
    "phantom": ("1.3B", "14B"),
    "wan": ("1.3B", "14B"),
}
"""Sizes of the models' files; those of `contextanyone` are not public yet."""


@dataclass(frozen=True)
class Fit:
    """One row of the table.

    Attributes:
        spec: the model, with one reference if it takes any.
        width: "1.3B" or "14B".
        shape: size of the video.
        mode: the fastest memory mode that fits; None if none does.
        peak: bytes of the largest stage on the GPU, in that mode or in the smallest.
        host: bytes of the weights that are in the computer's memory at most; 0 in mode `high`.
    """

    spec: ModelSpec
    width: str
    shape: VideoShape
    mode: str | None
    peak: int
    host: int


def fits(free: int) -> list[Fit]:
    """Every public model at every size of `SIZES`, in bf16, on a GPU with `free` bytes."""
    rows = [(MODELS[name], width) for name, widths in _PUBLIC.items() for width in widths]
    return [_fit(free, spec, width, shape) for spec, width in rows for shape in SIZES]


def stages_of(spec: ModelSpec, width: str, video: Video) -> dict[str, dict[str, int]]:
    """Bytes of each stage in every memory mode, in bf16."""
    config, sizes = _sizes(spec.emphasis, width)
    return {mode: stage_bytes(mode, sizes, config, video, _HALF, spec) for mode in MODES}


def _fit(free: int, spec: ModelSpec, width: str, shape: VideoShape) -> Fit:
    stages = stages_of(spec, width, Video(shape, int(spec.references)))
    mode = fitting_mode(free, stages)
    _, sizes = _sizes(spec.emphasis, width)
    host = 0 if mode == "high" else _HALF * max(sizes.text, sizes.transformer)  # low too, until it is cast to fp8
    return Fit(spec, width, shape, mode, max(stages[mode or MODES[-1]].values()), host)


@cache
def _sizes(ours: bool, width: str) -> tuple[ContextAnyoneConfig, ModelSizes]:
    """Config and parameters of our model, or of one with plain Wan's tensors."""
    config = _WIDTHS[width]()
    config = config if ours else replace(config, emphasize=False, image_dim=None)
    network = ContextAnyoneTransformer(config, device="meta")
    whole, block = (sum(weight.numel() for weight in part.parameters()) for part in (network, network.blocks[0]))
    image = _IMAGE if config.image_dim is not None else 0
    return config, ModelSizes(whole, block, _TEXT, _TEXT_TABLE, _TEXT_BLOCK, image, _VAE)
