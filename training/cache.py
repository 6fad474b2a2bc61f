"""Encode the data of a run once, before it trains: `python training/cache.py --config C.yaml [--set a.b=c ...]`.

The same command again goes on where it stopped, and encodes only what has changed. Several processes share the work
where RANK and WORLD_SIZE are set, as by `torchrun --nproc_per_node 8 training/cache.py --config C.yaml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, run_command
from training.stopping import Stop

if TYPE_CHECKING:
    from training.data.settings import DataSettings


def build_cache(settings: DataSettings) -> int | None:
    """Encode this process's share and, when everything is done, report what is kept. Returns the signal that ended it.

    Raises:
        InputError: the manifest or an encoder is missing, or no row can be used.
    """
    import torch  # late, with all that follows: --help shall be quick

    from training.data.build import CacheBuilder
    from training.data.cache import index_path, read_index
    from training.data.manifest import drop_table
    from training.data.work import Stopped, job_share

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)  # the current device, on which streams are made
    stop = Stop(None)
    with stop.listening():
        try:
            complete = CacheBuilder(settings, device, job_share(stop.asked, stop.may_cut)).build()
        except Stopped:
            return stop.signal
    if not complete:
        sys.stdout.write("This process is done; others are still encoding their share.\n")
        return None
    index = read_index(settings)
    sys.stdout.write(drop_table(len(index.rows), index.dropped) + f"{index_path(settings)}\n")
    if not index.rows:
        raise InputError(f"No row of {settings.manifest} can be used.")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="cache.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="a run's configuration with part.name: manifest")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="part.data.cache=DIR"
    )
    arguments = parser.parse_args(argv)

    def command() -> int | None:
        from training.config import data_settings

        return build_cache(data_settings(arguments.config, arguments.set))

    return run_command("cache.py", command)


if __name__ == "__main__":
    sys.exit(main())
