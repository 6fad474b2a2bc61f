"""Train a part: `python training/train.py --config training/configs/miniature/vae.yaml [--set a.b=c ...]`.

The same command again goes on where the run was saved.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.commands import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="a YAML file, such as training/configs/miniature/vae.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="run.steps=100")
    arguments = parser.parse_args(argv)
    if arguments.config is None:
        listed = "".join(f"  {path}\n" for path in _relative_presets())
        sys.stdout.write(f"Choose a configuration with --config FILE:\n{listed}")
        return 2
    return run_command("train.py", lambda: _train(arguments.config, arguments.set))


def _train(config: Path, overrides: Sequence[str]) -> int | None:
    from training.config import load_config  # late, with torch behind it: --help shall be quick

    checked = load_config(config, overrides)
    from training.loop import train

    return train(checked)


def _relative_presets() -> list[Path]:
    from training.settings import presets

    here = Path.cwd()
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in presets()]


if __name__ == "__main__":
    sys.exit(main())
