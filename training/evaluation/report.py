"""What an evaluation leaves behind: metrics.json, table.md and contact_sheet.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file, write_text
from training.evaluation.run import SHOWN, Outcome
from training.files import write_png
from training.world import ATTRIBUTES

_TITLES = {
    "reference": "reference, prompt names no attribute",
    "text_only": "no reference",
    "shuffled_reference": "another one's reference, against the asked character",
    "shuffled_reference_own": "another one's reference, against its own character",
    "emphasis_0": "reference, emphasis 0",
    "contradicting_prompt": "reference, prompt contradicts two attributes",
    "pose_other_body": "reference, another body's pose fitted to it",
    "vae_round_trip": "rendered clips through the VAE",
}
_POSES = {
    "ceiling": "renderings through the VAE",
    "asked": "a pose of the asked action",
    "free": "a motion that no word names",
    "held_out": "a motion of a family that training never had",
    "other_body": "another body's pose, fitted",
    "other_body_seated": "the same, the body measured seated",
    "another_clip": "another clip's pose given",
    "none": "no pose given",
}
_COLUMNS = 5  # frames of each clip on the contact sheet
_MARGIN, _HEADER = 4, 18
_TILE = 128

Image = NDArray[np.uint8]


def write_report(outcome: Outcome, folder: Path) -> None:
    """Write the three files into ``folder``, which exists; each appears whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    write_text(folder / "table.md", table(outcome.metrics))
    with whole_file(folder / "contact_sheet.png") as beside:
        write_png(beside, contact_sheet(outcome), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    write_text(folder / "metrics.json", json.dumps(outcome.metrics, indent=1, allow_nan=False) + "\n")


def table(metrics: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    rows = metrics["attribute_accuracy"]
    lines = ["# Attributes read off the frames, in percent", ""]
    lines += [_row(["", "mean", "95 % interval", *ATTRIBUTES, "clips"]), _row(["---"] * (4 + len(ATTRIBUTES)))]
    for name, title in _TITLES.items():
        if name in rows:
            low, high = rows[name]["ci95"]
            parts = [_percent(rows[name]["per_attribute"][attribute]) for attribute in ATTRIBUTES]
            interval = f"{_percent(low)} to {_percent(high)}"
            lines.append(_row([title, _percent(rows[name]["mean"]), interval, *parts, str(rows[name]["n"])]))
    for title, part in (("chance", metrics["chance"]), ("the probe on test renderings", metrics["probe"])):
        parts = [_percent(part["per_attribute"][attribute]) for attribute in ATTRIBUTES]
        lines.append(_row([title, _percent(part["mean" if title == "chance" else "accuracy"]), "", *parts, ""]))
    return "\n".join([*lines, "", "# The rest", "", *_rest(metrics), ""])


def _rest(metrics: dict[str, Any]) -> list[str]:
    scene, change, pictures = metrics["scene_accuracy"], metrics["drift"], metrics["reconstruction_psnr"]
    items = [
        ("VAE, test clips", f"{metrics['vae_psnr']:.2f} dB", "at least 30"),
        *((f"{name} as asked", f"{_percent(value)} %", "at least 85") for name, value in scene.items()),
        ("attributes lost from first to last frame", f"{change['points']:.1f} points", "at most 3"),
        ("motion against renderings", f"{metrics['motion_ratio']:.2f}", "0.5 to 2"),
    ]
    if pictures is not None:
        drawn, own = (f"{pictures[name]:.2f} dB" for name in ("ground_truth_frame", "own_input"))
        items.append(("reference stream against the clip's first frame", drawn, "the higher"))
        items.append(("reference stream against its own input", own, "the lower"))
    if "contradiction" in metrics:
        part = metrics["contradiction"]
        items.append(("contradicted attributes as in the picture", f"{_percent(part['follows_picture'])} %", ""))
        items.append(("contradicted attributes as in the prompt", f"{_percent(part['follows_prompt'])} %", ""))
    if "pose" in metrics:
        items += _pose_items(metrics)
    return [_row(["", "measured", "wanted"]), _row(["---"] * 3), *(_row(item) for item in items)]


def _pose_items(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    poses = metrics["pose"]
    least = f"at least {_percent(0.9 * poses['ceiling']['within_5_percent'])} %"
    items = []
    for name, title in _POSES.items():
        if name in poses:
            low, high = poses[name]["ci95"]
            share = f"{_percent(poses[name]['within_5_percent'])} % ({_percent(low)} to {_percent(high)})"
            wanted = least if name in ("asked", "free", "held_out", "other_body") else ""
            items.append((f"joints within 5 % of the height: {title}", share, wanted))
            items.append((f"their mean distance: {title}", f"{poses[name]['mean_px']:.2f} px", ""))
    bones = poses["other_body"]["bones"]
    items.append(("bone lengths off the reference's", f"{_percent(bones['reference'])} %", "the lower"))
    items.append(("bone lengths off the driver's", f"{_percent(bones['driver'])} %", "the higher"))
    if "driver_less_reference" in bones:  # tables of before lack it
        farther = bones["driver_less_reference"]
        low, high = (_percent(value) for value in farther["ci95"])
        points = f"{_percent(farther['mean'])} points ({low} to {high})"
        items.append(("the driver's less the reference's", points, "above 0"))
    start = metrics["start"]
    items.append(
        ("first frame off the start picture", f"{start['seam_ratio']:.2f}", "0: a given start is kept exactly")
    )
    return [*items, ("first step after a start frame", f"{start['first_step_ratio']:.2f}", "about 1")]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def contact_sheet(outcome: Outcome) -> Image:
    """A row per character: picture, truth, five frames of the first variant, a middle frame of each other variant."""
    main, *others = outcome.shown
    clips = outcome.shown[main]
    middle = clips.shape[1] // 2
    picks = np.linspace(0, clips.shape[1] - 1, _COLUMNS).round().astype(int)
    header = ["reference", "rendered", *(f"frame {pick}" for pick in picks), *others]
    lines = [_header(header)]
    for index, clip in enumerate(clips[:SHOWN]):
        drawn = outcome.chosen[index].drawn
        cells = [drawn.reference, drawn.video[middle], *clip[picks]]
        cells += [_cell_of(outcome.shown[name], index, middle) for name in others]
        lines.append(np.concatenate([_framed(cell) for cell in cells], 1))
    return np.concatenate(lines, 0)


def _cell_of(clips: NDArray[np.uint8], index: int, frame: int) -> Image:
    return clips[index, frame] if index < len(clips) else np.full(clips.shape[2:], 255, np.uint8)


def _framed(picture: Image) -> Image:
    if picture.shape[0] != _TILE:
        picture = np.asarray(cv2.resize(picture, (_TILE, _TILE), interpolation=cv2.INTER_AREA), np.uint8)
    edge = _MARGIN // 2
    framed = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.asarray(framed, np.uint8)


def _header(titles: list[str]) -> Image:
    strip = np.full((_HEADER, len(titles) * (_TILE + _MARGIN), 3), 255, np.uint8)
    for index, title in enumerate(titles):
        at = (index * (_TILE + _MARGIN) + 3, _HEADER - 5)
        cv2.putText(strip, title, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (30, 30, 30), 1, cv2.LINE_AA)
    return strip
