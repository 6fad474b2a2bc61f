"""The comparison: its cells, one for each arm and person, cached by what they depend on; the table and metrics.json."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contextanyone_core.atomic_file import write_text
from contextanyone_core.weights.file_hash import sha256_of
from training.config import load_config
from training.evaluation.pose_reader import load_pose_reader
from training.evaluation.probe import load_probe
from training.parts.manifest import Settings
from training.personal.command import Request, train_person
from training.personal.presets import PRESETS
from training.personal_study.arms import ARMS, PAIRS, Arm
from training.personal_study.generation import Maker, picture_of
from training.personal_study.measures import BY_ATTRIBUTE, MEASURES, improvable, mean_of, measure, paired, summary
from training.personal_study.people import CLASS, NAME, Person
from training.settings import MINIATURE

_LOG = logging.getLogger(__name__)
_VERSION = 3  # raised when a cell is measured in another way
_OTHERS = 4  # characters whose loss shows forgetting
_STEP_SECONDS, _CLIP_SECONDS = 1.5, 1.0  # on two idle cores with AMX
_NAMELESS = 3  # one clip without the name for so many with it

_COLUMNS = (*MEASURES, *BY_ATTRIBUTE)

Values = dict[str, float | None]


@dataclass(frozen=True)
class Study:
    """What is compared, and where it is kept.

    Attributes:
        out: the folder. arms: names of `ARMS`. characters, prompts: how many of each.
        steps: of the sampler. overrides: settings of every training.
        train_steps: how long every arm trains, its stills in their share of it; None as the preset says.
    """

    out: Path
    arms: tuple[str, ...]
    characters: int
    prompts: int
    steps: int
    overrides: tuple[str, ...] = ()
    train_steps: int | None = None

    def run(self) -> int | None:
        """Make the cells that are missing, then write metrics.json. Returns the signal that ended it, else None."""
        if (ended_by := make_cells([self])) is not None:
            return ended_by
        write_text(self.out / "metrics.json", json.dumps(self.metrics(), indent=1) + "\n")
        return None

    def missing(self) -> list[tuple[Arm, Person]]:
        """The cells that are still to be made."""
        cells = [(ARMS[name], Person(who)) for who in range(self.characters) for name in self.arms]
        return [cell for cell in cells if not self._path(*cell).is_file()]

    def cost(self, missing: Sequence[tuple[Arm, Person]]) -> Cost:
        """What cells cost."""
        trainings = {self._lora(arm, person): arm for arm, person in missing if arm.changes is not None}
        left = [arm for path, arm in trainings.items() if not path.is_file()]
        steps = sum(load_config(PRESETS["miniature"].config, self._changes(arm)).run.steps for arm in left)
        return Cost(len(missing), len(left), steps, len(missing) * (self.prompts + self._nameless))

    def _changes(self, arm: Arm) -> tuple[str, ...]:
        """How an arm's training differs from the preset."""
        changes = (*(arm.changes or ()), *self.overrides)
        if self.train_steps is None:
            return changes
        config = load_config(PRESETS["miniature"].config, changes)
        assert isinstance(config.part, Settings)
        stills, share = config.part.stills_steps, self.train_steps / config.run.steps
        scaled = () if stills is None else (f"part.stills_steps={round(share * stills)}",)
        return (*changes, f"run.steps={self.train_steps}", *scaled)

    @property
    def _nameless(self) -> int:
        return max(1, self.prompts // _NAMELESS)

    @cached_property
    def _frozen(self) -> dict[str, str]:
        names = ("transformer", "vae", "text_encoder", "image_encoder", "probe", "pose_reader")
        return {name: sha256_of(MINIATURE / f"{name}.safetensors") for name in names}

    def _trained_by(self, arm: Arm, person: Person) -> list[object]:
        """What a training depends on; without one, the shipped weights alone."""
        if arm.changes is None:
            return [person.number, self._frozen]
        config = load_config(PRESETS["miniature"].config, self._changes(arm)).to_dict()
        settings = {name: config[name] for name in ("optim", "precision", "part")}
        return [settings, config["run"]["steps"], config["run"]["seed"], person.number, self._frozen]

    def _lora(self, arm: Arm, person: Person) -> Path:
        return self.out / "loras" / f"{_hash(self._trained_by(arm, person))}.safetensors"

    def _path(self, arm: Arm, person: Person) -> Path:
        shown = [arm.reference, arm.regions, arm.strength, arm.rendered]
        made_by = [_VERSION, *self._trained_by(arm, person), *shown, self.prompts, self.steps]
        return self.out / "cells" / f"{_hash(made_by)}.json"

    def make(self, arm: Arm, person: Person) -> int | None:
        """Make one cell, its training too. Returns the signal that ended it, else None."""
        lora: Path | None = None
        trained: float | None = 0.0
        if arm.changes is not None:
            lora = self._lora(arm, person)
            if (ended_by := self._train(arm, person, lora)) is not None:
                return ended_by
            trained = _seconds_of(lora)
        began = time.monotonic()
        maker, asked = Maker(lora, self.steps, arm.strength), person.asked(self.prompts)
        nameless = None
        if arm.rendered:
            clips = maker.round_trip(asked)
        else:
            picture = picture_of(person) if arm.reference else None
            clips = maker.clips(f"A {NAME} {CLASS}", asked, picture, regions=arm.regions)
            nameless = maker.clips(f"A {CLASS}", [one for one in asked if not one.own_place][: self._nameless], None)
        probe, reader = (
            load_probe(MINIATURE / "probe.safetensors"),
            load_pose_reader(MINIATURE / "pose_reader.safetensors"),
        )
        values: Values = measure(person, asked, clips, nameless, probe, reader)
        forgetting = None if arm.rendered else maker.loss_of_others(_OTHERS)
        seconds = None if trained is None else trained + time.monotonic() - began
        values |= {"forgetting": forgetting, "seconds": seconds}
        path = self._path(arm, person)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({"arm": arm.name, "character": person.number, "values": values}, indent=1))
        return None

    def _train(self, arm: Arm, person: Person, lora: Path) -> int | None:
        if lora.is_file():
            return None
        began, before = time.monotonic(), _seconds_of(lora) or 0.0
        lora.parent.mkdir(parents=True, exist_ok=True)
        video, masks, poses = person.write(self.out / "people" / f"{person.number:02d}")
        request = Request(
            clip=video,
            class_name=CLASS,
            out=lora,
            preset="miniature",
            name=NAME,
            caption=None,
            mask=masks,
            pose=poses,
            models=None,
            base=None,
            encoders=None,
            consent="Not a real person: drawn by this project's character world.",
            license="Apache-2.0",
            overrides=(f"part.data.cache={self.out / 'cache'}", *self._changes(arm)),
        )
        try:
            return train_person(request)[1]
        finally:
            write_text(_record(lora), json.dumps({"seconds": before + time.monotonic() - began}) + "\n")

    def values(self, name: str) -> dict[int, Values]:
        """The measures of an arm's cells that are there, by character."""
        paths = {who: self._path(ARMS[name], Person(who)) for who in range(self.characters)}
        return {
            who: json.loads(path.read_text(encoding="utf-8"))["values"] for who, path in paths.items() if path.is_file()
        }

    def metrics(self) -> dict[str, Any]:
        """`arms.<arm>.<measure>.{mean,ci95}`, and `paired`, also of attributes that are far from the ceiling."""
        arms: dict[str, Any] = {}
        for name in self.arms:
            cells = self.values(name)
            by_measure = {key: [v for cell in cells.values() if (v := cell.get(key)) is not None] for key in _COLUMNS}
            arms[name] = {key: summary(values) for key, values in by_measure.items() if values}
        pairs = {
            f"{first} - {second}": paired(self.values(first), self.values(second))
            for first, second in PAIRS
            if first in self.arms and second in self.arms
        }
        if {"reference", "reference_lora", "round_trip"} <= set(self.arms):
            pairs |= self._where_it_can_improve()
        settings = {"characters": self.characters, "prompts": self.prompts, "steps": self.steps}
        return {"settings": settings | {"set": list(self.overrides)}, "arms": arms, "paired": pairs}

    def _where_it_can_improve(self) -> dict[str, Any]:
        names = improvable(self.values("reference"), self.values("round_trip"))
        both, alone = (mean_of(self.values(name), names) for name in ("reference_lora", "reference"))
        return {"reference_lora - reference, far from the ceiling": {"attributes": names, **paired(both, alone)}}


