"""What is encoded of a row, and what the result depends on: the clip, the reference, its target, and the prompts.

References are prepared, and prompts encoded, by the code that generation uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contextanyone_core.encoders.image import ImageEncoder, load_image_encoder
from contextanyone_core.encoders.on_demand import load_fitting_text_encoder
from contextanyone_core.encoders.reference import check_picture, clip_picture, pad_picture
from contextanyone_core.encoders.text import TextEncoder, read_tokenizer
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import frames_to_images
from contextanyone_core.pose.drawing import STYLES, draw_poses
from contextanyone_core.pose.pose_file import read_pose_file
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.processor import card_dtype
from training.data.buckets import Bucket
from training.data.check import CheckedClip, Unusable
from training.data.facts import Facts, FactStore
from training.data.frames import latent_masks, to_images
from training.data.limb_stretch import stretched
from training.data.manifest import ManifestRow
from training.data.media import content_hash, read_frames, read_masks, read_pose
from training.data.shards import Entry, half, key_of

ENCODER_NAMES = ("vae", "image_encoder", "text_encoder")
_GPU_CLIPS, _CPU_CLIPS, _MOST = 4, 2, 8  # clips of 832 x 480 that are encoded at once; of smaller ones at most so many
_VERSION = 2  # raised when pictures and videos are prepared in another way, so that older entries are not used
_TEXT_VERSION = 1  # the same of prompts


def encoder_hashes(folder: Path, known: FactStore, between: Callable[[], None] = lambda: None) -> dict[str, str]:
    """SHA-256 of each encoder's file that the folder has, by name; computed where `known` has none yet."""
    found = {}
    for name in ENCODER_NAMES:
        path = (folder / f"{name}.safetensors").resolve()
        if path.is_file():
            facts = known.get(str(path)) or Facts(content_hash(path, between))
            known.add(str(path), facts)
            found[name] = facts.sha256
    return found


