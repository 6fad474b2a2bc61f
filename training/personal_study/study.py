"""The comparison: its cells, one for each arm and person, cached by what they depend on; the table and metrics.json."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contextanyone_core.atomic_file import write_text
from contextanyone_core.weights.file_hash import sha256_of
from training.config import load_config
from training.evaluation.pose_reader import load_pose_reader
from training.evaluation.probe import load_probe
from training.personal.command import Request, train_person
from training.personal.presets import PRESETS
from training.personal_study.arms import ARMS, PAIRS, Arm
from training.personal_study.generation import Maker, picture_of
from training.personal_study.measures import BY_ATTRIBUTE, MEASURES, improvable, mean_of, measure, paired, summary
from training.personal_study.people import CLASS, NAME, Person
from training.settings import MINIATURE

_LOG = logging.getLogger(__name__)
_VERSION = 2  # raised when a cell is measured in another way
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
    """

    out: Path
    arms: tuple[str, ...]
    characters: int
    prompts: int
    steps: int
    overrides: tuple[str, ...] = ()

    def run(self) -> int | None:
        """Make the cells that are missing, then write metrics.json. Returns the signal that ended it, else None."""
        self.out.mkdir(parents=True, exist_ok=True)
        cells = [(ARMS[name], Person(who)) for who in range(self.characters) for name in self.arms]
        missing = [cell for cell in cells if not self._path(*cell).is_file()]
        self._say_cost(missing)
        for number, (arm, person) in enumerate(missing, 1):
            _LOG.info("Cell %d of %d: %s, character %d.", number, len(missing), arm.title, person.number)
            if (ended_by := self._make(arm, person)) is not None:
                return ended_by
        write_text(self.out / "metrics.json", json.dumps(self.metrics(), indent=1) + "\n")
        return None

    def _say_cost(self, missing: list[tuple[Arm, Person]]) -> None:
        trainings = {self._lora(arm, person) for arm, person in missing if arm.changes is not None}
        left = [path for path in trainings if not path.is_file()]
        clips = len(missing) * (self.prompts + self._nameless)
        steps = len(left) * self._run_steps
        minutes = (steps * _STEP_SECONDS + clips * _CLIP_SECONDS) / 60
        _LOG.info(
            "%d cells are missing: %d trainings of %d steps, %d clips; about %.0f minutes on two idle cores.",
            len(missing),
            len(left),
            self._run_steps,
            clips,
            minutes,
        )

    @cached_property
    def _run_steps(self) -> int:
        return load_config(PRESETS["miniature"].config, self.overrides).run.steps

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
        config = load_config(PRESETS["miniature"].config, [*arm.changes, *self.overrides]).to_dict()
        settings = {name: config[name] for name in ("optim", "precision", "part")}
        return [settings, config["run"]["steps"], config["run"]["seed"], person.number, self._frozen]

    def _lora(self, arm: Arm, person: Person) -> Path:
        return self.out / "loras" / f"{_hash(self._trained_by(arm, person))}.safetensors"

    def _path(self, arm: Arm, person: Person) -> Path:
        shown = [arm.reference, arm.regions, arm.strength, arm.rendered]
        made_by = [_VERSION, *self._trained_by(arm, person), *shown, self.prompts, self.steps]
        return self.out / "cells" / f"{_hash(made_by)}.json"

    def _make(self, arm: Arm, person: Person) -> int | None:
        began, lora = time.monotonic(), None
        if arm.changes is not None:
            lora = self._lora(arm, person)
            if (ended_by := self._train(arm, person, lora)) is not None:
                return ended_by
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
        values |= {"forgetting": forgetting, "seconds": time.monotonic() - began}
        path = self._path(arm, person)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({"arm": arm.name, "character": person.number, "values": values}, indent=1))
        return None

    def _train(self, arm: Arm, person: Person, lora: Path) -> int | None:
        if lora.is_file():
            return None
        lora.parent.mkdir(exist_ok=True)
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
            overrides=(f"part.data.cache={self.out / 'cache'}", *(arm.changes or ()), *self.overrides),
        )
        return train_person(request)[1]

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


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
