"""Check the metrics where the truth is known: rank correlation with the attributes of rendered characters.

    python evaluation/check_metrics.py --out DIR [--clip MODEL] [--dino MODEL]

DIR gets known_truth.json and known_truth.md. A backbone that is not named is reported as not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from training.commands import Parser, output_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="check_metrics.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, made if needed")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP: a folder or a hub name")
    parser.add_argument("--dino", metavar="MODEL", help="a DINO or DINOv2: a folder or a hub name")
    parser.add_argument("--seed", type=int, default=0, help="which test characters (0)")
    parser.add_argument("--count", type=int, default=40, help="how many (40)")
    return run_command("check_metrics.py", lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from contextanyone_core.encoders.image import load_image_encoder
    from contextanyone_core.generation.pipeline import MINIATURE
    from evaluation.metrics.backbones import Backbone
    from evaluation.metrics.known_truth import Encoder, MiniatureTower, correlations, ladder, table
    from training.evaluation.characters import first_seed

    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; it must be at least 0.")
    if not 3 <= arguments.count < 1_000_000:
        raise InputError(f"--count is {arguments.count}; it must be at least 3, below a million.")
    out = output_folder("--out", arguments.out)
    clip = None if arguments.clip is None else Backbone("clip", arguments.clip)
    dino = None if arguments.dino is None else Backbone("dino", arguments.dino)
    encoders: dict[str, Encoder | None] = {
        "CLIP" if clip is None else f"CLIP {clip.name} {clip.revision[:12]}": clip,
        "DINO" if dino is None else f"DINO {dino.name} {dino.revision[:12]}": dino,
        "the miniature's CLIP tower (trained on this world)": MiniatureTower(
            load_image_encoder(MINIATURE / "image_encoder.safetensors")
        ),
    }
    start = first_seed(arguments.seed)
    seeds = tqdm(
        range(start, start + arguments.count), desc="clips", unit="character", file=sys.stderr, dynamic_ncols=True
    )
    rows = correlations([ladder(seed) for seed in seeds], encoders)
    text = table(rows, arguments.count)
    record = {"seed": arguments.seed, "count": arguments.count}
    write_text(out / "known_truth.json", json.dumps({**record, "rows": rows}, indent=1, allow_nan=False) + "\n")
    write_text(out / "known_truth.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(main())
