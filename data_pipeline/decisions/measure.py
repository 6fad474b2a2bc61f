"""Precision and recall of each filter on sources whose faults were planted, and thresholds that fit such a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.decisions.rules import DEDUP, Decision, Rule
from data_pipeline.rows import Row
from data_pipeline.world_sources import read_truth

CAUGHT_BY = {
    "two_people": "person.max_count",
    "static": "static.min_change",
    "dark": "dark.min_brightness",
    "blurred": "blur.min_sharpness",
    "shaky": "motion.max_flow",
    "text": "text.max_area",
    "letterbox": "letterbox.max_share",
    "tiny": "person.min_area",
    "leaves": "person.min_presence",
    "wrong_reference": "verify.min_same",
    "copied_reference": "verify.min_place",
    "duplicate": DEDUP,
}
"""Which rule must drop which planted fault."""
SOUND = ("none", "cut", "dissolve")
"""Faults that leave a usable row (a shot of a cut video is one)."""
_SHARD = "shots.min_frames"
_NEAR = 2  # frames by which a boundary may be off


def measure(root: Path, decisions: Iterable[Decision]) -> dict[str, float]:
    """`<filter>.{precision,recall,planted}` of every rule, and of the shots.

    A rule's precision is over sound rows and rows with its own fault: a dark clip that is dropped as blurred too is no
    error of either. `<filter>.precision_of_all` counts it as one. What `shots.min_frames` drops counts for no other
    rule: a frame or two that a false cut has left over show no motion.
    """
    whole = list(decisions)
    decisions = [found for found in whole if _SHARD not in found.broken]
    faults = {found.row.source: read_truth(root / "sources" / found.row.source)["fault"] for found in whole}
    results: dict[str, float] = {}
    for fault, rule in CAUGHT_BY.items():
        hits = [faults[found.row.source] for found in decisions if rule in found.broken]
        planted = sum(faults[found.row.source] == fault for found in decisions)
        right, wrong = hits.count(fault), sum(hit in SOUND for hit in hits)
        results[f"{rule}.precision"] = _share(right, right + wrong)
        results[f"{rule}.precision_of_all"] = _share(right, len(hits))
        results[f"{rule}.recall"] = _share(right, planted)
        results[f"{rule}.planted"] = planted
    return {**results, **_shots(root, [found.row for found in whole], faults)}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _shots(root: Path, rows: Sequence[Row], faults: dict[str, str]) -> dict[str, float]:
    """Boundaries that were found, apart for cuts and dissolves; false ones count against both.

    Those in sources whose camera jumps count in `precision_of_all` only: such shots are dropped for their motion.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        shot = int(row.scores["shots.start"]), int(row.scores["shots.stop"])
        if shot not in (known := spans.setdefault(row.source, [])):
            known.append(shot)
    results: dict[str, float] = {}
    false = {"shaky": 0, "": 0}
    found = {"cut": 0, "dissolve": 0}
    planted = {kind: sum(fault == kind for fault in faults.values()) for kind in found}
    for source, got in spans.items():
        true = [(a, b) for a, b in read_truth(root / "sources" / source)["spans"]]
        gaps = [(a[1], b[0]) for a, b in pairwise(got)]
        wanted = [(a[1], b[0]) for a, b in pairwise(true)]
        right = [gap for gap in gaps if any(gap[0] - _NEAR <= b and a <= gap[1] + _NEAR for a, b in wanted)]
        false["shaky" if faults[source] == "shaky" else ""] += len(gaps) - min(len(right), 1)
        if right and faults[source] in found:
            found[faults[source]] += 1
    for kind, right_ones in found.items():
        results[f"shots.{kind}.precision"] = _share(right_ones, right_ones + false[""])
        results[f"shots.{kind}.precision_of_all"] = _share(right_ones, right_ones + sum(false.values()))
        results[f"shots.{kind}.recall"] = _share(right_ones, planted[kind])
        results[f"shots.{kind}.planted"] = planted[kind]
    return results


def fitted(root: Path, decisions: Iterable[Decision], rules: Sequence[Rule]) -> dict[str, Any]:
    """For each rule of one row the threshold in the middle of the range with the best F1 on this set."""
    found: dict[str, Any] = {}
    decisions = list(decisions)
    for fault, name in CAUGHT_BY.items():
        rule = next((rule for rule in rules if rule.name == name and name != DEDUP), None)
        if rule is None:
            continue
        kinds = [read_truth(root / "sources" / decision.row.source)["fault"] for decision in decisions]
        scores = np.array([decision.row.scores[rule.score] for decision in decisions])
        bad, sound = (np.isin(kinds, names) for names in ([fault], SOUND))
        sign = 1.0 if rule.bound.startswith("min_") else -1.0
        edges = np.unique(scores[bad | sound])
        middles = (edges[1:] + edges[:-1]) / 2
        hits = [(np.sum(sign * scores[bad] < sign * at), np.sum(sign * scores[sound] < sign * at)) for at in middles]
        f1 = np.array([2 * right / max(right + wrong + bad.sum(), 1) for right, wrong in hits])
        best = middles[f1 == f1.max()] if len(f1) else np.array([rule.value])
        found[name] = {"threshold": float((best.min() + best.max()) / 2), "f1": float(f1.max()) if len(f1) else 0.0}
    return found
