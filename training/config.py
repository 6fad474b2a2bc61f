"""The configuration of a run: a small YAML file over the defaults below, checked before anything starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError, did_you_mean
from training.data.settings import DataSettings
from training.parts import PARTS
from training.parts.base import PartSettings
from training.settings import ShippedPath, describe_errors, read_settings
from training.trackers import TrackerName

# Settings that change the result, and that a resume may still change: steps, pairs and learning rate.
_CHANGEABLE = frozenset({"run.steps", "part.pairs", "optim.lr"})
# These, and the settings that do not change the result.
FREE_ON_RESUME = _CHANGEABLE | frozenset(
    {"part.pools"}  # the folder of the pairs, not their content
    | {"part.personal.consent"}  # words of the exported header, which a person may add later
    | {"part.train.lora.offload"}  # where frozen weights are
    | {f"part.data.{key}" for key in ("manifest", "cache", "encoders")}  # data.sha256 has their content
    | {f"part.{key}" for key in ("sample_steps", "sample_clips", "validation_clips", "validation_pairs")}  # display
    | {
        f"run.{key}"
        for key in (
            "name",
            "out",
            "save_every",
            "keep_last",
            "sample_every",
            "validate_every",
            "log_every",
            "max_minutes",
            "threads",
            "workers",
            "trackers",
        )
    }
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunSettings(_Section):
    """Length, folder and logging of a run. Settings named `_every` count steps."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    out: Path | None = None  # runs/<name> where not given
    seed: int = Field(0, ge=0)
    steps: int = Field(ge=1)
    save_every: int = Field(500, ge=1)
    keep_last: int = Field(2, ge=1)
    sample_every: int = Field(500, ge=1)
    validate_every: int | None = Field(None, ge=1)  # None: never
    log_every: int = Field(50, ge=1)  # progress lines where the output is no terminal; log.jsonl has every step
    max_minutes: float | None = Field(None, gt=0)  # of this start, not of all starts together
    threads: int | None = Field(None, ge=1)  # of the training process; None leaves torch's choice
    trackers: tuple[TrackerName, ...] = ("tensorboard",)  # beside log.jsonl
    workers: int = Field(1, ge=0)  # processes that prepare batches; 0 prepares them in the training process

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out if self.out is not None else Path("runs") / self.name


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(_Section):
    """The optimizer, its learning rate over the steps, and the EMA."""

    # muon: for hidden matrices and kernels; AdamW for the rest. adamw8bit: moments in 8 bits, by torchao
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.99)
    warmup_steps: int = Field(100, ge=0)
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    lr_factors: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]] = {}  # step: factor of lr from it on
    clip_norm: float = Field(1.0, gt=0)
    accumulate: int = Field(1, ge=1)  # batches whose gradients are averaged in a step
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0: the EMA is the weights themselves


class InitSettings(_Section):
    """What a run starts from."""

    from_: ShippedPath | None = Field(None, alias="from")


class TrainConfig(_Section):
    """A whole run. `part` is one part's own Settings, chosen by `part.name`."""

    run: RunSettings
    optim: OptimSettings = OptimSettings()  # type: ignore[call-arg]  # pydantic fills the defaults
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 where the device computes in it
    init: InitSettings = InitSettings()  # type: ignore[call-arg]  # pydantic fills the defaults
    part: SerializeAsAny[PartSettings]

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as JSON data, every default written out."""
        return self.model_dump(mode="json", by_alias=True)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, apply `a.b=value` overrides (values are YAML) and check everything.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown, a value does not fit. The message names the key.
    """
    return parse_config(read_settings(path, overrides))


def data_settings(path: Path, overrides: Sequence[str] = ()) -> DataSettings:
    """Read the section `part.data` of a run's configuration.

    Raises:
        InputError: the configuration has a mistake, or its part does not train on a manifest.
    """
    part = load_config(path, overrides).part
    data = getattr(part, "data", None)
    if not isinstance(data, DataSettings):
        raise InputError(f"{path} trains the part {part.name}, which reads no manifest; part.name: manifest does.")
    return data


def parse_config(data: Mapping[str, Any]) -> TrainConfig:
    """Check configuration data and return it as TrainConfig. Raises InputError that names the keys at fault."""
    part_data = data.get("part")
    if not isinstance(part_data, Mapping) or "name" not in part_data:
        raise InputError(f"part.name is missing; it is one of {', '.join(sorted(PARTS))}.")
    name = str(part_data["name"])
    if name not in PARTS:
        raise InputError(
            f"part.name is {name}; it must be one of {', '.join(sorted(PARTS))}.{did_you_mean(name, PARTS)}"
        )
    settings_class = PARTS[name].settings_class()
    try:
        part = settings_class.model_validate(dict(part_data))
    except ValidationError as error:
        raise InputError(describe_errors(error, settings_class, "part.")) from None
    try:
        return TrainConfig.model_validate({**data, "part": part})
    except ValidationError as error:
        raise InputError(describe_errors(error, TrainConfig, "")) from None


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all."""
    write_text(path, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def config_hash(config: TrainConfig) -> str:
    """Return the SHA-256 of what the run computes: what a resume must keep, and the present steps, pairs and rate."""
    flat = _flatten(config.to_dict())
    kept = {key: value for key, value in flat.items() if key not in FREE_ON_RESUME - _CHANGEABLE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def changed_keys(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Return the keys, sorted, whose values differ and must not differ for a resume.

    A LoRA's `init.from` may be elsewhere: its checkpoints identify it by its content (`Progress.start`).
    """
    old, new = _flatten(before.to_dict()), _flatten(now.to_dict())
    free = FREE_ON_RESUME | ({"init.from"} if any(key.startswith("part.train.lora.") for key in old) else set())
    free |= {"part.recompute"} if _recomputed_alike(old, new) else set()
    return sorted(k for k in old.keys() | new.keys() if k not in free and old.get(k) != new.get(k))


def _recomputed_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two ways of `part.recompute` give the same gradients, bit for bit.

    In bf16 a pass that is not recomputed keeps the casts of weights, in which the gradients of both streams meet; where
    it is, they meet in float32. Compiled blocks are other kernels.
    """
    in_float32 = old["precision"] == new["precision"] == "fp32"
    always = "none" not in (old.get("part.recompute"), new.get("part.recompute"))
    return not new.get("part.compile") and (in_float32 or always)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
