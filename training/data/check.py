"""From the rows of a manifest to clips that can be trained on: files looked at, buckets chosen, drops counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.data.buckets import Bucket, BucketSettings, best_placement, longest
from training.data.frames import Box, Placement, frames_available, resample
from training.data.manifest import Drop, Line, Manifest, ManifestRow
from training.data.media import (
    MediaError,
    Probe,
    content_hash,
    count_frames,
    picture_files,
    probe,
    read_frames,
    read_pose,
)


@dataclass(frozen=True)
class CheckedClip:
    """A row that can be used, and how.

    Attributes:
        line: the row.
        bucket: the shape that the clip is brought to.
        placement: how each frame fills it.
        indexes: the video's frames, by number, at 16 a second: bucket.num_frames of them.
        unused: frames at 16 a second beyond the bucket's length.
        hashes: SHA-256 of each file, by column.
    """

    line: Line
    bucket: Bucket
    placement: Placement
    indexes: tuple[int, ...]
    unused: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class Checked:
    """The account of a manifest: usable clips, and everything that was dropped, by line."""

    clips: list[CheckedClip]
    dropped: list[Drop]


class Unusable(Exception):  # noqa: N818  # not an error: a counted outcome
    """A row cannot be used: one of `training.data.manifest.REASONS`, and what exactly was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def check_files(manifest: Manifest, settings: BucketSettings, *, decode: bool) -> Checked:
    """Look at every file that a manifest names.

    Every file is hashed and its header read; with `decode` every frame of every video, mask and picture is decoded
    too, which finds all damage and takes as long as it takes.
    """
    dropped = list(manifest.dropped)
    clips: list[CheckedClip] = []
    seen: dict[tuple[object, ...], str] = {}
    hashes: dict[Path, str] = {}
    for line in tqdm(manifest.lines, desc="checking rows", unit="row", disable=None):
        try:
            clip = _check(manifest.folder, line, settings, hashes)
            content = (clip.hashes["video"], clip.indexes, clip.placement, clip.hashes["reference"])
            if content in seen:
                raise Unusable("duplicate_content", f"the row {seen[content]} is the same pair")
            if decode:
                _decode_all(manifest.folder, line.row)
        except Unusable as found:
            dropped.append(line.drop(found.reason, str(found)))
        except (MediaError, OSError) as error:
            dropped.append(line.drop("decode_error", str(error)))
        else:
            seen[content] = line.row.id
            clips.append(clip)
    return Checked(clips, sorted(dropped, key=lambda drop: drop.line))


def _check(folder: Path, line: Line, settings: BucketSettings, hashes: dict[Path, str]) -> CheckedClip:
    row = line.row
    found = _hash_files(folder, row, hashes)
    video = probe(folder / row.video, row.fps)
    _check_size(row, video)
    stop = len(video.times) if row.num_frames is None else row.start_frame + row.num_frames
    _check_companions(folder, row, video, stop)
    times = video.times[row.start_frame : stop]
    available = frames_available(times)
    length = longest(settings, available)
    if length is None:
        shortest = min(settings.frames)
        raise Unusable("too_short", f"{available} frames at 16 a second; the shortest bucket has {shortest}")
    box: Box = row.crop or (0, 0, video.width, video.height)
    placement = best_placement(settings, box)
    if placement is None:
        raise Unusable("too_small", f"{box[2] - box[0]} x {box[3] - box[1]} pixels; enlarging it is limited")
    indexes = tuple(row.start_frame + index for index in resample(times, length))
    return CheckedClip(line, Bucket(length, *placement.size), placement, indexes, available - length, found)


def _hash_files(folder: Path, row: ManifestRow, hashes: dict[Path, str]) -> dict[str, str]:
    found = {}
    for column, name in row.paths().items():
        path = folder / name
        if not path.exists():
            raise Unusable("missing_file", f"{column} {name} does not exist")
        if path not in hashes:
            hashes[path] = content_hash(path)
        found[column] = hashes[path]
        expected = getattr(row.sha256, column, None)
        if expected is not None and expected != hashes[path]:
            raise Unusable("hash_mismatch", f"{column} {name} has the SHA-256 {hashes[path][:12]}..., another")
    return found


def _check_size(row: ManifestRow, video: Probe) -> None:
    size = f"the video has {len(video.times)} frames of {video.width} x {video.height}"
    for name, given, real in (("width", row.width, video.width), ("height", row.height, video.height)):
        if given is not None and given != real:
            raise Unusable("size_mismatch", f"{name} is {given}; {size}")
    if row.crop is not None and (row.crop[2] > video.width or row.crop[3] > video.height):
        raise Unusable("size_mismatch", f"crop is {list(row.crop)}; {size}")
    last = row.start_frame + (row.num_frames or 1)
    if last > len(video.times):
        raise Unusable("size_mismatch", f"start_frame and num_frames end at {last}; {size}")
    if row.target_frame_index is not None and row.target_frame_index >= len(video.times):
        raise Unusable("size_mismatch", f"target_frame_index is {row.target_frame_index}; {size}")


def _check_companions(folder: Path, row: ManifestRow, video: Probe, stop: int) -> None:
    """Mask and pose must cover the clip's frames, masks have the size of what they describe."""
    needed = max(stop, (row.target_frame_index or 0) + 1)
    if row.mask is not None:
        mask = probe(folder / row.mask)
        if len(mask.times) < needed or (mask.width, mask.height) != (video.width, video.height):
            found = f"mask has {len(mask.times)} frames of {mask.width} x {mask.height}"
            raise Unusable("mask_mismatch", f"{found}, needed are {needed} of {video.width} x {video.height}")
    if row.pose is not None and (frames := len(read_pose(folder / row.pose))) < needed:
        raise Unusable("mask_mismatch", f"pose has {frames} frames, needed are {needed}")
    pictures = {}
    for column in ("reference", "reference_mask", "target_frame"):
        path = row.paths().get(column)
        if path is not None and picture_files(folder / path) is None:
            raise MediaError(f"{folder / path} is no picture.")
        if path is not None and column != "target_frame":
            pictures[column] = probe(folder / path)
    if len({(picture.width, picture.height) for picture in pictures.values()}) > 1:
        raise Unusable("mask_mismatch", "reference_mask does not have the size of the reference")


def _decode_all(folder: Path, row: ManifestRow) -> None:
    for column, name in row.paths().items():
        path = folder / name
        if column in ("video", "mask"):
            expected, decoded = len(probe(path).times), count_frames(path)
            if decoded < expected:
                raise MediaError(f"{path} has {expected} frames, of which {decoded} decode.")
        elif column != "pose":
            read_frames(path, [0])


def usage(clips: list[CheckedClip]) -> Iterator[str]:
    """Lines that say how much of the usable clips the buckets leave out: length and margins."""
    if clips:
        whole = sum(clip.bucket.num_frames + clip.unused for clip in clips)
        unused = sum(clip.unused for clip in clips)
        shown = sum(clip.placement.kept for clip in clips) / len(clips)
        yield f"{unused / whole:.1%} of the frames at 16 a second are beyond the length of their bucket"
        yield f"{1 - shown:.1%} of the picture is cut off, on average"
