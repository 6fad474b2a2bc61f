"""The semantic image encoder: penultimate hidden states of CLIP's vision tower (transformers).

Tensor names in files have the prefix `vision_model.`, as in ComfyUI and in transformers before version 5, which dropped
it from the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ShapeError
from ..late_import import host_class
from ..weights.checkpoint import save_safetensors
from ..weights.naming import IMAGE_ENCODER
from .loading import fill, on_meta, open_weights

_PREFIX = "vision_model."
IMAGE_KEYS = frozenset(
    {
        "image_size",
        "patch_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    }
)
"""Keys of the config in an image encoder's header."""
# Channel mean and standard deviation of pictures in [0, 1] for all OpenAI CLIP and OpenCLIP models.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def mini_image_config() -> dict[str, Any]:
    """Config of the miniature CLIP vision tower."""
    return {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }


def build_image_model(config: Mapping[str, Any]) -> Any:
    """A transformers `CLIPVisionModel` with random weights, for a config like `mini_image_config`.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    module = "transformers.models.clip"
    model_config = host_class(f"{module}.configuration_clip", "CLIPVisionConfig")(**config)
    return host_class(f"{module}.modeling_clip", "CLIPVisionModel")(model_config)


class ImageEncoder:
    """CLIP's vision tower as the model's semantic encoder (paper, dual encoder; Wan I2V's choice of layer).

    Args:
        model: transformers' `CLIPVisionModel`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.image_size = int(model.config.image_size)
        self.image_dim = int(model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device(next(self.model.parameters()).device)

    def to(self, device: torch.device | str) -> ImageEncoder:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate hidden states (B, 1 + patches, image_dim), float32, of square images (B, 3, S, S) in [-1, 1].

        Raises:
            ShapeError: the images are not (B, 3, S, S) with S = `image_size` of the tower.
        """
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
            raise ShapeError(f"images have shape {tuple(images.shape)}; CLIP needs (B, 3, {size}, {size}).")
        with torch.no_grad():
            output = self.model(pixel_values=clip_pixels(images.to(self.device)), output_hidden_states=True)
        return torch.as_tensor(output.hidden_states[-2]).float()


def clip_pixels(images: torch.Tensor) -> torch.Tensor:
    """Normalise images (B, 3, S, S) in [-1, 1] with CLIP's mean and standard deviation."""
    mean = images.new_tensor(CLIP_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(CLIP_STD).view(1, 3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def save_image_encoder(
    model: Any, path: Path, extra: dict[str, str] | None = None, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write the vision tower as one safetensors file; names have the prefix `vision_model.`."""
    state = model.state_dict().items()
    tensors = {_PREFIX + name.removeprefix(_PREFIX): value.detach().to(dtype) for name, value in state}
    config = {key: getattr(model.config, key) for key in sorted(IMAGE_KEYS)}
    save_safetensors(path, tensors, kind=IMAGE_ENCODER, config=config, extra=extra)


def load_image_encoder(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ImageEncoder:
    """Load a file of `save_image_encoder`, or CLIP ViT-H as Wan's .pth, ComfyUI's single file or a diffusers folder.

    Raises:
        CheckpointError: the file is damaged, of another kind, or does not fit its config.
        MissingDependencyError: transformers is not installed.
    """
    config, tensors = open_weights(path, IMAGE_ENCODER, IMAGE_KEYS, dtype)
    model = on_meta(lambda: build_image_model(config))
    if not any(name.startswith(_PREFIX) for name in model.state_dict()):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    fill(model, {name: value.to(device=device, dtype=dtype) for name, value in tensors.items()}, path)
    for module in model.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.position_ids = torch.arange(module.num_positions, device=device)[None]
    return ImageEncoder(model)
