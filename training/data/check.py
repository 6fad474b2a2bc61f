"""From the rows of a manifest to clips that can be trained on: files examined, buckets chosen, drops counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.data.buckets import Bucket, BucketSettings, best_placement
from training.data.examine import FileCheck, Unknown, needed_frames
from training.data.facts import Facts, FactStore
from training.data.frames import Box, Placement, resample
from training.data.manifest import Drop, Line, Manifest, ManifestRow
from training.data.media import Probe, picture_files
from training.data.video_windows import frames_available, longest
from training.data.work import Share


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


def check_files(manifest: Manifest, settings: BucketSettings, *, decode: bool, share: Share | None = None) -> Checked:
    """Look at every file that a manifest names, or at this process's share of them.

    Every file is hashed and its header read, once ever (`training.data.facts`); with `decode` every frame that a row
    uses is decoded too, which finds all damage and takes as long as it takes.

    Returns:
        The account of all rows; of several processes, of this one's own rows.

    Raises:
        Stopped: a stop was requested; what is known is kept.
    """
    store, share = FactStore(manifest.folder), share or Share()
    own = Manifest(manifest.folder, rows_of(manifest, share), manifest.dropped)
    work = FileCheck(store, share)
    work.read([line.row for line in own.lines])
    if decode:
        work.decode([line.row for line in own.lines if _fits(line, settings, store)])
    if share.world == 1:
        store.merge()
    found = judge(own, settings, store, decode=decode)
    assert found is not None  # everything that its rows need was just looked at
    return found


def check_shared(manifest: Manifest, settings: BucketSettings, share: Share) -> Checked | None:
    """Decode this process's share, and give the account of all rows; None where other processes are not done.

    Raises:
        Stopped: a stop was requested; what is known is kept.
    """
    checked = check_files(manifest, settings, decode=True, share=share)
    if share.world == 1:
        return checked
    return judge(manifest, settings, FactStore(manifest.folder), decode=True)


def rows_of(manifest: Manifest, share: Share) -> list[Line]:
    """The lines of a process: neighbours by video and place in it, so that few files belong to two processes."""
    if share.world == 1:
        return manifest.lines
    order = sorted(manifest.lines, key=lambda line: (line.row.video, line.row.start_frame, line.number))
    return sorted(share.of(order), key=lambda line: line.number)


def judge(manifest: Manifest, settings: BucketSettings, store: FactStore, *, decode: bool) -> Checked | None:
    """The account of a manifest by what is known of its files; None where another process has not found it out yet."""
    dropped = list(manifest.dropped)
    clips: list[CheckedClip] = []
    seen: dict[tuple[object, ...], str] = {}
    for line in manifest.lines:
        try:
            clip = _check(line, settings, store)
            pictures = [clip.hashes[column] for column in _picture_columns(line.row)]
            content = (clip.hashes["video"], clip.indexes, clip.placement, tuple(pictures))
            if decode:
                _require_decoded(line.row, store)
            if content in seen:
                raise Unusable("duplicate_content", f"the row {seen[content]} is the same pair")
        except Unusable as found:
            dropped.append(line.drop(found.reason, str(found)))
        except Unknown:
            return None
        else:
            seen[content] = line.row.id
            clips.append(clip)
    return Checked(clips, sorted(dropped, key=lambda drop: drop.line))


def _fits(line: Line, settings: BucketSettings, store: FactStore) -> bool:
    try:
        _check(line, settings, store)
    except Unusable:
        return False
    return True


def _picture_columns(row: ManifestRow) -> list[str]:
    return ["reference"] if row.reference else [f"references.{index}.picture" for index in range(len(row.references))]


def _check(line: Line, settings: BucketSettings, store: FactStore) -> CheckedClip:
    row = line.row
    facts = _known(store, row)
    video = _media(facts["video"])
    _check_size(row, video)
    stop = len(video.times) if row.num_frames is None else row.start_frame + row.num_frames
    _check_companions(store, row, facts, stop)
    times = video.times[row.start_frame : stop]
    if row.fps is not None:
        times = [index / row.fps for index in range(row.start_frame, stop)]
    available = frames_available(times)
    length = longest(settings.frames, available)
    if length is None:
        shortest = min(settings.frames)
        raise Unusable("too_short", f"{available} frames at 16 a second; the shortest bucket has {shortest}")
    box: Box = row.crop or (0, 0, video.width, video.height)
    placement = best_placement(settings, box)
    if placement is None:
        size, limit = f"{box[2] - box[0]} x {box[3] - box[1]} pixels", settings.max_upscale
        least = min(Placement(box, shape).scale for shape in settings.shapes())
        raise Unusable(
            "too_small", f"{size}; the nearest size enlarges it {least:.2f} times, buckets.max_upscale is {limit:g}"
        )
    indexes = tuple(row.start_frame + index for index in resample(times, length))
    bucket = Bucket(length, *placement.size, len(row.pictures))
    hashes = {column: found.sha256 for column, found in facts.items()}
    return CheckedClip(line, bucket, placement, indexes, available - length, hashes)


def _known(store: FactStore, row: ManifestRow) -> dict[str, Facts]:
    """The facts of each file of a row, by column, where they are those that the row expects."""
    expected = {"video": row.sha256.video, "reference": row.sha256.reference}
    expected |= {f"references.{index}.picture": found.sha256 for index, found in enumerate(row.references)}
    known = {}
    for column, name in row.paths().items():
        if store.stamp(name) is None:
            raise Unusable("missing_file", f"{column} {name} does not exist")
        facts = store.get(name)
        if facts is None:
            raise Unknown
        wanted = expected.get(column)
        if wanted is not None and facts.sha256 and wanted != facts.sha256:
            raise Unusable("hash_mismatch", f"{column} {name} has the SHA-256 {facts.sha256[:12]}..., another")
        if facts.error:
            raise Unusable("decode_error", facts.error)
        known[column] = facts
    return known


def _media(facts: Facts) -> Probe:
    if facts.probe is None:
        raise Unusable("decode_error", "a file that is named as a video or picture is named as a pose too")
    return facts.probe


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


def _check_companions(store: FactStore, row: ManifestRow, facts: dict[str, Facts], stop: int) -> None:
    """Masks and poses must cover the clip's frames, masks have the size of what they describe."""
    video = _media(facts["video"])
    needed = max(stop, (row.target_frame_index or 0) + 1) - row.companions_start
    of_clip = [f"characters.{index}." for index in range(len(row.characters))]
    masks = [column for column in ("mask", *(f"{start}mask" for start in of_clip)) if column in facts]
    poses = [column for column in ("pose", *(f"{start}pose" for start in of_clip)) if column in facts]
    first = min(row.start_frame, row.start_frame if row.target_frame_index is None else row.target_frame_index)
    if (masks or poses) and row.companions_start > first:
        found = f"companions_start is {row.companions_start}; the frame {first} is used too"
        raise Unusable("mask_mismatch", found)
    for column in masks:
        _check_mask(column, _media(facts[column]), video, needed)
    for column in poses:
        _check_pose(column, facts[column], video, needed)
    for column in ("target_frame", *_picture_columns(row)):
        if column in facts and picture_files(store.folder / row.paths()[column]) is None:
            raise Unusable("decode_error", f"{store.folder / row.paths()[column]} is no picture.")
    for column in _picture_columns(row):
        mask = "reference_mask" if column == "reference" else column.replace("picture", "mask")
        if mask in facts:
            sizes = [(_media(facts[name]).width, _media(facts[name]).height) for name in (column, mask)]
            if picture_files(store.folder / row.paths()[mask]) is None:
                raise Unusable("decode_error", f"{store.folder / row.paths()[mask]} is no picture.")
            if sizes[0] != sizes[1]:
                raise Unusable("mask_mismatch", f"{mask} does not have the size of {column}")


