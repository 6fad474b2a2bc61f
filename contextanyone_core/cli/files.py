"""What the commands that write weight files share: where to write, in which dtype, and the bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def weight_output(text: str) -> Path:
    """A type for `add_argument`: a .safetensors file in a folder that exists."""
    path = Path(text)
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"{text!r} is given; a name that ends in .safetensors is needed")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; make it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give a file's name")
    return path


def refuse_overwriting(out: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse an output that is one of the inputs, lies in an input folder, or over a file beside an index of shards.

    Raises: InputError.
    """
    for path in inputs:
        if path is None:
            continue
        beside = path.name.endswith(".index.json") and out.exists() and out.parent.resolve() == path.parent.resolve()
        if beside or out.resolve() in (path.resolve(), path.resolve() / out.name):
            raise InputError(f"--out {out} would overwrite what is read; give another name.")


def torch_dtype(name: str | None) -> torch.dtype | None:
    """torch's dtype of this name; None stays."""
    import torch

    dtype: torch.dtype | None = None if name is None else getattr(torch, name)
    return dtype


@contextmanager
def tensor_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, from the first tensor on; what it gives is called with (tensors written, of how many)."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[Any] = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(tqdm(desc=name, total=total, unit="tensor", file=sys.stderr, dynamic_ncols=True))
                stack.callback(bars[0].close)
            bars[0].update(done - bars[0].n)

        yield advance
