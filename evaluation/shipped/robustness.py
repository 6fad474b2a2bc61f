"""What the shipped model stands: values that training never had, damaged references, vague prompts, larger sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import write_text
from contextanyone_core.generation.pipeline import GenerationSettings
from contextanyone_core.prompts import TwoStagePrompt
from evaluation.shipped.cells import Case, Cell, Numbers, Studio, as_text, plain_case, summarise, summarise_shares
from evaluation.shipped.pictures import bust, covered, harsh
from evaluation.shipped.unseen import (
    TOPKNOT,
    UNSEEN_COLORS,
    head_crop,
    nearest,
    pixels,
    torso_crop,
    with_shirt,
    with_topknot,
)
from training.evaluation.accuracy import confidence
from training.world import (
    ATTRIBUTES,
    Character,
    Clip,
    Shot,
    WorldSample,
    draw_character,
    draw_scene,
    draw_shot,
    neutral_prompts,
    render_clip,
)
from training.world.attributes import COLORS

Frames = NDArray[np.float64]
Draw = Callable[[Character, Shot, Frames, tuple[int, int]], Clip]

BASE = "as_trained"
_COMPARED = 5  # frames of a rendering that a clip's crops are compared with
_ALL = tuple(ATTRIBUTES)


@dataclass(frozen=True)
class Trial:
    """A cell, and the attributes that count in it and in the one as trained that it is compared with."""

    cell: Cell
    counted: tuple[str, ...] = _ALL


def trials(base: GenerationSettings) -> dict[str, Trial]:
    """All trials by name, the one as trained first."""
    shirt_case, hair_case = partial(_unseen_case, kind="shirt"), partial(_unseen_case, kind="hair")
    shirt, hair = partial(_judge, kind="shirt"), partial(_judge, kind="hair")
    no_shirt, no_hair = _without("shirt_color"), _without("hair_style")

    def cell(kind: str, title: str, case: Callable[..., Case] = plain_case, **options: Any) -> Cell:
        return Cell(kind, title, base, case, **options)

    def larger(side: int) -> Cell:
        return Cell("larger", f"{side} x {side} pixels", replace(base, width=side, height=side))

    return {
        BASE: Trial(cell(BASE, "as in training", judge=_judge_both)),
        "shirt_unseen": Trial(cell("shirt_unseen", "a shirt colour never seen", shirt_case, judge=shirt), no_shirt),
        "hair_unseen": Trial(cell("hair_unseen", "a hair style never seen", hair_case, judge=hair), no_hair),
        "bust": Trial(cell("bust", "picture cropped to the waist", _bust_case), _without("trousers_color")),
        "covered": Trial(cell("covered", "30 % of the person's box covered in the picture", _covered_case)),
        "harsh_light": Trial(cell("harsh_light", "harsh light on the person in the picture", _harsh_case)),
        "vague_prompt": Trial(cell("vague", 'prompts "A person." and "The same person."', _vague_case)),
        "two_people": Trial(cell("two_people", "prompts of two people, one picture", _two_people_case)),
        "size_160": Trial(larger(160)),
        "size_192": Trial(larger(192)),
        "frames_33": Trial(Cell("larger", "33 frames", replace(base, num_frames=33))),
        "ceiling": Trial(cell("ceiling", "renderings through the VAE", judge=_judge_both, rendered=True)),
        "shirt_ceiling": Trial(
            cell("shirt_ceiling", "a shirt colour never seen, rendered", shirt_case, judge=shirt, rendered=True),
            no_shirt,
        ),
        "hair_ceiling": Trial(
            cell("hair_ceiling", "a hair style never seen, rendered", hair_case, judge=hair, rendered=True), no_hair
        ),
    }


def measure_trials(studio: Studio, chosen: Mapping[str, Trial], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Measure trials on the same characters; `difference` is to the one as trained, on the attributes that count."""
    measured = {name: studio.measure(trial.cell, seeds) for name, trial in chosen.items()}
    found = {}
    for name, trial in chosen.items():
        kept = _kept(measured[name], trial.counted)
        row: dict[str, Any] = {"title": trial.cell.title, "kept": _interval(kept)}
        if BASE in measured and name != BASE:
            row["difference"] = _interval(kept - _kept(measured[BASE], trial.counted))
        for other in ("prompt", "copied", "motion"):
            row[other] = summarise(measured[name], other)
        for other in ("shirt_nearest", "hair_nearest"):
            row[other] = summarise_shares(measured[name], other)
        hidden = [attribute for attribute in _ALL if attribute not in trial.counted]
        if trial.cell.kind == "bust":
            row["hidden"] = _interval(_kept(measured[name], tuple(hidden)))
        found[name] = row
    return found