def _check_mask(column: str, mask: Probe, video: Probe, needed: int) -> None:
    if len(mask.times) < needed or (mask.width, mask.height) != (video.width, video.height):
        found = f"{column} has {len(mask.times)} frames of {mask.width} x {mask.height}"
        raise Unusable("mask_mismatch", f"{found}, needed are {needed} of {video.width} x {video.height}")


def _check_pose(column: str, facts: Facts, video: Probe, needed: int) -> None:
    pose = facts.pose
    if pose is None:
        raise Unusable("decode_error", f"{column} is named as a video or picture too")
    if pose.layout is None and column != "pose":
        raise Unusable("mask_mismatch", f"the metadata of {column} has no layout; it needs layout, width, height, fps")
    if pose.frames < needed:
        raise Unusable("mask_mismatch", f"{column} has {pose.frames} frames, needed are {needed}")
    if pose.layout is not None and (pose.width, pose.height) != (video.width, video.height):
        size = f"{pose.width} x {pose.height}"
        raise Unusable("mask_mismatch", f"{column} is of {size}, the video has {video.width} x {video.height}")


def _require_decoded(row: ManifestRow, store: FactStore) -> None:
    """Every frame that the row uses was decoded, without an error."""
    for name, ranges in needed_frames(row, store).items():
        decoded = store.decoded(name)
        for start, stop in ranges:
            inside = sorted(found for found in decoded if found[0] < stop and found[1] > start)
            reached = start
            for found in inside:
                if decoded[found]:
                    raise Unusable("decode_error", decoded[found])
                reached = max(reached, found[1]) if found[0] <= reached else reached
            if reached < stop:
                raise Unknown


def usage(clips: Sequence[CheckedClip]) -> Iterator[str]:
    """Lines about how much of the usable clips the buckets leave out: length and margins."""
    if clips:
        whole = sum(clip.bucket.num_frames + clip.unused for clip in clips)
        unused = sum(clip.unused for clip in clips)
        shown = sum(clip.placement.kept for clip in clips) / len(clips)
        yield f"{unused / whole:.1%} of the frames at 16 a second are beyond the length of their bucket"
        yield f"{1 - shown:.1%} of the picture is cut off, on average"