class Encoders:
    """The frozen encoders of a folder, each loaded when it is first needed.

    VAE and text encoder run in bf16 on a GPU that has it, else in float32; CLIP in float32. A text encoder that the GPU
    has no room for is in host memory, and streamed to it.

    Args:
        folder: of the files. hashes: their SHA-256, by name.

    Raises:
        InputError: vae.safetensors or text_encoder.safetensors is missing. Without image_encoder.safetensors
            references have no CLIP tokens.
    """

    def __init__(self, folder: Path, device: torch.device, hashes: dict[str, str]) -> None:
        self.folder, self.device, self.hashes = folder, device, hashes
        for name in ("vae", "text_encoder"):
            if name not in hashes:
                raise InputError(f"{self._path(name)} does not exist; part.data.encoders must hold it.")
        self.dtype = card_dtype(device)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @cached_property
    def vae(self) -> VideoVAE:
        """The video VAE."""
        return VideoVAE(load_vae(self._path("vae"), self.dtype, self.device))

    @cached_property
    def image(self) -> ImageEncoder | None:
        """CLIP of the references."""
        return load_image_encoder(self._path("image_encoder"), device=self.device) if self.has_clip else None

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder."""
        return load_fitting_text_encoder(self._path("text_encoder"), self.dtype, self.device)

    @property
    def text_len(self) -> int:
        """Tokens that the text encoder reads at most, from the file's header."""
        return read_tokenizer(self._path("text_encoder"))[0].text_len

    def batch_size(self, bucket: Bucket) -> int:
        """How many clips of a bucket the VAE encodes at once; it holds four frames of each at a time."""
        clips = _GPU_CLIPS if self.device.type == "cuda" else _CPU_CLIPS
        pixels = clips * 4 * 832 * 480
        return max(2, min(_MOST, pixels // (min(bucket.num_frames, 4) * bucket.height * bucket.width)))

    @property
    def has_clip(self) -> bool:
        """Whether references get CLIP tokens."""
        return "image_encoder" in self.hashes


@dataclass(frozen=True)
class RowKeys:
    """The keys of everything that is encoded of one row, and the prompts; target is None for the clip's own frame.

    `more_references` are those after the first; pose is None where poses are not used or the row has none.
    """

    clip: str
    reference: str
    target: str | None
    first: str
    video: str
    more_references: tuple[str, ...] = ()
    pose: str | None = None

    def references(self) -> list[str]:
        """The keys of all references."""
        return [self.reference, *self.more_references]

    def all(self) -> list[str]:
        """The keys, without the absent ones."""
        keys = (self.clip, *self.references(), self.target, self.pose, self.first, self.video)
        return [key for key in keys if key is not None]


def row_keys(clip: CheckedClip, encoders: dict[str, str], poses: str | None) -> RowKeys:
    """The keys of a row: functions of its files' contents, of how they are used, and of the encoders' files.

    Args:
        poses: the style in which poses are drawn; None leaves them out.
    """
    row, hashes, size = clip.line.row, clip.hashes, [clip.bucket.height, clip.bucket.width]
    vae = {"version": _VERSION, "vae": encoders["vae"], "size": size}
    frames = {"indexes": clip.indexes, "box": clip.placement.box}
    begin = {"companions_start": row.companions_start} if row.companions_start else {}  # older keys are without it
    companions = {name: hashes.get(name) for name in ("video", "mask", "pose")} | begin
    tower = encoders.get("image_encoder")
    references = []
    for index in range(len(row.pictures)):
        picture, mask = _reference_columns(row, index)
        pictures = {"reference": hashes[picture], "reference_mask": hashes.get(mask)}
        references.append(key_of(kind="reference", **pictures, image_encoder=tower, **vae))
    target = None
    if row.target_frame is not None:
        target = key_of(kind="target", picture=hashes["target_frame"], **vae)
    elif row.target_frame_index is not None:
        place = {"index": row.target_frame_index, "box": clip.placement.box}
        target = key_of(kind="target", video=hashes["video"], mask=hashes.get("mask"), **place, **begin, **vae)
    pose = None
    if poses is not None and row.pose is not None:
        pose = key_of(kind="pose", pose=hashes["pose"], style=poses, **frames, **begin, **vae)
    prompt = prompt_of(row)
    return RowKeys(
        clip=key_of(kind="clip", **companions, **frames, **vae),
        reference=references[0],
        target=target,
        first=text_key(prompt.reference_text, encoders),
        video=text_key(prompt.video_text, encoders),
        more_references=tuple(references[1:]),
        pose=pose,
    )


def _reference_columns(row: ManifestRow, index: int) -> tuple[str, str]:
    """The columns of a reference's picture and mask."""
    if row.reference is not None:
        return "reference", "reference_mask"
    return f"references.{index}.picture", f"references.{index}.mask"


def prompt_of(row: ManifestRow) -> TwoStagePrompt:
    """The two prompts of a row."""
    return TwoStagePrompt(row.first_text, row.prompt_later)


def text_key(prompt: str, encoders: dict[str, str]) -> str:
    """The key of a prompt."""
    return key_of(kind="text", version=_TEXT_VERSION, prompt=prompt, text_encoder=encoders["text_encoder"])


@dataclass(frozen=True)
class Prepared:
    """What is read of a row's files, ready to be encoded.

    Attributes:
        images: (1, 3, T, H, W) in [-1, 1], which become `latents`.
        ready: the parts of the entry that need no encoder.
        picture: (1, 3, S, S) in [-1, 1], which becomes `image_embeds`; None where there is none.
    """

    images: Tensor
    ready: Entry
    picture: Tensor | None = None


def prepare_clip(folder: Path, clip: CheckedClip) -> Prepared:
    """Frames; `mask` (1, t, h, w), the person's share, where the row has one; `pose` (T, points, 3).

    Pose keypoints are in the bucket's pixels, float32; without a confidence it is 1.
    """
    row, place = clip.line.row, clip.placement
    images = to_images(place.apply(read_frames(folder / row.video, clip.indexes)))
    ready: Entry = {}
    if row.mask is not None:
        masks = read_masks(folder / row.mask, _in_companions(row, clip.indexes))
        ready = _of_somebody(latent_masks(place.apply(masks)[:, 0]), "mask")
    if row.pose is not None:
        points = torch.from_numpy(place.move(read_pose(folder / row.pose)[_in_companions(row, clip.indexes)]))
        ready["pose"] = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)[..., :3]
    return Prepared(images, ready)


def _in_companions(row: ManifestRow, indexes: Sequence[int]) -> list[int]:
    """The places of the video's frames in masks and poses of the clip."""
    return [index - row.companions_start for index in indexes]


def prepare_reference(folder: Path, clip: CheckedClip, index: int, clip_side: int | None) -> Prepared:
    """A row's reference as `DualEncoder` prepares it, and its `mask` (1, 1, h, w) where there is one.

    Args:
        index: which of the row's references.
        clip_side: of CLIP's square picture; None without a CLIP tower.
    """
    reference, size = clip.line.row.pictures[index], (clip.bucket.height, clip.bucket.width)
    picture = to_images(read_frames(folder / reference.picture, [0]))[:, :, 0]
    check_picture(picture)
    ready: Entry = {}
    if reference.mask is not None:
        mask = _padded_mask(read_masks(folder / reference.mask, [0]), size)
        ready = _of_somebody(mask, _reference_columns(clip.line.row, index)[1])
    square = None if clip_side is None else clip_picture(picture, clip_side)
    return Prepared(pad_picture(picture, size)[:, :, None], ready, square)


def prepare_target(folder: Path, clip: CheckedClip) -> Prepared:
    """The frame that the first reference was made from, and its `mask` where it is known."""
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
            mask = read_masks(folder / row.mask, _in_companions(row, index))[:, :, y0:y1, x0:x1]
    ready = {} if mask is None else _of_somebody(_padded_mask(mask, size), "mask of the target frame")
    return Prepared(pad_picture(to_images(frame)[:, :, 0], size)[:, :, None], ready)


def prepare_pose(folder: Path, clip: CheckedClip, style: str, key: str) -> Prepared:
    """The row's pose, drawn at the bucket's size as the condition channels get it; in some rows one limb stretched.

    Args:
        key: of the entry; the random draws are a function of it.
    """
    assert clip.line.row.pose is not None
    poses = read_pose_file(folder / clip.line.row.pose).at(_in_companions(clip.line.row, clip.indexes))
    whole = poses.whole
    height, width = clip.bucket.height, clip.bucket.width
    whole[..., :2] = clip.placement.move(whole[..., :2].astype(np.float32))
    placed = replace(poses.with_points(whole), width=width, height=height)
    drawn = draw_poses(stretched(placed, np.random.default_rng(int(key, 16))), STYLES[style])
    return Prepared(frames_to_images(drawn), {})


def encode_prepared(batch: Sequence[Prepared], encoders: Encoders) -> list[Entry | Unusable]:
    """Entries of clips or pictures of one shape, encoded together; what has no finite entry is an Unusable.

    An entry holds `latents` (16, t, h, w), `image_embeds` (N, D) of a reference with a CLIP tower, and what was ready.
    A batch of one is encoded as two: a processor's kernels round differently for one, and an entry does not depend on
    which others are encoded with it.
    """
    entries: list[Entry | Unusable] = []
    for item, encoded in zip(batch, _latents(batch, encoders.vae), strict=False):
        entry = {"latents": encoded}
        if item.picture is not None and encoders.image is not None:
            entry["image_embeds"] = encoders.image.encode(item.picture)[0]
        try:
            entries.append(finite(entry) | item.ready)
        except Unusable as found:
            entries.append(found)
    return entries


def _latents(batch: Sequence[Prepared], vae: VideoVAE) -> Tensor:
    """Latents of the whole batch at once, or one by one where the card has no room for that."""
    stacked = torch.cat([item.images for item in (batch if len(batch) > 1 else [*batch, *batch])])
    with suppress(torch.OutOfMemoryError):  # outside of it the error is gone, and with it what the attempt held
        return vae.encode(stacked)
    return torch.cat([vae.encode(item.images).cpu() for item in batch])


def encode_text(prompt: str, encoders: Encoders) -> Entry:
    """`text_embeds` (tokens, D): the prompt's own rows, without the padding."""
    count = encoders.text.count_tokens(prompt)
    if count > encoders.text.text_len:
        raise Unusable("prompt_too_long", f"{count} tokens, {encoders.text.text_len} fit: {prompt[:60]!r}")
    return finite({"text_embeds": encoders.text.encode([prompt])[0, :count]})


def _padded_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1, 1, H, W) from 0 to 255 as a reference is placed: the share in each latent, 0 in the margins."""
    outside = 1.0 - mask.float() / 127.5  # 1 where the person is not, which is what the margins are filled with
    padded = pad_picture(outside.expand(-1, 3, -1, -1), size)[:, 0]
    return latent_masks((1.0 - padded) * 127.5)


def _of_somebody(mask: Tensor, name: str) -> Entry:
    """`mask` in float16. Raises Unusable where it is empty: weights that are all alike train the background in full."""
    if not mask.any():
        raise Unusable("empty_mask", f"{name} shows nobody in the frames and the part of the picture that are used")
    return finite({"mask": mask})


def finite(entry: Entry) -> Entry:
    """An entry in float16. Raises Unusable where it has a value that is not finite."""
    try:
        return half(entry)
    except ValueError as error:
        raise Unusable("not_finite", str(error)) from None
