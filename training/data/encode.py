"""What is encoded of a row, and what the result depends on: the clip, the reference, its target, and the prompts.

References and prompts go through the very code that generation uses (`DualEncoder`, `TextEncoder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.reference import DualEncoder, check_picture, pad_picture
from contextanyone_core.encoders.text import TextEncoder, load_text_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import InputError
from contextanyone_core.prompts import TwoStagePrompt
from training.data.check import CheckedClip, Unusable
from training.data.frames import latent_masks, to_images
from training.data.media import read_frames, read_masks, read_pose
from training.data.shards import Entry, half, key_of
from training.files import file_sha256

ENCODER_NAMES = ("vae", "image_encoder", "text_encoder")
_VERSION = 2  # raised when pictures and videos are prepared in another way, so that older entries are not used
_TEXT_VERSION = 1  # the same of prompts


def encoder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each encoder's file that the folder has, by name."""
    return {name: file_sha256(path) for name in ENCODER_NAMES if (path := folder / f"{name}.safetensors").is_file()}


class Encoders:
    """The frozen encoders of a folder, each loaded when it is first needed.

    The text encoder runs in bf16 on a GPU, where at full size float32 would take 23 GB; all else in float32.

    Raises:
        InputError: vae.safetensors or text_encoder.safetensors is missing. Without image_encoder.safetensors
            references have no CLIP tokens.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        for name in ("vae", "text_encoder"):
            if not self._path(name).is_file():
                raise InputError(f"{self._path(name)} does not exist; part.data.encoders must hold it.")
        self.hashes = encoder_hashes(folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @cached_property
    def vae(self) -> VideoVAE:
        """The video VAE."""
        return VideoVAE(load_vae(self._path("vae"), torch.float32, self.device))

    @cached_property
    def dual(self) -> DualEncoder:
        """VAE and CLIP of the reference."""
        image = load_image_encoder(self._path("image_encoder"), device=self.device) if self.has_clip else None
        return DualEncoder(self.vae, image)

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return load_text_encoder(self._path("text_encoder"), dtype, self.device)

    @property
    def has_clip(self) -> bool:
        """Whether references get CLIP tokens."""
        return "image_encoder" in self.hashes


@dataclass(frozen=True)
class RowKeys:
    """The keys of everything that is encoded of one row, and the prompts; target is None for the clip's own frame."""

    clip: str
    reference: str
    target: str | None
    first: str
    video: str

    def all(self) -> list[str]:
        """The keys, without the absent one."""
        return [key for key in (self.clip, self.reference, self.target, self.first, self.video) if key is not None]


def row_keys(clip: CheckedClip, encoders: dict[str, str]) -> RowKeys:
    """The keys of a row: functions of its files' contents, of how they are used, and of the encoders' files."""
    row, hashes, size = clip.line.row, clip.hashes, [clip.bucket.height, clip.bucket.width]
    vae = {"version": _VERSION, "vae": encoders["vae"], "size": size}
    frames = {"indexes": clip.indexes, "box": clip.placement.box}
    companions = {name: hashes.get(name) for name in ("video", "mask", "pose")}
    pictures = {name: hashes.get(name) for name in ("reference", "reference_mask")}
    target = None
    if row.target_frame is not None:
        target = key_of(kind="target", picture=hashes["target_frame"], **vae)
    elif row.target_frame_index is not None:
        place = {"index": row.target_frame_index, "box": clip.placement.box}
        target = key_of(kind="target", video=hashes["video"], mask=hashes.get("mask"), **place, **vae)
    prompt = TwoStagePrompt(row.prompt_first, row.prompt_later)
    return RowKeys(
        clip=key_of(kind="clip", **companions, **frames, **vae),
        reference=key_of(kind="reference", **pictures, image_encoder=encoders.get("image_encoder"), **vae),
        target=target,
        first=text_key(prompt.reference_text, encoders),
        video=text_key(prompt.video_text, encoders),
    )


