"""What a processor or a card is called, which dtypes it has instructions for, and so which one is fast."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
# Linux's names of the instruction sets for a dtype: Intel's and AMD's (tiles, vectors), then Arm's (vectors).
_ARITHMETIC = {
    torch.bfloat16: frozenset({"amx_bf16", "avx512_bf16", "bf16"}),
    torch.float16: frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
SLOW_HERE = "which this processor computes many times slower than float32."
"""End of the warnings about a dtype that `is_slow`."""


@dataclass(frozen=True)
class Processor:
    """A processor, by the instruction sets that the system lists.

    Attributes:
        flags: as in /proc/cpuinfo, such as `avx2` and `amx_bf16`.
        name: its model; of one that the system does not name, as on Arm, the architecture.
    """

    flags: frozenset[str]
    name: str = platform.machine()

    @classmethod
    def from_cpuinfo(cls, text: str) -> Processor:
        """Parse the first processor of a text in the format of /proc/cpuinfo (Intel, AMD or Arm)."""
        first: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition(":")
            first.setdefault(key.strip(), value.strip())
        flags = first.get("flags", first.get("Features", ""))
        return cls(frozenset(flags.split()), first.get("model name", cls.name))

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether it has instructions for a dtype; without them products take 6 to 50 times as long as in float32."""
        return dtype not in _ARITHMETIC or bool(_ARITHMETIC[dtype] & self.flags)


@cache
def this_processor() -> Processor:
    """This machine's processor; without /proc/cpuinfo, one with no instruction sets for bf16 and float16."""
    try:
        return Processor.from_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Processor(frozenset())


def device_name(device: torch.device) -> str:
    """The model of a card, or of this machine's processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else this_processor().name


def is_slow(dtype: torch.dtype, device: torch.device, processor: Processor | None = None) -> bool:
    """Whether a device is far slower in a dtype than in float32; `processor` None is this machine's."""
    if device.type == "cuda" and dtype is torch.bfloat16 and torch.cuda.is_available():
        return not torch.cuda.is_bf16_supported(including_emulation=False)  # cards before Ampere emulate it
    return device.type == "cpu" and not (processor or this_processor()).computes_in(dtype)


def fast_dtype(device: torch.device, processor: Processor | None = None) -> torch.dtype:
    """The dtype of `auto` precision: bfloat16, or float32 on a processor or card without instructions for it."""
    return torch.float32 if is_slow(torch.bfloat16, device, processor) else torch.bfloat16


def card_dtype(device: torch.device) -> torch.dtype:
    """The dtype of frozen networks: bfloat16 on a card that has instructions for it, else float32."""
    return fast_dtype(device) if device.type == "cuda" else torch.float32
