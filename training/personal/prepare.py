"""The folder that a personal model is trained on: the clip, its masks and poses, references, and the manifest."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from contextanyone_core.pose.body import Body, body_of, stated_lengths
from contextanyone_core.pose.pose_file import pose_file_bytes
from contextanyone_core.pose.sequence import PoseSequence, sequence_of
from training.data.buckets import BucketSettings, best_placement
from training.data.frames import Placement, on_white
from training.data.manifest import ManifestRow, write_manifest
from training.data.media import content_hash
from training.files import read_grey, write_png
from training.personal.choice import choose_clips, choose_stills
from training.personal.masks import masks_of_shot, shows_somebody
from training.personal.poses import poses_of_shot, seen_enough
from training.personal.shot import Shot, open_clip

_REQUEST = "request.json"


@dataclass(frozen=True)
class Clip:
    """What the user gives of the person.

    Attributes:
        path: the clip. mask, pose: files with one for each of its frames; None finds them.
        models: MediaPipe's networks, for what is not given. drawn: the clip shows the character world.
        captions: of the rows, in turn. license: what allows the use.
        references: whether rows need references of their own.
    """

    path: Path
    mask: Path | None
    pose: Path | None
    models: Path | None
    drawn: bool
    captions: tuple[str, ...]
    license: str
    references: bool

    def identity(self, buckets: BucketSettings) -> str:
        """A hash of everything that the folder depends on."""
        files = {name: getattr(self, name) for name in ("path", "mask", "pose")}
        hashes = {name: None if path is None else content_hash(path) for name, path in files.items()}
        models = self.models is not None and (self.mask is None or self.pose is None)
        stated = [self.drawn, list(self.captions), self.license, self.references, list(buckets.frames), models]
        return hashlib.sha256(json.dumps([hashes, stated], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """The manifest that a run trains on, and the person's bone lengths in pixels of the clip."""

    manifest: Path
    bones: list[float | None]


def prepare(clip: Clip, folder: Path, buckets: BucketSettings) -> Prepared:
    """Write the folder, whole or not at all; one that the same request wrote is taken as it is.

    Raises:
        InputError: the clip or a file beside it cannot be used, or the folder is another request's.
    """
    identity = clip.identity(buckets) if clip.path.exists() else ""
    if (folder / _REQUEST).is_file():
        stated = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
        if stated["identity"] != identity:
            raise InputError(
                f"{folder.parent} holds the training of another clip, or of other options; give another --out, or "
                f"delete {folder.parent}."
            )
        return Prepared(folder / "manifest.jsonl", stated["bones"])
    shot = open_clip(clip.path)
    _require_size(shot, buckets)
    poses = poses_of_shot(shot, clip.pose, clip.models, drawn=clip.drawn)
    bones = stated_lengths(_body(shot, poses))
    with _made(folder.parent), whole_file(folder) as beside:
        beside.mkdir()
        _write(clip, shot, poses, beside, buckets)
        request = {"identity": identity, "bones": bones, "shot": {**asdict(shot), "path": str(clip.path)}}
        (beside / _REQUEST).write_text(json.dumps(request, indent=1), encoding="utf-8")
    return Prepared(folder / "manifest.jsonl", bones)


def _require_size(shot: Shot, buckets: BucketSettings) -> None:
    """Refuse a clip that every size of the training would enlarge too much."""
    box = (0, 0, shot.width, shot.height)
    if best_placement(buckets, box) is None:
        scale, most = min(Placement(box, shape).scale for shape in buckets.shapes()), buckets.max_upscale
        width, height = (math.ceil(side * scale / most) for side in (shot.width, shot.height))
        raise InputError(
            f"--clip {shot.path} has {shot.width} x {shot.height} pixels, which would be enlarged {scale:.1f} times; "
            f"{most:g} times is the most: give a larger clip, such as {width} x {height}."
        )


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder for what the block writes; one that was not there does not stay if the block fails."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something by now
            if new:
                folder.rmdir()
        raise


