"""Interleaved timing: every round runs each variant once, so that load on the machine affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Action = Callable[[], object]


@dataclass
class Timing:
    """Timing of one variant.

    Attributes:
        seconds: time of every round, in order.
        working_bytes: peak memory above that in use before the run; None if it is not measured (CPU).
        error: why there are no times.
    """

    seconds: list[float] = field(default_factory=list)
    working_bytes: int | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds) if self.seconds else None


def interleave(
    actions: Mapping[str, Action],
    rounds: int,
    device: torch.device,
    note: Callable[[str], None],
    first: Mapping[str, Action] | None = None,
) -> dict[str, Timing]:
    """Warm up each action, then run all of them in turn for `rounds` rounds, each starting with another one.

    Args:
        actions: actions by name.
        note: called with the name of an action before its warm-up, which may compile.
        first: what to run as warm-up instead of the actions.
    """
    timings = {name: Timing() for name in actions}
    for name, action in (first or actions).items():
        note(name)
        try:
            action()
            synchronise(device)
        except torch.OutOfMemoryError:
            timings[name].error = "out of memory"
            torch.cuda.empty_cache()
    able = [name for name in actions if timings[name].error is None]
    for index in range(rounds):
        turn = index % max(1, len(able))
        for name in (*able[turn:], *able[:turn]):
            _time(actions[name], timings[name], device)
    return timings


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of two variants in every round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul(device: torch.device, dtype: torch.dtype, side: int, count: int) -> tuple[Action, int]:
    """An action with square matrix products of random numbers, and the FLOPs of one run."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return run, count * 2 * side**3


def _time(action: Action, timing: Timing, device: torch.device) -> None:
    synchronise(device)
    before = _start_peak(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    timing.seconds.append(time.perf_counter() - began)
    if before is not None:
        working = torch.cuda.max_memory_allocated(device) - before
        timing.working_bytes = max(working, timing.working_bytes or 0)


def _start_peak(device: torch.device) -> int | None:
    """Bytes in use now, from which the peak is measured; None if the device does not count them."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
