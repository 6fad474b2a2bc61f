"""Build the static page of a user study, which needs no server.

    python evaluation/study/build.py --set SET.jsonl --videos ours=FOLDER phantom=FOLDER --against ours --out STUDY

STUDY/page is for the raters: open index.html, or put the folder on any web host. STUDY/key.json maps clips to systems;
do not publish it. Raters send back the file that the page saves; evaluation/study/analyse.py reads these files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from training.commands import Parser, run_command

if TYPE_CHECKING:
    from evaluation.clip_set import Item
    from evaluation.study.protocol import Trial

_PAGE = Path(__file__).parent / "page"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="build.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--set", type=Path, required=True, help="the clips, as evaluation/clip_set.py documents")
    parser.add_argument("--videos", nargs="+", required=True, metavar="NAME=FOLDER", help="each system's clips")
    parser.add_argument("--against", metavar="NAME", help="compare this system with each other one (all pairs)")
    parser.add_argument("--references", type=int, default=30, help="how many references, drawn by the seed (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of references, checks, order and sides (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder that does not exist yet")
    return run_command("build.py", lambda: build(parser.parse_args(argv)))


def build(arguments: argparse.Namespace) -> None:
    """Write the study's folder atomically.

    Raises:
        InputError: the folder exists, or the clips do not match the set.
    """
    from evaluation.clip_set import read_folders, read_set
    from evaluation.metrics.frames import file_digest
    from evaluation.study.protocol import make_trials

    out: Path = arguments.out
    if out.exists():
        raise InputError(f"--out {out} exists; name a folder that does not.")
    items = read_set(arguments.set)
    folders = read_folders(arguments.videos, items)
    if arguments.references < 2:
        raise InputError(f"--references is {arguments.references}; it must be at least 2.")
    digests = {path: file_digest(path) for path in sorted({item.reference for item in items})}
    references = list(dict.fromkeys(digests.values()))
    drawn = set(random.Random(arguments.seed).sample(references, min(arguments.references, len(references))))
    chosen = [item for item in items if digests[item.reference] in drawn]
    trials = make_trials(chosen, list(folders), arguments.against, arguments.seed)
    with whole_file(out) as beside:
        _write(beside, arguments.seed, {item.id: item for item in chosen}, folders, trials)
    sys.stdout.write(f"{len(trials)} trials. The page: {out / 'page' / 'index.html'}\n")


def _write(
    folder: Path, seed: int, items: Mapping[str, Item], folders: Mapping[str, Path], trials: Sequence[Trial]
) -> None:
    from PIL import Image

    from contextanyone_core.media.image_io import read_picture
    from evaluation.metrics.frames import file_digest
    from evaluation.study.clips import write_alike, write_held
    from evaluation.study.protocol import CHECKS, MIN_SECONDS, PASSED_SHARE, QUESTION, REFERENCE

    page = folder / "page"
    shutil.copytree(_PAGE, page)
    (page / "media").mkdir()
    shown, key, clips = [], [], []
    for trial in trials:
        item = items[trial.item]
        picture = f"media/{_name(seed, trial.item)}.png"
        if not (page / picture).exists():
            Image.fromarray(read_picture(item.reference)).save(page / picture)
        held = trial.first[0] == REFERENCE
        sources = [
            items[clip].reference if held else folders[system] / items[clip].file
            for system, clip in (trial.first, trial.second)
        ]
        names = [f"media/{_name(seed, trial.id, side)}.mp4" for side in ("first", "second")]
        (write_held if held else write_alike)(sources, [page / name for name in names])
        shown.append({"id": trial.id, "picture": picture, "first": names[0], "second": names[1]})
        key.append(asdict(trial))
        clips.append([file_digest(source) for source in sources])
    identity = hashlib.sha256(json.dumps([seed, key, clips]).encode()).hexdigest()[:12]
    study = {"id": identity, "seed": seed, "question": QUESTION, "min_seconds": MIN_SECONDS, "trials": shown}
    (page / "study-data.js").write_text(f"window.STUDY = {json.dumps(study)};\n", encoding="utf-8")
    rules = {"checks": CHECKS, "passed_share": PASSED_SHARE, "min_seconds": MIN_SECONDS}
    (folder / "key.json").write_text(json.dumps({"id": identity, "rules": rules, "trials": key}, indent=1) + "\n")


def _name(seed: int, *words: str) -> str:
    """A file name that does not reveal the content."""
    return hashlib.sha256(json.dumps([seed, *words]).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