@dataclass(frozen=True)
class Cost:
    """What is to be computed: cells, trainings, their steps together, and clips."""

    cells: int = 0
    trainings: int = 0
    steps: int = 0
    clips: int = 0

    def __add__(self, other: Cost) -> Cost:
        """The sum."""
        mine, theirs = astuple(self), astuple(other)
        return Cost(*(one + another for one, another in zip(mine, theirs, strict=True)))

    def __str__(self) -> str:
        """A line for the log."""
        minutes = (self.steps * _STEP_SECONDS + self.clips * _CLIP_SECONDS) / 60
        return (
            f"{self.cells} cells are missing: {self.trainings} trainings of {self.steps} steps together, {self.clips} "
            f"clips; about {minutes:.0f} minutes on two idle cores."
        )


def make_cells(studies: Sequence[Study]) -> int | None:
    """Make the missing cells of studies, after their cost is logged. Returns the signal that ended it, else None."""
    missing = [(study, study.missing()) for study in studies]
    cost = sum((study.cost(cells) for study, cells in missing), Cost())
    _LOG.info("%s", cost)
    number = 0
    for study, cells in missing:
        study.out.mkdir(parents=True, exist_ok=True)
        for arm, person in cells:
            number += 1
            length = "" if study.train_steps is None else f", {study.train_steps} steps"
            _LOG.info("Cell %d of %d: %s%s, character %d.", number, cost.cells, arm.title, length, person.number)
            if (ended_by := study.make(arm, person)) is not None:
                return ended_by
    return None


def table(metrics: dict[str, Any]) -> str:
    """The arms as lines of a table, means with their intervals."""
    lines = [f"{'':>32}" + "".join(f"{name:>22}" for name in MEASURES)]
    for name, values in metrics["arms"].items():
        cells = [_cell(values.get(key)) for key in MEASURES]
        lines.append(f"{ARMS[name].title:>32}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["ci95"]
    return f"{found['mean']:.3g} [{low:.3g}, {high:.3g}]"


def _record(lora: Path) -> Path:
    return lora.with_suffix(".json")


def _seconds_of(lora: Path) -> float | None:
    """How long a training took, of all its starts but killed ones; None where nobody has noted it."""
    path = _record(lora)
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else None


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
