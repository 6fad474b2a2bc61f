"""Whether a cache and a network belong together: the same encoders' widths and statistics, texts, and drawn poses."""

from __future__ import annotations

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError, InputError
from training.data.batches import CachedData
from training.data.settings import DataSettings


def check_encoders(data: CachedData, settings: DataSettings, config: ContextAnyoneConfig, *, clip_tokens: bool) -> None:
    """Refuse a network that was made for other encoders than those of the cache.

    Args:
        clip_tokens: whether the network is given any.

    Raises:
        CheckpointError: a width, or the statistics of the latents, are others.
    """
    index, shape = data.index, data.image_embeds_shape()
    text_len = index.text_len or config.text_len  # an index of an older version does not state it
    found: dict[str, object] = {"text_dim": data.empty_text.shape[1], "text_len": text_len}
    if clip_tokens:
        found["image_dim"] = shape[1] if shape else None
    for name, value in found.items():
        needed, encoder = getattr(config, name), f"{name.partition('_')[0]}_encoder"
        if needed != value:
            do, where = ("take", "out of") if needed is None else ("put", "that it was made with into")
            raise CheckpointError(
                f"{name} of the cache is {value}, the transformer needs {needed}: {do} the "
                f"{encoder}.safetensors {where} {settings.encoders}, and run training/cache.py again."
            )
    for name in ("latents_mean", "latents_std"):
        pairs = zip(getattr(config, name), getattr(index, name), strict=True)
        if any(abs(ours - theirs) > 1e-4 for ours, theirs in pairs):
            raise CheckpointError(f"{name} of the cache's VAE and of the transformer differ: another VAE's latents.")


def check_poses(settings: DataSettings, config: ContextAnyoneConfig, *, hulls: bool) -> None:
    """Refuse poses that the network is not shown, or that are drawn in another style than those it generates by.

    Args:
        hulls: whether the poses serve as regions, for which no channels are needed.

    Raises:
        InputError: as above.
    """
    poses, style = settings.poses, config.pose_style
    if poses is None:
        return
    if not config.condition_dim and not hulls:
        raise InputError(
            f"part.data.poses is {poses}, and the network has no condition channels to show them in: set "
            "part.condition=true, which adds them, or leave part.data.poses out."
        )
    if poses != style:
        raise InputError(
            f"part.data.poses is {poses}, and the network's pose_style is {style}: set part.data.poses={style} and "
            "run training/cache.py again."
        )


def check_length(data: CachedData, config: ContextAnyoneConfig) -> None:
    """Refuse prompts that are longer than what the network reads. Raises CheckpointError."""
    longest, text_len = data.longest_text(), config.text_len
    if longest > text_len:
        raise CheckpointError(
            f"The longest prompt of the cache has {longest} tokens, the transformer reads {text_len}: shorten such "
            "prompts in the manifest and run training/cache.py again, or take a network that reads as many."
        )
