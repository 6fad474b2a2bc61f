"""`contextanyone pose`: poses from a video or keypoints, fitted to a body, written as keypoints or as a drawn video."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic_file import whole_files
from ..errors import InputError
from ..media.contact_sheet import contact_sheet, frame_choice
from ..media.video_io import ENDINGS, FPS, check_output, contact_path, ending_of, save_clip
from ..pose.drawing import STYLES, PoseStyle, draw_figure, draw_poses
from ..pose.driving import DrivingPose, default_fit, where_nobody_is
from ..pose.fitting import FITS, fit
from ..pose.openpose import to_json
from ..pose.pose_file import pose_file_bytes
from ..pose.reading import PoseSource, is_keypoints, read_poses
from ..pose.resample import clip_of, prepare, within_limit
from ..pose.sequence import Pixels, PoseSequence
from .clips import refuse_output_among
from .parsing import (
    Parser,
    file_path,
    frame_count,
    frame_size,
    one_of,
    output_path,
    package_version,
    real,
    whole,
)
from .pose_inputs import estimate_clip, read_body, read_drawn, require_content, warn_without_skeleton

KEYPOINTS = (".json", ".safetensors")
_log = logging.getLogger(__name__)
_OVER = PoseStyle(half_width=2.0)


def pose(argv: Sequence[str]) -> int:
    """Run the command.

    Raises: InputError for a request that cannot be met; MissingDependencyError if a required extra is not installed.
    """
    options = command_parser().parse(argv)
    _check(options)
    if options.drawn:
        frames = _drawn_frames(options)
        save_clip(options.out, frames, contact_sheet([], frames), _record(options))
    else:
        poses, over = _poses(options)
        body = None if options.body is None else read_body(options.body, options.models, options.canvas)
        if options.frames is not None:
            poses = within_limit(poses)
        poses = fit(prepare(poses, smooth=options.smooth), body, options.fit)
        if options.frames is not None:
            poses = clip_of(poses, options.frames)
        if options.size is not None:
            poses = poses.placed(options.size)
        for remark in (*poses.remarks, where_nobody_is(poses)):
            if remark:
                _log.warning(remark)
        _write(options, poses, over)
    sys.stdout.write(f"{options.out}\n{_sheet_path(options.out)}\n")
    return 0


def command_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "contextanyone pose",
        "Take the poses out of a video or a file of keypoints, fit them to a person's body, write them as keypoints\n"
        "or draw them. They are resampled to 16 frames a second, and gaps of up to 5 frames are filled.",
    )
    add = parser.add_argument
    add(
        "source",
        type=file_path,
        help="a video, a picture, or keypoints: OpenPose's JSON (file or folder), POSE_KEYPOINT, COCO, safetensors",
    )
    add(
        "--out",
        type=output_path,
        required=True,
        metavar="FILE",
        help="the file to write: .json, .safetensors, or a drawn video",
    )
    add(
        "--body",
        type=file_path,
        metavar="FILE",
        help="whose body: keypoints, a picture or clip of the person, a personal file",
    )
    add("--fit", type=one_of("fit", *FITS), help=f"{', '.join(FITS)}; default: bones with --body, else none")
    add("--person", type=whole(1, 999), metavar="N", help="which person, by number; needed if there are several")
    add("--size", type=frame_size, metavar="WxH", help="the video's size; default: the size of the source's picture")
    add("--frames", type=frame_count, metavar="N", help="only the first N frames at 16 a second, 4k + 1")
    add(
        "--style",
        type=one_of("style", *STYLES),
        default="full",
        help="how to draw: full (on black) or miniature (on grey)",
    )
    add("--smooth", action="store_true", help="smooth the motion a little; takes the accents out of a dance")
    add("--canvas", type=_canvas, metavar="WxH", help="the picture's size, where a file of keypoints does not state it")
    add(
        "--fps", type=real(0, 1000, above=True), help=f"frames a second, where a file does not state it; default: {FPS}"
    )
    add(
        "--models",
        type=file_path,
        metavar="PATH",
        help="for videos and pictures: the wheel mediapipe 0.10.21, or its folder",
    )
    add("--drawn", action="store_true", help="the source shows drawn poses: put them on the background of --style")
    return parser


def _canvas(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT of any size, as (height, width)."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= len(side) <= 5 and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is given; WIDTHxHEIGHT in pixels is needed, such as 1920x1080")
    return int(sides[1]), int(sides[0])


def _check(options: argparse.Namespace) -> None:
    """Check the options before any file is read, and set the default of `--fit`."""
    options.fit = options.fit or default_fit(options.body is not None)
    if options.body and options.fit == "none":
        raise InputError("--body is given and --fit none ignores it; give one of them.")
    require_content(options.source, options.body)
    for path in (options.source, options.body):
        if path is not None and options.out.resolve() == path.resolve():
            raise InputError(f"--out {options.out} would overwrite what is read; give another name.")
    refuse_output_among(options.out, [options.source, options.body])
    if ending_of(options.out) in KEYPOINTS:
        if not options.out.parent.is_dir():
            raise InputError(f"the output folder {options.out.parent} does not exist; make it first.")
        for path in (options.out, _sheet_path(options.out)):
            if path.is_dir():
                raise InputError(f"{path} is a folder, and a file of that name would be written; give another name.")
        if options.drawn:
            raise InputError(f"--drawn keeps pictures; --out {options.out} must be a video or a folder of frames.")
    elif ending_of(options.out) not in (*ENDINGS, ""):
        known = ", ".join((*KEYPOINTS, *ENDINGS))
        raise InputError(f"{options.out} ends in {ending_of(options.out)}; known are {known}, and none for a folder.")
    else:
        check_output(options.out)
    if options.drawn and is_keypoints(options.source):
        raise InputError(f"{options.source} has keypoints, and --drawn is for a video of drawn poses; leave it out.")
    if options.drawn and options.body:
        raise InputError("--drawn keeps pictures as they are; a --body is fitted to keypoints: leave it out.")
    if options.drawn:
        _check_drawn(options)
    elif options.fit != "none" and options.body is None:
        raise InputError(f"--fit {options.fit} needs --body FILE: keypoints, a picture or a clip of the person.")


def _check_drawn(options: argparse.Namespace) -> None:
    """Refuse what only keypoints have: a drawn video keeps its pictures."""
    asked = {"--person": options.person, "--canvas": options.canvas, "--models": options.models}
    asked |= {"--smooth": options.smooth or None, "--fit": None if options.fit == "none" else options.fit}
    for name in (name for name, value in asked.items() if value is not None):
        raise InputError(f"{name} is for keypoints, and --drawn keeps pictures as they are; leave one of them out.")
    if options.fps is not None and not options.source.is_dir():
        raise InputError(f"{options.source} has its own rate; with --drawn, --fps is for a folder of pictures.")


def _poses(options: argparse.Namespace) -> tuple[PoseSequence, list[Pixels]]:
    """The poses of the source and, for a video or picture, some of its frames with the skeleton drawn on them."""
    if is_keypoints(options.source):
        return read_poses(options.source, PoseSource(options.canvas, options.fps, options.person)), []
    if options.person not in (None, 1):
        raise InputError(
            "the estimator finds one person, the most likely one; --person chooses in a file of keypoints."
        )
    if options.canvas is not None or (options.fps is not None and not options.source.is_dir()):
        raise InputError(f"{options.source} has its own size and rate; --canvas and --fps are for files without these.")
    poses, pictures = estimate_clip(options.source, options.models, options.frames, options.fps)
    over = [_with_skeleton(pictures[index], poses, index) for index in frame_choice(len(pictures))]
    return poses, over


def _with_skeleton(picture: Pixels, poses: PoseSequence, index: int) -> Pixels:
    frame = picture.copy()
    placed = poses.moved(frame.shape[0] / poses.height, (0, 0), frame.shape[:2])
    draw_figure(frame, placed.body[index], (), None, _OVER)
    return frame


def _drawn_frames(options: argparse.Namespace) -> Pixels:
    frames = read_drawn(options.source, options.size, options.fps, options.frames)
    drawn = DrivingPose(str(options.source), frames)
    if options.frames is not None:
        height, width = frames.shape[1:3]
        drawn = drawn.for_clip(options.frames, (height, width))
    warn_without_skeleton(options.source, frames)
    return drawn.pictures(STYLES[options.style])


def _write(options: argparse.Namespace, poses: PoseSequence, over: list[Pixels]) -> None:
    """Write the poses and the contact sheet, both or neither; the sheet shows the source's frames if it has any."""
    out, style = options.out, STYLES[options.style]
    if ending_of(out) not in KEYPOINTS:
        if poses.width % 16 or poses.height % 16:
            raise InputError(
                f"the poses lie on {poses.width} x {poses.height} pixels; a drawn video needs the size of the video to "
                "be made, multiples of 16: give it, such as --size 832x480."
            )
        frames = draw_poses(poses, style)
        save_clip(out, frames, contact_sheet([], np.stack(over) if over else frames), _record(options))
        return
    chosen = np.stack(over) if over else draw_poses(poses.at(frame_choice(poses.num_frames)), style)
    content = json.dumps(to_json(poses)).encode() if ending_of(out) == ".json" else pose_file_bytes(poses)
    sheet = _sheet_path(out)
    with whole_files(sheet, out) as folder:
        (folder / out.name).write_bytes(content)
        contact_sheet([], chosen).save(folder / sheet.name)


def _sheet_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.contact.png") if ending_of(out) in KEYPOINTS else contact_path(out)


def _record(options: argparse.Namespace) -> dict[str, object]:
    """The record of a drawn video, for its metadata."""
    names = {"source": options.source.name, "body": options.body.name if options.body else None}
    asked = {key: getattr(options, key) for key in ("fit", "person", "style", "smooth", "drawn")}
    return {"command": "pose", "contextanyone": package_version(), **names, **asked}
