"""Settings in YAML files, for runs and for evaluations: reading, `a.b=value` overrides, paths, errors in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, PlainSerializer, ValidationError
from pydantic_core import ErrorDetails

import contextanyone_core
from contextanyone_core.errors import InputError, nearest

PRESETS = Path(__file__).parent / "configs"
_CORE = Path(contextanyone_core.__file__).resolve().parent


def _locate(path: Path) -> Path:
    return _CORE.parent / path if path.parts[:1] == (_CORE.name,) else path


def _as_written(path: Path) -> str:
    return path.relative_to(_CORE.parent).as_posix() if path.is_relative_to(_CORE) else str(path)


ShippedPath = Annotated[Path, AfterValidator(_locate), PlainSerializer(_as_written)]
"""A path that may name a shipped file: `contextanyone_core/...` is inside the package, from any working folder, and is
serialised in this form; every other relative path starts at the working folder."""
MINIATURE = _CORE / "miniature"


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of settings and apply `a.b=value` overrides; nothing is checked but the form.

    Raises:
        InputError: the file is missing or not a YAML mapping, or an override is not of that form.
    """
    data = _read_yaml(path)
    for override in overrides:
        _apply_override(data, override)
    return data


class _RepeatedKey(yaml.YAMLError):
    """A mapping has a key twice; YAML's own loader silently uses the last one."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses repeated keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping node. Raises _RepeatedKey."""
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
        raise InputError(f"The configuration {path} must be a mapping of settings.")
    return data


def presets() -> list[Path]:
    """Return the configurations of runs that come with the trainer; evaluate.yaml beside them is the evaluation's."""
    return sorted(path for path in PRESETS.rglob("*.yaml") if path.name != "evaluate.yaml")


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


def describe_errors(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    """Describe in one line the invalid settings of a model and the valid values; prefix goes before the names."""
    return " ".join(_describe_error(details, model, prefix) for details in error.errors())


def _describe_error(details: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    names = [str(name) for name in details["loc"]]
    message = details["msg"].rstrip(".")
    own = message.removeprefix("Value error, ")  # our rules start with a name, pydantic's with "Input should"
    message = own if own != message else message[:1].lower() + message[1:]
    if not names:  # a rule over several settings names them itself
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
    return f"{key} is {details['input']!r}: {message}."


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
