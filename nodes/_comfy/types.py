"""ComfyUI's values as the nodes take and give them, for annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE
    from torch import Tensor

Model: TypeAlias = "ModelPatcher"
Clip: TypeAlias = "CLIP"
Vae: TypeAlias = "VAE"
ClipVision: TypeAlias = "ClipVisionModel"
Conditioning: TypeAlias = "list[tuple[Tensor, dict[str, Any]]]"
"""Text embeddings (B, L, text_dim), each with the keys that travel with it."""
Keypoints: TypeAlias = "list[dict[str, Any]]"
"""POSE_KEYPOINT: OpenPose's frames, as SDPose and controlnet_aux give them."""
