"""Measure the clips of several systems on one set.

    python evaluation/run.py --set SET.jsonl --videos ours=FOLDER phantom=FOLDER truth=FOLDER --base phantom --out DIR \
      --clip openai/clip-vit-large-patch14 --dino facebook/dinov2-base

DIR gets metrics.json (each item's numbers), summary.json (intervals, comparisons), table.md and report.html. Features
are kept in DIR/features: the same command goes on where it was interrupted. docs/EVALUATION.md has the metrics.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, output_folder, run_command

if TYPE_CHECKING:
    from evaluation.metrics.evaluate import Systems
    from evaluation.metrics.measure import Instruments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="run.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--set", type=Path, required=True, help="the clips, as evaluation/clip_set.py documents")
    parser.add_argument("--videos", nargs="+", required=True, metavar="NAME=FOLDER", help="each system's clips")
    parser.add_argument("--base", metavar="NAME", help="the system that motion is compared with (truth, if given)")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP: a folder or a hub name; without it no CLIP-I, CLIP-T")
    parser.add_argument(
        "--dino", metavar="MODEL", help="a DINO or DINOv2: a folder or a hub name; without it no DINO-I"
    )
    parser.add_argument("--masks", type=Path, help="folder of masks: references/ID.png and NAME/FILE")
    parser.add_argument(
        "--segmenter", type=Path, help="MediaPipe's wheel or a folder with its .tflite, instead of masks"
    )
    parser.add_argument("--faces", metavar="MODEL", help="dlib, or a folder with an ArcFace pack of ONNX files")
    parser.add_argument(
        "--vlm", metavar="URL", help="a server with OpenAI's interface, such as http://localhost:8000/v1"
    )
    parser.add_argument("--vlm-model", metavar="NAME", help="the vision-language model's name there")
    parser.add_argument("--parts", type=Path, help="OpenS2V's parts: {system: {item: parts}} in JSON")
    parser.add_argument("--device", default="cpu", help="of the backbones: cpu, cuda (cpu)")
    parser.add_argument("--batch", type=int, default=16, help="pictures at a time (16)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if needed")
    return run_command("run.py", lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    from evaluation.clip_set import read_folders, read_set
    from evaluation.metrics.catalogue import catalogue
    from evaluation.metrics.evaluate import Systems, evaluate
    from evaluation.metrics.opens2v import read_parts
    from evaluation.metrics.page import write_page
    from evaluation.metrics.tables import table, write_tables

    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; it must be at least 1.")
    if arguments.masks is not None and arguments.segmenter is not None:
        raise InputError("--masks and --segmenter both give masks; name one of them.")
    if (arguments.vlm is None) != (arguments.vlm_model is None):
        raise InputError("--vlm and --vlm-model belong together: a server and a model's name there.")
    items = read_set(arguments.set)
    folders = read_folders(arguments.videos, items)
    parts = {} if arguments.parts is None else read_parts(arguments.parts)
    systems = Systems(folders, arguments.base, parts)
    out = output_folder("--out", arguments.out)
    instruments = _instruments(arguments, out)
    metrics = catalogue("" if instruments.faces is None else instruments.faces.name, judge=arguments.vlm is not None)
    results = evaluate(instruments, items, systems, metrics)
    record = _record(instruments, arguments, systems)
    write_tables(results, metrics, record, out)
    write_page(results, metrics, record, (items, folders), out)
    sys.stdout.write(f"{table(results, metrics, record)}\nThe page: {out / 'report.html'}\n")


def _instruments(arguments: argparse.Namespace, out: Path) -> Instruments:
    from evaluation.metrics.backbones import Backbone
    from evaluation.metrics.faces import load_faces
    from evaluation.metrics.feature_cache import FeatureCache
    from evaluation.metrics.measure import Instruments
    from evaluation.metrics.person import MaskFolder, MaskSource, SegmentedMasks
    from evaluation.metrics.vlm import Judge

    place = arguments.device, arguments.batch
    masks: MaskSource | None = None
    if arguments.masks is not None:
        masks = MaskFolder(arguments.masks)
    elif arguments.segmenter is not None:
        masks = SegmentedMasks(arguments.segmenter)
    judge = None
    if arguments.vlm is not None:
        judge = Judge(arguments.vlm, arguments.vlm_model, out / "vlm", os.environ.get("OPENAI_API_KEY", ""))
    return Instruments(
        FeatureCache(out / "features"),
        None if arguments.clip is None else Backbone("clip", arguments.clip, *place),
        None if arguments.dino is None else Backbone("dino", arguments.dino, *place),
        masks,
        None if arguments.faces is None else load_faces(arguments.faces),
        judge,
    )


def _record(instruments: Instruments, arguments: argparse.Namespace, systems: Systems) -> dict[str, str]:
    """What the numbers were made with, in words for the table."""
    from evaluation.metrics.frames import COUNT, file_digest

    backbones = {"CLIP": instruments.clip, "DINO": instruments.dino}
    found = {
        name: "not run" if backbone is None else f"{_shown(backbone.name)}, revision {backbone.revision}"
        for name, backbone in backbones.items()
    }
    faces, judge = instruments.faces, instruments.judge
    masks = arguments.masks or arguments.segmenter
    return {
        **found,
        "faces": "not run" if faces is None else f"{faces.name}, revision {faces.revision}",
        "judge": "not run" if judge is None else f"{judge.model}, prompt SHA-256 {judge.prompt_hash}",
        "masks": "none: no metric of the person alone" if masks is None else _shown(masks),
        "base": systems.measure_of_motion or "none",
        "set": f"{arguments.set.name}, SHA-256 {file_digest(arguments.set)}",
        "frames": f"{COUNT} of each clip, the middles of as many equal parts; of DINO's consistency all",
    }


def _shown(place: str | Path) -> str:
    """A file or folder by its name alone: results are published, and its place may say who ran them."""
    return Path(place).resolve().name if Path(place).exists() else str(place)


if __name__ == "__main__":
    sys.exit(main())
