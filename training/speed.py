"""How fast a run is: samples, tokens and TFLOP/s, the share of what the device could do, data wait, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from training.parts.base import CountsWork, Part
from training.planning.cards import GIB, card_of

if sys.platform != "win32":  # there a process cannot be asked, and a log line has the memory of GPUs only
    import resource

_SIDE, _REPEATS = 1024, 3  # of the matrix product that an unlisted device is measured by


class Speedometer:
    """The speed of a step, for its line in log.jsonl.

    `tflops` are the model's own FLOPs, forward and backward, as FlopCounterMode counts them: what a checkpoint or a
    fused kernel computes again does not count. `mfu` is their share of the card's peak, or of a matrix product's
    measured rate where the card is not listed.

    Args:
        bf16: whether matrix products run in bf16. processes: how many train together, each as fast as this one.
    """

    def __init__(self, part: Part, device: torch.device, *, bf16: bool, processes: int = 1) -> None:
        self._part, self._device, self._bf16, self._processes = part, device, bf16, processes
        self._peak_flops: float | None = None

    def describe(
        self, batches: Sequence[Any], record: dict[str, Any], samples: int, seconds: float
    ) -> dict[str, float]:
        """Numbers of one finished step: `tflops` and `mfu` of this process, the others of all together.

        Args:
            batches: this process's. record: the step's line so far; it has `reference` where the step had references,
                and `with_reference`, batch by batch, where not all of this process's did.
            samples: in the step. seconds: of the whole step.
        """
        found = {"samples_per_second": round(samples / seconds, 3)}
        if isinstance(self._part, CountsWork):
            used = record.get("with_reference", ["reference" in record] * len(batches))
            works = [self._part.work(batch, with_reference=each) for batch, each in zip(batches, used, strict=False)]
            found["tokens_per_second"] = round(self._processes * sum(work.tokens for work in works) / seconds, 1)
            flops = [work.flops for work in works if work.flops is not None]
            if flops:
                found["tflops"] = _digits(sum(flops) / seconds / 1e12)
                found["mfu"] = _digits(sum(flops) / seconds / self._peak())
        if self._device.type == "cuda" or sys.platform != "win32":
            found["peak_memory_gib"] = round(peak_memory(self._device) / GIB, 3)
        return found

    def _peak(self) -> float:
        if self._peak_flops is None:
            card = card_of(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None
            listed = None if card is None else 1e12 * (card.bf16 if self._bf16 else card.fp32)
            self._peak_flops = listed or matmul_rate(self._device, bf16=self._bf16)
        return self._peak_flops


def matmul_rate(device: torch.device, *, bf16: bool) -> float:
    """FLOP/s of a square matrix product on the device, the best of a few."""
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return float(2 * _SIDE**3 / best)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident  # bytes there, KiB elsewhere


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
