"""The shipped miniature as ComfyUI's own MODEL, CLIP, VAE and CLIP_VISION, and the pack's example pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import numpy as np
import torch

from ...contextanyone_core.encoders.text import SPIECE
from ...contextanyone_core.errors import CheckpointError
from ...contextanyone_core.generation.domain_check import domain_threshold
from ...contextanyone_core.media.image_io import read_picture
from ...contextanyone_core.model_specs import MINIATURE
from ...contextanyone_core.runtime.conv3d import OneDnnConv3d
from ...contextanyone_core.weights.checkpoint import load_tensors
from ...contextanyone_core.weights.naming import IMAGE_ENCODER, TEXT_ENCODER, VAE
from ...contextanyone_core.weights.safetensors_file import read_header
from .loading import file_names_only, load_contextanyone
from .notes import THRESHOLD
from .types import Clip, ClipVision, Model, Vae

_EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"


def load_miniature() -> tuple[Model, Clip, Vae, ClipVision]:
    """MODEL, CLIP, VAE and CLIP_VISION of the miniature.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    with file_names_only(MINIATURE / "transformer.safetensors"):
        return load_contextanyone(MINIATURE / "transformer.safetensors"), _clip(), _vae(), _clip_vision()


def example_names() -> list[str]:
    """The example pictures by file name."""
    return sorted(path.name for path in _EXAMPLES.glob("*.png"))


def example_picture(name: str) -> torch.Tensor:
    """IMAGE (1, H, W, 3) in [0, 1] of an example.

    Raises:
        InputError: there is no such picture.
    """
    path = _EXAMPLES / Path(name).name
    with file_names_only(path):
        pixels = read_picture(path)
    return torch.from_numpy(np.array(pixels, dtype=np.float32) / 255.0)[None]


def _clip() -> Clip:
    path = MINIATURE / "text_encoder.safetensors"
    config, tensors = read_header(path).config, load_tensors(path, kind=TEXT_ENCODER)
    sizes = {key: config[key] for key in ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size")}
    target = comfy.supported_models_base.ClipTarget(
        comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te()
    )
    options = {"model_name": "umt5xxl", "umt5xxl_model_config": sizes, "dtype": torch.float32}
    clip = comfy.sd.CLIP(target, tokenizer_data={"spiece_model": tensors.pop(SPIECE)}, model_options=options)
    missing, unknown = clip.load_sd(tensors)
    _require_whole(path, missing, unknown)
    return clip


def _vae() -> Vae:
    path = MINIATURE / "vae.safetensors"
    vae = comfy.sd.VAE(sd=load_tensors(path, kind=VAE))
    vae.throw_exception_if_invalid()
    network = vae.first_stage_model
    network.encode, network.decode = _by_onednn(network.encode), _by_onednn(network.decode)
    setattr(vae, THRESHOLD, domain_threshold(read_header(path).metadata))
    return vae


def _by_onednn(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same method with oneDNN's conv3d on a CPU, several times faster than torch's for one clip."""

    def method_by_onednn(*args: Any, **kwargs: Any) -> torch.Tensor:
        with OneDnnConv3d():
            return method(*args, **kwargs)

    return method_by_onednn


def _clip_vision() -> ClipVision:
    path = MINIATURE / "image_encoder.safetensors"
    config, tensors = read_header(path).config, load_tensors(path, kind=IMAGE_ENCODER)
    model = comfy.clip_vision.ClipVisionModel(config | {"model_type": "clip_vision_model", "num_channels": 3})
    missing, unknown = model.load_sd(tensors)
    _require_whole(path, [name for name in missing if "visual_projection" not in name], unknown)
    return model


def _require_whole(path: Path, missing: list[str], unknown: list[str]) -> None:
    missing = [name for name in missing if not name.endswith(("position_ids", "logit_scale", "text_projection.weight"))]
    if missing or unknown:
        raise CheckpointError(
            f"{path.name} does not fit this ComfyUI: {len(missing)} tensors missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}). Install the pack again."
        )
