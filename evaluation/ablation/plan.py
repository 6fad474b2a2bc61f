"""The plan of an ablation: a YAML file with a base configuration, named cells that change it, and claims to test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from contextanyone_core.errors import InputError
from evaluation.ablation.variants import Variant
from training.config import TrainConfig, parse_config
from training.settings import describe_errors, read_settings

_FOLDERS = ("run.out", "part.pools", "part.weights")
_UNHASHED = (*_FOLDERS, "run.name", "run.threads", "run.workers", "precision")
"""Settings of where and how a cell is computed, not of what."""

_LATER: dict[str, Any] = {"part.joint_weight": 0.0}
"""Settings that are younger than committed results, each with the value by which it changes nothing."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measuring(_Section):
    """Settings of the measurement: test characters of one seed, as in `training/evaluate.py`."""

    seed: int = Field(0, ge=0)
    count: int = Field(100, ge=2)
    batch_size: int = Field(10, ge=1)
    sampler: str = "unipc"
    steps: int = Field(10, ge=1)
    guidance_scale: float = Field(3.0, ge=0)


class CellSettings(_Section):
    """One cell: its changes of the base, and its seeds.

    `part` holds settings of the part, `network` fields of the model's config. Every cell trains on as many samples as
    the base.
    """

    title: str
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    variant: Variant = "none"
    part: Mapping[str, Any] = {}
    network: Mapping[str, Any] = {}

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """One run that counts as several would confirm a claim by itself."""
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"are {', '.join(map(str, seeds))}; each may occur once")
        return seeds


class Claim(_Section):
    """A claim about two cells: `better` has a higher value of a measure than `worse` ("less": a lower one)."""

    text: str
    better: str
    worse: str
    measure: Literal["attributes", "drift", "copy", "motion"] = "attributes"
    direction: Literal["more", "less"] = "more"


class AblationPlan(_Section):
    """The plan. `base` is a run configuration of `training/train.py` without a name; `note` heads the report."""

    note: str = ""
    base: Mapping[str, Any]
    measuring: Measuring = Measuring()  # type: ignore[call-arg]  # pydantic fills the defaults
    cells: Mapping[str, CellSettings]
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _claims_name_cells(self) -> AblationPlan:
        named = {name for claim in self.claims for name in (claim.better, claim.worse)}
        if unknown := sorted(named - self.cells.keys()):
            raise ValueError(f"claims name the cells {', '.join(unknown)}, which are not in cells")
        return self

    def jobs(self) -> list[Job]:
        """All pairs of cell and seed: first the first seed of every cell in the file's order, then the second."""
        rounds = max(len(cell.seeds) for cell in self.cells.values())
        return [
            Job(name, cell, cell.seeds[index])
            for index in range(rounds)
            for name, cell in self.cells.items()
            if index < len(cell.seeds)
        ]


@dataclass(frozen=True)
class Job:
    """One cell with one seed."""

    name: str
    cell: CellSettings
    seed: int

    def config(self, plan: AblationPlan, out: Path) -> TrainConfig:
        """The configuration of the run that trains it.

        Raises:
            InputError: the part or the run does not have a setting.
        """
        base = dict(plan.base)
        run = {**base.get("run", {}), "name": f"{self.name}-{self.seed}", "seed": self.seed, "out": str(out)}
        network = {**base.get("part", {}).get("network", {}), **self.cell.network}
        own = {"name": "ablation", "variant": self.cell.variant, "network": network}
        part = {**base.get("part", {}), **self.cell.part, **own}
        return parse_config({**base, "run": run, "part": part})


def load_plan(path: Path) -> AblationPlan:
    """Read and check a plan. With the key `like`, it is another plan beside it with the values of this file in place.

    Raises:
        InputError: a file cannot be read, holds an unknown key or an invalid value, or is `like` itself.
    """
    data = _read(path)
    try:
        plan = AblationPlan.model_validate(data)
    except ValidationError as error:
        raise InputError(describe_errors(error, AblationPlan, "")) from None
    for job in plan.jobs():
        job.config(plan, Path("unused"))
    return plan


def job_hash(job: Job, plan: AblationPlan, data: str) -> str:
    """The first 12 hex digits of a SHA-256 over everything that determines a cell's result, except the code.

    Changes of the code are detected by `evaluation.ablation.fingerprint`.

    Args:
        data: hash of the pairs and their encoders (`TransformerPart.data_hash`).
    """
    flat = _flat(job.config(plan, Path("unused")).to_dict())
    flat = {key: value for key, value in flat.items() if key not in _LATER or value != _LATER[key]}
    kept = {key: value for key, value in flat.items() if key not in _UNHASHED and not key.startswith("run.log")}
    text = json.dumps([kept, plan.measuring.model_dump(mode="json"), data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def described(config: TrainConfig) -> dict[str, Any]:
    """A cell's configuration as its result file states it: all settings but the folders of the machine."""
    data = config.to_dict()
    for name in _FOLDERS:
        section, _, key = name.partition(".")
        data[section] = {own: value for own, value in data[section].items() if own != key}
    return data


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A plan's data in place of those that it is `like`; `above` are the plans that are like it."""
    chain = (*above, path.resolve())
    if chain[-1] in above:
        circle = " -> ".join(each.name for each in chain[above.index(chain[-1]) :])
        raise InputError(f"like goes in a circle ({circle}): one of these plans must do without the key.")
    data = read_settings(path)
    like = data.pop("like", None)
    return data if like is None else _merged(_read(path.parent / str(like), chain), data)


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with the changes of another one in place."""
    both = {
        key: _merged(data[key], value)
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(data.get(key), Mapping)
    }
    return {**data, **changes, **both}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
