"""One short clip of a person becomes a personal model: a LoRA with a trigger, for ComfyUI and `generate --lora`.

python training/personalize.py --clip me.mp4 --class woman --out me.safetensors --base BASE --encoders FOLDER \\
  --models mediapipe-0.10.21-*.whl

The same command again goes on where it was stopped. docs/PERSONAL_TRAINING.md has what is trained, and what to film.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.commands import Parser, refuse_output_file, run_command

_PRESETS = ("paper", "strong", "miniature")


def _parser() -> Parser:
    parser = Parser(
        prog="personalize.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--clip", type=Path, required=True, help="a video of one person, five to thirty seconds, one shot")
    add("--class", dest="class_name", required=True, metavar="NOUN", help="what the person is, such as woman")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write; FILE.work beside it")
    add("--preset", choices=_PRESETS, default="paper", help="strong: self-attention and feed-forward too")
    add("--name", default="zuv", help="the invented word that will mean this person (zuv)")
    add("--caption", help="what the clip shows, with 'zuv woman' in it: place, light, what is held; not the face")
    where = "where the person is, white on black: a video, or a folder of pictures, one for each frame"
    add("--mask", type=Path, metavar="FILE", help=where)
    add("--pose", type=Path, metavar="FILE", help="the person's keypoints, as `contextanyone pose` reads them")
    add("--models", type=Path, metavar="PATH", help="for what is not given: the wheel mediapipe 0.10.21, or its folder")
    add("--base", type=Path, metavar="FILE", help="Wan2.1-Fun-Control or Wan 2.1 T2V, as published")
    add("--encoders", type=Path, metavar="FOLDER", help="vae.safetensors and text_encoder.safetensors of the base")
    add("--consent", default="", help="the person's agreement, in your words, for the file's header")
    add("--license", default="unknown", help="what allows the file's use, for its header")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="as of train.py: optim.lr=5e-5",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = _parser().parse_args(argv)

    def command() -> int | None:
        from training.personal.command import Request, personalize  # late, with torch behind it: --help shall be quick

        refuse_output_file("--out", given.out)
        options = {key: value for key, value in vars(given).items() if key != "set"}
        request = Request(**options, overrides=tuple(given.set))
        if (ended_by := personalize(request)) is None:
            sys.stdout.write(f"{request.out}\n{request.sheet}\n")
        return ended_by

    return run_command("personalize.py", command)


if __name__ == "__main__":
    sys.exit(main())