def text_key(prompt: str, encoders: dict[str, str]) -> str:
    """The key of a prompt."""
    return key_of(kind="text", version=_TEXT_VERSION, prompt=prompt, text_encoder=encoders["text_encoder"])


def encode_clip(folder: Path, clip: CheckedClip, encoders: Encoders) -> Entry:
    """`latents` (16, t, h, w); `mask` (1, t, h, w), the person's share, where the row has one; `pose` (T, points, 3).

    Pose keypoints are in the bucket's pixels, float32; without a confidence it is 1.
    """
    row, place = clip.line.row, clip.placement
    entry: Entry = {
        "latents": encoders.vae.encode(to_images(place.apply(read_frames(folder / row.video, clip.indexes))))[0]
    }
    if row.mask is not None:
        entry["mask"] = latent_masks(place.apply(read_masks(folder / row.mask, clip.indexes))[:, 0])
    entry = _finite(entry)
    if row.pose is not None:
        points = torch.from_numpy(place.move(read_pose(folder / row.pose)[list(clip.indexes)]))
        entry["pose"] = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)[..., :3]
    return entry


def encode_reference(folder: Path, clip: CheckedClip, encoders: Encoders) -> Entry:
    """`latents` (16, 1, h, w), `image_embeds` (N, D) with a CLIP tower, `mask` (1, 1, h, w) where there is one."""
    row, size = clip.line.row, (clip.bucket.height, clip.bucket.width)
    picture = to_images(read_frames(folder / row.reference, [0]))[:, :, 0]
    check_picture(picture)
    encoded = encoders.dual.encode(picture, size)
    entry = {"latents": encoded.latents[0]}
    if encoded.image_embeds is not None:
        entry["image_embeds"] = encoded.image_embeds[0]
    if row.reference_mask is not None:
        entry["mask"] = _padded_mask(read_masks(folder / row.reference_mask, [0]), size)
    return _finite(entry)


def encode_target(folder: Path, clip: CheckedClip, encoders: Encoders) -> Entry:
    """`latents` (16, 1, h, w) of the frame that the reference was made from, and its `mask` where it is known."""
    # Paper: the target is "ground-truth appearance". The reference is an edit of this frame, so the frame is prepared
    # as a reference is (aspect kept, white around): then the two show the same things in the same places.
    row, size = clip.line.row, (clip.bucket.height, clip.bucket.width)
    mask = None
    if row.target_frame is not None:
        frame = read_frames(folder / row.target_frame, [0])
    else:
        (x0, y0, x1, y1), index = clip.placement.box, [row.target_frame_index or 0]
        frame = read_frames(folder / row.video, index)[:, :, y0:y1, x0:x1]
        if row.mask is not None:
            mask = read_masks(folder / row.mask, index)[:, :, y0:y1, x0:x1]
    padded = pad_picture(to_images(frame)[:, :, 0], size)
    entry = {"latents": encoders.vae.encode(padded[:, :, None])[0]}
    return _finite(entry if mask is None else entry | {"mask": _padded_mask(mask, size)})


def encode_text(prompt: str, encoders: Encoders) -> Entry:
    """`text_embeds` (tokens, D): the prompt's own rows, without the padding."""
    count = encoders.text.count_tokens(prompt)
    if count > encoders.text.text_len:
        raise Unusable("prompt_too_long", f"{count} tokens, {encoders.text.text_len} fit: {prompt[:60]!r}")
    return _finite({"text_embeds": encoders.text.encode([prompt])[0, :count]})


def _padded_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1, 1, H, W) from 0 to 255 as a reference is placed: the share in each latent, 0 in the margins."""
    outside = 1.0 - mask.float() / 127.5  # 1 where the person is not, which is what the margins are filled with
    padded = pad_picture(outside.expand(-1, 3, -1, -1), size)[:, 0]
    return latent_masks((1.0 - padded) * 127.5)


def _finite(entry: Entry) -> Entry:
    try:
        return half(entry)
    except ValueError as error:
        raise Unusable("not_finite", str(error)) from None
