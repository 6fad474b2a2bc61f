"""The poses that a video follows, from keypoints or a drawn video: cut to its frames and drawn at its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..media.video_io import FPS
from ..shapes import counted_frames, usable_frames
from .body import Body
from .drawing import PoseStyle, draw_poses
from .drawn import check_size, recolour
from .fitting import fit
from .resample import clip_of, prepare, within_limit
from .sequence import SEEN, Pixels, PoseSequence

_SPANS = 4  # of frames, that a remark names
_PREVIEW_WIDTH = 2.0  # half width of a limb in previews, in pixels


@dataclass(frozen=True, eq=False)
class DrivingPose:
    """The poses that a video follows, at 16 frames per second.

    Attributes:
        name: where they come from, for messages.
        poses: one person's keypoints on their own canvas, or a video of drawn poses, uint8 (T, H, W, 3), as large as
            the video to be made.
    """

    name: str
    poses: PoseSequence | Pixels

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.poses.num_frames if isinstance(self.poses, PoseSequence) else len(self.poses)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on keypoints, for the user, one line each."""
        return self.poses.remarks if isinstance(self.poses, PoseSequence) else ()

    def told_of(self, num_frames: int) -> tuple[str, ...]:
        """Remarks on a clip of `num_frames` that follows these poses, one line each."""
        used = self.poses.at(slice(num_frames)) if isinstance(self.poses, PoseSequence) else None
        nobody = "" if used is None else where_nobody_is(used)
        return tuple(text for text in (self.what_is_cut(num_frames), nobody and f"{self.name}: {nobody}") if text)

    def what_is_cut(self, num_frames: int) -> str:
        """A remark if a clip of `num_frames` uses only the first of these frames, else empty."""
        if self.num_frames <= num_frames:
            return ""
        if isinstance(self.poses, PoseSequence):
            return f"{self.name} has {self.num_frames} frames at {FPS} a second; the first {num_frames} are used"
        return f"{self.name} has more frames than the video; the first {num_frames} at {FPS} a second are used"

    def for_clip(self, num_frames: int, size: tuple[int, int]) -> DrivingPose:
        """Cut to a clip's frames, keypoints also placed on its canvas of `size` = (height, width).

        Raises: InputError if there are fewer frames, nobody is visible in them, or a drawn video has another size.
        """
        poses = self.poses
        if isinstance(poses, PoseSequence):
            cut = clip_of(poses, num_frames)
            if not (cut.body[..., 2] > SEEN).any():
                raise InputError(
                    f"{self.name} shows nobody in its first {num_frames} frames at {FPS} a second; ask for more."
                )
            return DrivingPose(self.name, cut.placed(size))
        check_size(poses, size, self.name)
        if len(poses) < num_frames:
            raise InputError(
                f"{self.name} has {counted_frames(len(poses))} at {FPS} a second, the clip {num_frames}; ask for at "
                f"most {usable_frames(len(poses))}."
            )
        return DrivingPose(self.name, poses[:num_frames])

    def pictures(self, style: PoseStyle) -> Pixels:
        """Drawn in a style, uint8 (T, H, W, 3), at the size of the canvas; a drawn video is put on its background.

        Raises: InputError as `recolour`.
        """
        if isinstance(self.poses, PoseSequence):
            return draw_poses(self.poses, style)
        return recolour(self.poses, style.background)

    def preview(self, longest: int, num_frames: int) -> Pixels:
        """The first frames to look at, uint8 (T, H, W, 3), the longer side at most `longest` pixels."""
        if not isinstance(self.poses, PoseSequence):
            step = -(-max(self.poses.shape[1:3]) // longest)
            return self.poses[:num_frames, ::step, ::step]
        poses = self.poses.at(slice(num_frames))
        factor = longest / max(poses.height, poses.width)
        size = (max(1, round(poses.height * factor)), max(1, round(poses.width * factor)))
        return draw_poses(poses.placed(size), PoseStyle(half_width=_PREVIEW_WIDTH))


def where_nobody_is(poses: PoseSequence) -> str:
    """A remark on the frames in which nobody is visible, so that nothing is drawn; empty if there are none."""
    empty = ~(poses.body[..., 2] > SEEN).any(axis=1)
    if not empty.any():
        return ""
    ends = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]]))).reshape(-1, 2).tolist()
    spans = [f"{start} to {stop - 1}" if stop - start > 1 else f"{start}" for start, stop in ends]
    shown = ", ".join(spans[:_SPANS]) + (", ..." if len(spans) > _SPANS else "")
    return (
        f"nobody is seen in {int(empty.sum())} of the {poses.num_frames} frames at {FPS} a second (frames {shown}): "
        "the pose is empty there"
    )


def driven_by(poses: PoseSequence, body: Body | None, how: str | None, name: str) -> DrivingPose:
    """Poses to follow from keypoints: cut to the longest clip, 16 frames per second, gaps filled, fitted to a body.

    Args:
        how: one of `fitting.FITS`; None is `default_fit`.

    Raises: InputError as `fit` and `prepare`.
    """
    return DrivingPose(name, fit(prepare(within_limit(poses)), body, how or default_fit(body is not None)))


def default_fit(has_body: bool) -> str:
    """The fit where none is asked for: `bones` with a body, else `none`."""
    return "bones" if has_body else "none"