def _body(shot: Shot, poses: PoseSequence) -> Body:
    try:
        return body_of(poses)
    except InputError as error:
        raise InputError(f"{shot.path}: {error}") from error


def _write(clip: Clip, shot: Shot, poses: PoseSequence, folder: Path, buckets: BucketSettings) -> None:
    video = f"clip{clip.path.suffix.lower()}" if clip.path.is_file() else "clip"
    (shutil.copyfile if clip.path.is_file() else shutil.copytree)(clip.path, folder / video)
    somebody = _write_masks(clip, shot, poses, folder / "masks")
    (folder / "pose.safetensors").write_bytes(pose_file_bytes(_of_the_whole_clip(poses, shot)))
    stills = choose_stills(poses, seen_enough(poses) & somebody)
    if not stills:
        raise InputError(f"no frame of {clip.path} shows enough of the person in its mask and pose; film all of them.")
    wanted = stills if clip.references else stills[:1]
    _write_references(shot, folder, wanted)
    rows = []
    for number, (start, length) in enumerate(
        [*((still, 1) for still in stills), *choose_clips(shot.num_frames, shot.fps, shot.at_16, buckets)]
    ):
        other = _far_from(start, wanted)
        rows.append(
            ManifestRow(
                id=f"{'still' if length == 1 else 'clip'}-{number:03d}",
                video=video,
                start_frame=shot.start + start,
                num_frames=length,
                reference=f"references/{other:05d}.png",
                mask="masks",
                pose="pose.safetensors",
                prompt_first=clip.captions[number % len(clip.captions)],
                source=clip.path.name,
                license=clip.license,
            )
        )
    write_manifest(folder / "manifest.jsonl", rows)


def _far_from(start: int, frames: list[int]) -> int:
    """Of the frames with a reference, the one that is half of them away: another moment, never the row's own."""
    after = next((index for index, frame in enumerate(frames) if frame >= start), 0)
    return frames[(after + max(1, len(frames) // 2)) % len(frames)]


def _write_masks(clip: Clip, shot: Shot, poses: PoseSequence, folder: Path) -> NDArray[np.bool_]:
    """Masks of the whole clip, black outside of the shot; returns which of the shot's frames show somebody."""
    folder.mkdir()
    black = np.zeros((shot.height, shot.width), np.uint8)
    for number in (*range(shot.start), *range(shot.stop, shot.total)):
        write_png(folder / f"{number:05d}.png", black)
    segmenter = None
    if clip.models is not None and clip.mask is None and not clip.drawn:
        from contextanyone_core.pose.selfie import SelfieSegmenter

        segmenter = SelfieSegmenter(clip.models)
    somebody = []
    for number, mask in enumerate(masks_of_shot(shot, poses, clip.mask, segmenter), shot.start):
        somebody.append(shows_somebody(mask))
        write_png(folder / f"{number:05d}.png", mask)
    if not any(somebody):
        what = f"--mask {clip.mask} is empty" if clip.mask is not None else f"nobody is found in {clip.path}"
        raise InputError(f"{what} in every frame; white must be where the person is.")
    return np.array(somebody)


def _write_references(shot: Shot, folder: Path, wanted: list[int]) -> None:
    """Frames cut out by their masks, on white, by their number in the shot."""
    (folder / "references").mkdir()
    for number, frame in enumerate(shot.frames()):
        if number in wanted:
            mask = read_grey(folder / "masks" / f"{shot.start + number:05d}.png")
            write_png(folder / "references" / f"{number:05d}.png", on_white(frame, mask))


def _of_the_whole_clip(poses: PoseSequence, shot: Shot) -> PoseSequence:
    """The shot's poses by the clip's own frame numbers; nobody outside of it."""
    whole = np.zeros((shot.total, *poses.whole.shape[1:]))
    whole[shot.start : shot.stop] = poses.whole
    return sequence_of(whole, (shot.height, shot.width), shot.fps)
