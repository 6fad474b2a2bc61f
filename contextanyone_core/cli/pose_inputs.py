"""What poses are taken from beside files of keypoints: videos of people, drawn videos, and whose body they fit."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..media.read_video import VideoFrames, open_video
from ..media.video_io import FPS
from ..pose.body import Body, body_of, read_personal_body
from ..pose.drawn import at_rate, check_size, inspect_drawn
from ..pose.estimation import PoseEstimator, estimated
from ..pose.litert import DOWNLOAD
from ..pose.pose_file import states_keypoints
from ..pose.reading import PoseSource, is_keypoints, read_poses
from ..pose.resample import most_frames, source_frames
from ..pose.sequence import SEEN, Pixels, PoseSequence

_log = logging.getLogger(__name__)
_CHOOSE_BODY = "a body is one person's: contextanyone pose FILE --person 1 --out body.json takes one out"
_SHEET_SIDE = 320  # longest side of a frame that is kept for a contact sheet, in pixels


def require_content(*paths: Path | None) -> None:
    """Check that the given files and folders exist and are not empty files.

    Raises: InputError, naming the first that does not serve.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise InputError(f"{path}: there is no such file.")
        if path is not None and path.is_file() and not path.stat().st_size:
            raise InputError(f"{path} is empty; a file of keypoints or a video is needed.")


def read_body(
    path: Path, models: Path | None, canvas: tuple[int, int] | None = None, *, option: str = "--models"
) -> Body:
    """The body that keypoints or a personal file state, or that an estimator finds in a picture or clip of a person.

    Args:
        path: the file, or a folder of pictures.
        models: as `estimate_poses`.
        canvas: (height, width) of the picture, where a file of keypoints does not state it.
        option: as `estimate_poses`.

    Raises: InputError for a file that cannot be read or shows no body, or without models where they are needed.
    """
    if path.suffix.lower() == ".safetensors" and not states_keypoints(path):
        return read_personal_body(path)
    if is_keypoints(path):
        return body_of(read_poses(path, PoseSource(canvas, choose=_CHOOSE_BODY)))
    return body_of(estimate_poses(path, models, option=option)[0])


def estimate_poses(path: Path, models: Path | None, *, option: str = "--models") -> tuple[PoseSequence, list[Pixels]]:
    """Poses of a video or a picture, and its frames scaled down for a contact sheet; a progress bar on stderr.

    Args:
        path: a video, an animation, a picture or a folder of pictures.
        models: the wheel mediapipe 0.10.21, or a folder with its networks.
        option: what names the models on the command line, for messages.

    Raises: InputError without models, or if nobody is found; MissingDependencyError without the extra `pose`.
    """
    return _estimated(path, open_video(path), _estimator(path, models, option))


def estimate_clip(
    path: Path, models: Path | None, num_frames: int | None, fps: float | None
) -> tuple[PoseSequence, list[Pixels]]:
    """As `estimate_poses`, of no more frames than a clip is made of.

    Args:
        num_frames: frames of the clip at 16 a second; None is all of them.
        fps: frames per second of a folder of pictures; None takes the stated rate.

    Raises: also InputError, before anything is estimated, for a video that is longer than a clip can be.
    """
    estimator, video = _estimator(path, models, "--models"), open_video(path)
    rate = fps or video.fps
    most = most_frames(rate)
    if num_frames is None and video.seconds is not None and round(video.seconds * video.fps) > most:
        raise InputError(
            f"{path} has about {video.seconds * video.fps:.0f} frames at {rate:g} a second; poses of at most {most} "
            "can be used. Cut it, or ask for some of them, such as --frames 81."
        )
    needed = None if num_frames is None else source_frames(num_frames, rate)
    used = VideoFrames(rate, islice(video.frames, needed))
    return _estimated(path, used, estimator)


def _estimated(path: Path, video: VideoFrames, estimator: PoseEstimator) -> tuple[PoseSequence, list[Pixels]]:
    from tqdm import tqdm

    small: list[Pixels] = []
    with tqdm(video.frames, desc=path.name, unit="frame", file=sys.stderr, dynamic_ncols=True) as bar:

        def noted() -> Iterator[Pixels]:
            for frame in bar:
                small.append(np.asarray(Image.fromarray(frame).reduce(-(-max(frame.shape[:2]) // _SHEET_SIDE))))
                yield frame

        poses = estimated(noted(), video.fps, estimator)
    if not (poses.body[..., 2] > SEEN).any():
        raise InputError(f"{path} shows nobody whom the estimator finds in any of its {poses.num_frames} frames.")
    return poses, small


def _estimator(path: Path, models: Path | None, option: str) -> PoseEstimator:
    from ..pose.blazepose import BlazePose

    if models is None:
        raise InputError(
            f"{path} is no file of keypoints; to estimate poses give the models, {option} PATH: MediaPipe's wheel "
            f"({DOWNLOAD}), or a folder with its .tflite files."
        )
    return BlazePose(models)


def read_drawn(
    path: Path, size: tuple[int, int] | None, fps: float | None = None, num_frames: int | None = None
) -> Pixels:
    """The frames of a drawn video, uint8 (T, H, W, 3), on its own background.

    Args:
        path: a video, an animation or a folder of pictures.
        size: (height, width) that it must have; None takes its own.
        fps: frames per second of a folder of pictures; None takes the stated rate.
        num_frames: frames at 16 a second that are needed; where there are more, at least one of them is read too. None
            reads all.

    Raises: InputError if the first frame has no plain background, or for another size; then no other is read.
    """
    video = open_video(path)
    rate, frames = fps or video.fps, iter(video.frames)
    first = next(frames)
    try:
        inspect_drawn(first[None])
    except InputError as error:
        estimate = "contextanyone pose VIDEO --models PATH --out poses.json"
        raise InputError(f"{path}: {error} The command for that: {estimate}") from error
    check_size(first[None], size, str(path))
    more = None if num_frames is None else math.ceil(num_frames * rate / FPS)
    return at_rate(np.stack([first, *islice(frames, more)]), rate)


def warn_without_skeleton(path: Path, frames: Pixels) -> None:
    """Log a warning if a drawn video shows no skeleton.

    Raises: InputError if it has no plain background.
    """
    if not inspect_drawn(frames).shows_skeleton:
        _log.warning("%s shows no skeleton in the colours of DWPose on its plain background.", path)
