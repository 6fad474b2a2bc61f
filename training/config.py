"""The configuration of a run: a small YAML file over the defaults below, checked before anything starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError, did_you_mean, nearest
from training.parts import PARTS
from training.parts.base import PartSettings
from training.trackers import TrackerName

PRESETS = Path(__file__).parent / "configs"

# How long a run goes on, and on how many pairs: a resume may change both, up or down.
_LENGTH = frozenset({"run.steps", "part.pairs"})
# With them the settings that say how a run is carried out, not what it computes.
FREE_ON_RESUME = _LENGTH | frozenset(
    {"part.pools"}  # where pairs are kept, not which ones
    | {f"part.data.{key}" for key in ("manifest", "cache", "encoders")}  # places; data.sha256 holds the contents
    | {f"part.{key}" for key in ("sample_steps", "sample_clips", "validation_clips", "validation_pairs")}  # only shown
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
    """How long a run takes and where it lives. Everything named `_every` counts steps."""

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

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for hidden matrices and kernels; AdamW for the rest
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.99)
    warmup_steps: int = Field(100, ge=0)
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    clip_norm: float = Field(1.0, gt=0)
    accumulate: int = Field(1, ge=1)  # batches whose gradients are averaged in a step
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0: the EMA is the weights themselves


class InitSettings(_Section):
    """What a run starts from."""

    from_: Path | None = Field(None, alias="from")


class TrainConfig(_Section):
    """A whole run. `part` is one part's own Settings, chosen by `part.name`."""

    run: RunSettings
    optim: OptimSettings = OptimSettings()  # type: ignore[call-arg]  # pydantic fills the defaults
    precision: Literal["fp32", "bf16"] = "fp32"
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


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of settings and apply `a.b=value` overrides; nothing is checked but the form.

    Raises:
        InputError: the file is missing or not a YAML mapping, or an override is not of that form.
    """
    data = _read_yaml(path)
    for override in overrides:
        _apply_override(data, override)
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
    """Return the SHA-256 of what the run computes: what a resume must keep, and the number of steps and of pairs."""
    flat = _flatten(config.to_dict())
    kept = {key: value for key, value in flat.items() if key not in FREE_ON_RESUME - _LENGTH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def changed_keys(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Return the keys, sorted, whose values differ and must not differ for a resume.

    A LoRA's `init.from` may be elsewhere: its checkpoints know it by its content (`Progress.start`).
    """
    old, new = _flatten(before.to_dict()), _flatten(now.to_dict())
    free = FREE_ON_RESUME | ({"init.from"} if any(key.startswith("part.train.lora.") for key in old) else set())
    return sorted(k for k in old.keys() | new.keys() if k not in free and old.get(k) != new.get(k))


def presets() -> list[Path]:
    """Return the configurations of runs that come with the trainer; evaluate.yaml beside them is the evaluation's."""
    return sorted(path for path in PRESETS.rglob("*.yaml") if path.name != "evaluate.yaml")


class _RepeatedKey(yaml.YAMLError):
    """A mapping has a key twice, of which YAML's own loader takes the last without a word."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses repeated keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it stands in the file. Raises _RepeatedKey."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _RepeatedKey(f"the key {key.value} is in line {lines[key.value]} and again in line {line}")
            lines[key.value] = line
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"The configuration {path} does not exist.{_near_preset(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {path} cannot be read: {error}.") from None
    except _RepeatedKey as error:
        raise InputError(f"The configuration {path}: {error}; leave one of them out.") from None
    except yaml.YAMLError as error:
        raise InputError(f"The configuration {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise InputError(f"The configuration {path} must be a mapping with the keys run and part.")
    return data


def _near_preset(path: Path) -> str:
    names = {preset.name: preset for preset in presets()}
    near = nearest(path.name, names)
    return "" if near is None else f" Did you mean {names[near]}?"


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise InputError(f"--set {override} is not of the form a.b=value, such as run.steps=1000.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}.") from None
    place = data
    for name in names[:-1]:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {name} is {inner!r} in the configuration, it holds no settings.")
        place = inner
    place[names[-1]] = value


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def describe_errors(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    """Say in one line which settings of a model are at fault and what would be right; prefix goes before the names."""
    return " ".join(_describe_error(details, model, prefix) for details in error.errors())


def _describe_error(details: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    names = [str(name) for name in details["loc"]]
    message = details["msg"].removeprefix("Value error, ").rstrip(".")
    if not names:  # a rule over several settings says itself which ones
        return f"{message}."
    key = prefix + ".".join(names)
    if details["type"] == "extra_forbidden":
        known = _known_names(model, names[:-1])
        parent = key[: len(key) - len(names[-1])]
        near = nearest(names[-1], known)
        if near is None:
            return f"{key} is not a setting; known are {', '.join(known)}."
        return f"{key} is not a setting. Did you mean {parent}{near}?"
    if details["type"] == "missing":
        return f"{key} is missing."
    return f"{key} is {details['input']!r}: {message[:1].lower()}{message[1:]}."


def _known_names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        fields = {field.alias or key: field for key, field in model.model_fields.items()}
        annotation = fields[name].annotation if name in fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]  # X, or X | None
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return [field.alias or key for key, field in model.model_fields.items()]
