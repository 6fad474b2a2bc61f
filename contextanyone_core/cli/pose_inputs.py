"""What poses can be taken from beside files of keypoints: drawn videos, and whose body they are fitted to."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ..media.read_video import open_video
from ..pose.body import Body, body_of, read_personal_body
from ..pose.drawn import at_rate, check_size, inspect_drawn
from ..pose.pose_file import states_keypoints
from ..pose.reading import PoseSource, is_keypoints, read_poses
from ..pose.sequence import Pixels

_log = logging.getLogger(__name__)


def stated_body(path: Path, canvas: tuple[int, int] | None = None) -> Body | None:
    """The body that keypoints or a personal file state; None for a picture or clip, which needs an estimator.

    Raises: InputError for a file that cannot be read or shows no body.
    """
    if path.suffix.lower() == ".safetensors" and not states_keypoints(path):
        return read_personal_body(path)
    if is_keypoints(path):
        return body_of(read_poses(path, PoseSource(canvas, choose="a body is one person's")))
    return None


def read_drawn(path: Path, size: tuple[int, int] | None) -> Pixels:
    """The frames of a drawn video, uint8 (T, H, W, 3), on its own background; without a skeleton, a warning.

    Args:
        path: a video, an animation or a folder of pictures.
        size: (height, width) that it must have; None takes its own.

    Raises: InputError for another size, or a video without a plain background.
    """
    video = open_video(path)
    frames = at_rate(np.stack(list(video.frames)), video.fps)
    check_size(frames, size, str(path))
    if not inspect_drawn(frames).shows_skeleton:
        _log.warning("%s shows no skeleton in the colours of DWPose on its plain background.", path)
    return frames
