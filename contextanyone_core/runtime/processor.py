"""What a processor has arithmetic for, and so in which dtype it is fast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names what computes in a dtype: Intel's and AMD's tiles and vectors, then Arm's vectors.
_ARITHMETIC = {
    torch.bfloat16: frozenset({"amx_bf16", "avx512_bf16", "bf16"}),
    torch.float16: frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
SLOW_HERE = "which this processor computes many times slower than float32."
"""How the lines end that name a dtype which `is_slow`."""


@dataclass(frozen=True)
class Processor:
    """A processor by the abilities that its system lists.

    Attributes:
        flags: as in /proc/cpuinfo, such as `avx2` and `amx_bf16`.
    """

    flags: frozenset[str]

    @classmethod
    def from_cpuinfo(cls, text: str) -> Processor:
        """The first processor of a text in the form of /proc/cpuinfo, Intel's, AMD's or Arm's."""
        for line in text.splitlines():
            key, _, values = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return cls(frozenset(values.split()))
        return cls(frozenset())

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether it has arithmetic for a dtype; without, products take 6 to 50 times as long as in float32."""
        return dtype not in _ARITHMETIC or bool(_ARITHMETIC[dtype] & self.flags)


@cache
def this_processor() -> Processor:
    """This machine's processor; without abilities where the system has no /proc/cpuinfo: float32 is never slow."""
    try:
        return Processor.from_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Processor(frozenset())


def is_slow(dtype: torch.dtype, device: torch.device, processor: Processor | None = None) -> bool:
    """Whether a device computes far slower in a dtype than in float32; None is this machine's processor."""
    return device.type == "cpu" and not (processor or this_processor()).computes_in(dtype)


def fast_dtype(device: torch.device, processor: Processor | None = None) -> torch.dtype:
    """bfloat16, or float32 on a processor without arithmetic for it: what `auto` precision is."""
    return torch.float32 if is_slow(torch.bfloat16, device, processor) else torch.bfloat16
