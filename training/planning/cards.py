"""Cards that a plan can name: what they compute and how much they hold, from their makers' data sheets."""

from __future__ import annotations

from typing import NamedTuple

GIB = 1 << 30
EXPECTED_RATE = 0.5
"""Share of a card's peak that a training step of this size is expected to reach: attention kernels give 60 to 75 % of
the peak, matrix products 80 %, the rest of the step waits for memory."""


class Card(NamedTuple):
    """Dense TFLOP/s in bf16 with float32 accumulation, TFLOP/s in float32 outside the tensor cores, memory in GiB."""

    bf16: float
    fp32: float
    memory: int

    def rate(self, *, bf16: bool) -> float:
        """FLOP/s that are expected."""
        return EXPECTED_RATE * 1e12 * (self.bf16 if bf16 else self.fp32)


CARDS: dict[str, Card] = {
    "B200": Card(2250, 75, 180),
    "H200": Card(989, 67, 141),
    "H100": Card(989, 67, 80),
    "A100": Card(312, 19.5, 80),
    "L40S": Card(362, 91.6, 48),
    "5090": Card(209.5, 104.8, 32),
    "4090": Card(165.2, 82.6, 24),
    "3090": Card(71, 35.6, 24),
    "4070": Card(58.3, 29.1, 12),
    "3060": Card(25.5, 12.7, 12),
}
_OTHER_CARDS = {"Laptop", "Ti", "SUPER", "D"}
"""Words after a card's number that make it another card, of another rate or memory."""


def card_of(device_name: str) -> Card | None:
    """The card in a name such as `NVIDIA H100 80GB HBM3`; None for one that is not listed."""
    words = device_name.replace("-", " ").split()
    return next((card for name, card in CARDS.items() if name in words and not _OTHER_CARDS & {*words}), None)