def write_robustness(found: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any], note: str, out: Path) -> str:
    """Write robustness.json and robustness.md; returns the table."""
    lines = [
        "| trial | attributes kept, % | against as in training | prompt followed, % | motion | value shown, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.values():
        shown = row["shirt_nearest"], row["hair_nearest"]
        nearest_text = "; ".join(
            f"{name} {as_text(value)}"
            for name, value in zip(("shirt", "hair"), shown, strict=True)
            if value is not None
        )
        cells = [
            as_text(row["kept"]),
            as_text(row.get("difference")),
            as_text(row["prompt"]),
            as_text(row["motion"], 2),
            nearest_text or "-",
        ]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    lines += ["", *(_notes(found)), note, ""]
    text = "\n".join(lines)
    write_text(
        out / "robustness.json", json.dumps({"record": record, "trials": found}, indent=1, allow_nan=False) + "\n"
    )
    write_text(out / "robustness.md", text)
    return text


def _notes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = [
        "Kept: of the attributes that the picture tells and the classifier knows. Value shown: clips whose shirt (or "
        "head) resembles the rendering with the true value more than those with every other one; chance is "
        f"{100 / (len(COLORS) + 1):.0f} % of shirts and {100 / (len(ATTRIBUTES['hair_style']) + 1):.0f} % of heads."
    ]
    if "bust" in found:
        notes.append(
            f"Trousers, which a picture cropped to the waist does not show: {as_text(found['bust']['hidden'])} %."
        )
    return notes


@dataclass(frozen=True)
class Plan:
    """What `training.world.sample` draws for a test seed before it renders: both shots, and the picture's time."""

    character: Character
    shot: Shot
    picture: Shot
    moment: float


def plan_of(seed: int) -> Plan:
    """The plan of a test seed's pair."""
    rng = np.random.default_rng([seed, 0])
    character = draw_character(rng, test=True)
    scene = draw_scene(rng)
    shot = draw_shot(scene, rng)
    picture = draw_shot(draw_scene(rng, other_than=scene), rng)
    return Plan(character, shot, picture, float(rng.uniform(0, 16)))


def drawn_with(plan: Plan, settings: GenerationSettings, draw: Draw) -> WorldSample:
    """The pair of a plan, drawn by `draw`; its prompts are empty."""
    clip = draw(plan.character, plan.shot, np.arange(settings.num_frames, dtype=np.float64), settings.size)
    still = draw(plan.character, plan.picture, np.array([plan.moment]), settings.size)
    pictures = clip.video, clip.masks, clip.keypoints, still.video[0], still.masks[0]
    return WorldSample(*pictures, "", "", plan.character, plan.shot.scene, plan.picture.scene)


def _unseen_case(seed: int, settings: GenerationSettings, kind: str) -> Case:
    plan = plan_of(seed)
    if kind == "shirt":
        drawn = drawn_with(plan, settings, _shirt_drawer(unseen_color(seed)))
    else:
        drawn = drawn_with(replace(plan, character=_bareheaded(plan.character)), settings, with_topknot)
    return Case(seed, drawn, drawn.reference, TwoStagePrompt(*neutral_prompts(drawn.scene)))


def unseen_color(seed: int) -> str:
    """Which unseen colour a character's shirt has."""
    return list(UNSEEN_COLORS)[seed % len(UNSEEN_COLORS)]


def _shirt_drawer(name: str) -> Draw:
    def draw(character: Character, shot: Shot, frames: Frames, size: tuple[int, int]) -> Clip:
        return with_shirt(character, UNSEEN_COLORS[name], shot, frames, size)

    return draw


def _bareheaded(character: Character) -> Character:
    """A hat would cover the topknot."""
    accessory = "none" if character.accessory == "hat" else character.accessory
    return replace(character, hair_style="short", accessory=accessory)


def _bust_case(seed: int, settings: GenerationSettings) -> Case:
    case = plain_case(seed, settings)
    return replace(case, picture=bust(case.picture, case.drawn.reference_mask))


def _covered_case(seed: int, settings: GenerationSettings) -> Case:
    case = plain_case(seed, settings)
    rng = np.random.default_rng([seed, 4])
    return replace(case, picture=covered(case.picture, case.drawn.reference_mask, rng))


def _harsh_case(seed: int, settings: GenerationSettings) -> Case:
    case = plain_case(seed, settings)
    return replace(case, picture=harsh(case.picture, case.drawn.reference_mask, np.random.default_rng([seed, 5])))


def _vague_case(seed: int, settings: GenerationSettings) -> Case:
    return replace(plain_case(seed, settings), prompt=TwoStagePrompt("A person.", "The same person."), asked=False)


def _two_people_case(seed: int, settings: GenerationSettings) -> Case:
    case = plain_case(seed, settings)
    later = case.prompt.later.replace("The same person is", "The same two people are")
    return replace(case, prompt=TwoStagePrompt("Two people.", later))


def _judge_both(case: Case, clip: NDArray[np.uint8], points: NDArray[np.float32]) -> Numbers:
    """Both comparisons on values that training has: how often the method itself finds the true one."""
    return {**_judge(case, clip, points, "shirt", seen=True), **_judge(case, clip, points, "hair", seen=True)}


def _judge(
    case: Case, clip: NDArray[np.uint8], points: NDArray[np.float32], kind: str, *, seen: bool = False
) -> Numbers:
    """Whether a clip resembles the rendering with the true value most; the renderings are of another shot."""
    size = (clip.shape[1], clip.shape[2])
    crop = torso_crop if kind == "shirt" else head_crop
    shot = draw_shot(case.drawn.scene, np.random.default_rng([case.seed, 6]))
    unit, times = shot.height * min(size), np.linspace(0, len(clip) - 1, _COMPARED)
    candidates = {}
    for name, (draw, character) in _values(case, kind).items():
        made = draw(character, shot, times, size)
        candidates[name] = crop(made.video, made.keypoints, unit)
    character = case.drawn.character
    if kind == "shirt":
        wanted = character.shirt_color if seen else unseen_color(case.seed)
    else:
        wanted = character.hair_style if seen else TOPKNOT
    own = plan_of(case.seed).shot.height * min(size)
    found = nearest(crop(clip, pixels(points, size), own), candidates)
    return {f"{kind}_nearest": float(found == wanted)}


def _values(case: Case, kind: str) -> dict[str, tuple[Draw, Character]]:
    """Every value that is compared: the ten colours and the case's unseen one, or the four styles and the topknot."""
    character = case.drawn.character
    if kind == "shirt":
        seen = {name: (render_clip, replace(character, shirt_color=name)) for name in COLORS}
        unseen = unseen_color(case.seed)
        return {**seen, unseen: (_shirt_drawer(unseen), character)}
    styles = {name: (render_clip, replace(character, hair_style=name)) for name in ATTRIBUTES["hair_style"]}
    return {**styles, TOPKNOT: (with_topknot, character)}


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in _ALL if name not in names)


def _kept(measured: Sequence[Numbers], counted: tuple[str, ...]) -> NDArray[np.float64]:
    """Percent of frames in which the counted attributes are right, for each character."""
    columns = [_ALL.index(name) for name in counted]
    right = np.asarray([numbers["by_attribute"] for numbers in measured], np.float64)
    return np.asarray(100 * right[:, columns].mean(1))


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    low, high = confidence(values)
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}
