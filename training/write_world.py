"""Write pairs of the character world as a manifest with its files: `python training/write_world.py --out DIR`.

The same contract as filmed data (docs/TRAINING_DATA.md): clips, references, masks, poses and both prompts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="write_world.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--count", type=int, default=64, help="how many pairs (64)")
    parser.add_argument("--num-frames", type=int, default=17, help="of each clip (17); 1 writes stills")
    parser.add_argument("--size", default="128x128", help="<width>x<height> in pixels (128x128)")
    parser.add_argument("--seed", type=int, default=0, help="of the first pair (0); from 1000000 on: test characters")
    arguments = parser.parse_args(argv)

    def command() -> None:
        from training.data.world import WorldSettings, write_world  # late: --help shall be quick

        width, _, height = arguments.size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InputError(f"--size is {arguments.size}; it must be <width>x<height>, such as 128x128.")
        size = (int(height), int(width))
        settings = WorldSettings(arguments.count, arguments.num_frames, size, arguments.seed)
        sys.stdout.write(f"{write_world(arguments.out, settings)}\n")

    return run_command("write_world.py", command)


if __name__ == "__main__":
    sys.exit(main())
