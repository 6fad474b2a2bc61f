"""Identity at matched motion: a clip that does not move as the base's has no identity to show.

A frozen copy of the reference has the largest similarity that there is. So each similarity is reported a second time,
counted only where the clip's motion is between half and double that of the base's clip of the same item, and as 0
elsewhere. A system cannot gain by freezing the clips that it finds hard. The mean over matched clips alone is this
number divided by `motion_matched`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.metrics.catalogue import matched
from evaluation.metrics.motion import is_matched, ratio

Numbers = dict[str, dict[str, dict[str, float]]]
"""{metric: {system: {item: number}}}"""


def add_matched(numbers: Numbers, base: str, similarities: Sequence[str]) -> None:
    """Add `motion_ratio`, `motion_matched` and each similarity at matched motion, for every system.

    Items whose base clip does not move have none of them.

    Args:
        base: the system whose motion is the measure.
        similarities: names of metrics; those that were not computed are passed over.
    """
    motion = numbers["motion"]
    ratios = {system: _ratios(of_item, motion[base]) for system, of_item in motion.items()}
    numbers["motion_ratio"] = ratios
    shares = {system: {item: float(is_matched(found)) for item, found in of.items()} for system, of in ratios.items()}
    numbers["motion_matched"] = shares
    for name in similarities:
        for system, of_item in numbers.get(name, {}).items():
            counted = {item: value * shares[system][item] for item, value in of_item.items() if item in shares[system]}
            numbers.setdefault(matched(name), {})[system] = counted


def _ratios(motion: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    found = {item: ratio(value, base[item]) for item, value in motion.items() if item in base}
    return {item: value for item, value in found.items() if value is not None}
