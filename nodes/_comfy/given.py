"""What comes over the sockets, checked before use: null, an empty batch, a value of another kind."""

from __future__ import annotations

from typing import Any

import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.errors import InputError, ShapeError

_FROM = {
    "model": "Load ContextAnyone or Load ContextAnyone Miniature",
    "clip": "Load CLIP, or the CLIP of Load ContextAnyone Miniature",
    "vae": "Load VAE, or the VAE of Load ContextAnyone Miniature",
    "image": "Load Image or ContextAnyone Example Picture",
    "positive": "ContextAnyone Prompt or CLIP Text Encode",
    "negative": "ContextAnyone Prompt or CLIP Text Encode",
    "start_frame": "Load Image",
    "keypoints": "SDPose Keypoint Extractor, DWPose or ContextAnyone Example Pose",
}
_BRIGHTEST = 2.0  # of an IMAGE: 1 is white; filters overshoot a little


def require_given(**values: Any) -> None:
    """Refuse inputs that are null, by name: a node in front gave nothing, or a prompt by API holds null.

    Raises:
        InputError: naming the input and what to connect.
    """
    for name, value in values.items():
        if value is None:
            raise InputError(f"{name} is null; connect {_FROM[name]}.")


def require_conditioning(**values: Any) -> None:
    """Refuse CONDITIONING that is null, empty or without text embeddings, by name.

    Raises:
        InputError: naming the input and what to connect.
    """
    require_given(**values)
    for name, value in values.items():
        if not value:
            raise InputError(f"{name} is an empty CONDITIONING; connect {_FROM[name]}.")
        for text, _ in value:
            if not isinstance(text, torch.Tensor):
                raise InputError(f"{name} holds a {type(text).__name__} and no text embeddings; connect {_FROM[name]}.")


def checked_images(image: Any, name: str = "image") -> torch.Tensor:
    """An IMAGE (n, H, W, 3 or 4) in [0, 1] that holds at least one picture; `name` is its input's.

    Raises:
        InputError: null, empty, integers, or values that no picture has.
        ShapeError: no batch of RGB or RGBA pictures.
    """
    require_given(**{name: image})
    pixels: torch.Tensor = image
    if image.ndim != 4:
        raise ShapeError(
            f"{name} has shape {tuple(image.shape)}; a batch of pictures (n, height, width, 3) is needed. The node "
            "that gives it is not made for IMAGE; use another."
        )
    if not len(image):
        raise InputError(f"{name} is an empty batch; the node before it let no picture through. Give at least one.")
    if image.shape[3] == 1:
        raise ShapeError(
            f"{name} has 1 channel and 3 are needed, red, green and blue: put Convert Image to Mask and Convert Mask "
            "to Image in between, which make a grey picture of it."
        )
    if image.shape[3] not in (3, 4):
        raise ShapeError(
            f"{name} has {image.shape[3]} channels; 3 (red, green, blue) or 4 (and alpha) are needed. Use a node that "
            "gives such pictures."
        )
    if not image.is_floating_point() or bool((image.abs() > _BRIGHTEST).any() & image.isfinite().all()):
        low, high = image.min().item(), image.max().item()
        raise InputError(
            f"{name} holds {image.dtype} from {low:g} to {high:g}; an IMAGE holds numbers from 0 (black) to 1 (white). "
            "Scale it, such as dividing by 255."
        )
    return pixels


def checked_masks(mask: torch.Tensor, pictures: int) -> torch.Tensor:
    """A MASK as (n, h, w) with one mask, or one for each picture, each covering something.

    Raises:
        InputError: a mask that covers nothing.
        ShapeError: as many masks as pictures are needed, or one.
    """
    if mask.ndim < 2:
        raise ShapeError(f"mask has shape {tuple(mask.shape)}; (n, height, width) is needed.")
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) not in (1, pictures):
        raise ShapeError(f"There are {len(mask)} masks for {pictures} pictures; give one, or one for each picture.")
    for one in mask:
        if bool(one.isfinite().all()) and not bool((one > 0).any()):
            raise InputError(
                "The mask is empty: no pixel of it is above 0, and it must be 1 where the subject is. Load Image gives "
                "such a mask for a picture without transparency: disconnect mask, or paint over the character in the "
                "mask editor."
            )
    return mask


def require_channels(config: ContextAnyoneConfig, **conditions: Any) -> None:
    """Refuse what is to be followed, by the names of its inputs, by a model that cannot; None is not given.

    Raises:
        InputError: naming the inputs and which model to use.
    """
    named = [name for name, value in conditions.items() if value is not None]
    if named and not config.condition_dim:
        given, them = (f"{named[0]} is", "it") if len(named) == 1 else (f"{' and '.join(named)} are", "them")
        raise InputError(
            f"{given} connected, and this model has no inputs for {them}: it was not made to follow poses and start "
            f"frames. Disconnect {them}, or load a model that follows them, such as Wan2.1-Fun-1.3B-Control."
        )
