"""Which of several processes this one is, as every launcher says it in the environment, and its share of the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .clips import Clip

_MAX_PROCESSES = 1_000_000


@dataclass(frozen=True)
class Process:
    """One of several processes that run the same command.

    Attributes:
        rank: from 0.
        count: of all processes.
        local_rank: from 0 on this machine; None where no launcher says it.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    def share(self, clips: Sequence[Clip]) -> list[Clip]:
        """Every `count`-th clip from the `rank`-th on.

        It depends on nothing else, what is finished included: the processes need not talk to each other, and together
        they have each clip exactly once however far each of them is.
        """
        return list(clips[self.rank :: self.count])

    def device(self, name: str) -> str:
        """The device that a name means here: plain `cuda` is the card of this process."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.local_rank is not None else name


def this_process(environment: Mapping[str, str]) -> Process:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process.

    Raises: InputError for one of the first two without the other, or for what is no number.
    """
    rank, count = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None and count is None:
        return Process()
    if rank is None or count is None:
        given, missing = ("WORLD_SIZE", "RANK") if rank is None else ("RANK", "WORLD_SIZE")
        raise InputError(
            f"{given} is set in the environment and {missing} is not; set both, or neither for one process."
        )
    processes = _number("WORLD_SIZE", count, 1, _MAX_PROCESSES)
    local = environment.get("LOCAL_RANK")
    return Process(
        _number("RANK", rank, 0, processes - 1),
        processes,
        None if local is None else _number("LOCAL_RANK", local, 0, processes - 1),
    )


def _number(name: str, text: str, low: int, high: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not low <= number <= high:
        raise InputError(f"{name} is {text[:40]!r} in the environment; a whole number from {low} to {high} is needed.")
    return number
