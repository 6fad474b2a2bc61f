"""Locating the components of a model in a folder: by our file names, else by the headers of the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import CheckpointError
from ..model_specs import MODELS, ModelSpec
from .naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, WAN
from .recognition import NAMED_FAMILIES, Recognised, recognise

_KINDS = {
    "transformer": (TRANSFORMER, WAN),
    "vae": (VAE,),
    "text_encoder": (TEXT_ENCODER,),
    "image_encoder": (IMAGE_ENCODER,),
}
_PUBLIC = {
    "transformer": "diffusion_pytorch_model.safetensors or Phantom-Wan-1.3B.pth",
    "vae": "Wan2.1_VAE.pth",
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}
_ENDINGS = (".safetensors", ".safetensors.index.json", ".pth", ".gguf")


@dataclass(frozen=True)
class _Search:
    """A search for one component of a model in a folder; `model` is None if any model's component will do."""

    folder: Path
    component: str
    model: ModelSpec | None

    @cached_property
    def named(self) -> Path | None:
        """`<component>.safetensors`, else a non-empty folder `<component>/`."""
        file, inner = self.folder / f"{self.component}.safetensors", self.folder / self.component
        return file if file.is_file() else inner if inner.is_dir() and any(inner.iterdir()) else None

    @cached_property
    def recognised(self) -> list[Recognised]:
        """Files of the folder that are such a component according to their headers."""
        return [item for item in map(recognise, weight_files(self.folder)) if item.kind in _KINDS[self.component]]


def _by_the_models_name(search: _Search) -> list[Path]:
    path = search.folder / f"{search.model.name}.safetensors" if search.model else None
    return [path] if path is not None and path.is_file() else []


def _by_the_components_name(search: _Search) -> list[Path]:
    if search.named is None:
        return []
    others = search.model is not None and search.model.family and search.named.is_file()
    return [] if others and recognise(search.named).kind == TRANSFORMER else [search.named]


def _by_family(search: _Search) -> list[Path]:
    return [] if search.model is None else [item.path for item in _of_model(search.recognised, search.model)]


def _ours_by_the_components_name(search: _Search) -> list[Path]:
    return [] if search.named is None else [search.named]


def _by_header(search: _Search) -> list[Path]:
    return [item.path for item in search.recognised]


_RULES: tuple[Callable[[_Search], list[Path]], ...] = (
    _by_the_models_name,  # phantom.safetensors, so that models can share their encoders
    _by_the_components_name,  # transformer.safetensors or transformer/; not ours, if Wan's or Phantom's is requested
    _by_family,  # any name, where the header and the file's name say that it is the model's
    _ours_by_the_components_name,  # our file nevertheless, if no other is the model's
    _by_header,  # any name, where the header says that it is such a component
)
"""Search rules in order; the first one that finds files decides, and must find exactly one."""


def find_component(folder: Path, component: str, spec: ModelSpec | None = None) -> Path | None:
    """The file or folder of a component, by the first of `_RULES` that finds one, or None.

    Wan's and Phantom's downloads are found without renaming.

    Args:
        folder: the folder to search.
        component: `transformer`, `vae`, `text_encoder` or `image_encoder`.
        spec: the model, if the folder may hold transformers of several.

    Raises:
        CheckpointError: several files match, or a file that was examined is damaged.
    """
    search = _Search(folder, component, spec if component == "transformer" else None)
    found = next(filter(None, (rule(search) for rule in _RULES)), [])
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds several files for the {component}: {', '.join(path.name for path in found)}. Keep one of "
            f"them there, or call one {component}.safetensors if it is such a file."
        )
    return found[0] if found else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files directly in a folder: single files, and the index instead of its shards."""
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(_ENDINGS) and _whole(path)]


def need_component(folder: Path, component: str, spec: ModelSpec | None = None) -> Path:
    """As `find_component`, but the component must exist.

    Raises:
        CheckpointError: the component was not found, or as `find_component`.
    """
    path = find_component(folder, component, spec) if folder.is_dir() else None
    if path is None:
        raise CheckpointError(
            f"{folder / component}.safetensors is missing, and no other file there serves as the "
            f"{component.replace('_', ' ')}, such as Wan's {_PUBLIC[component]}. All files of a model belong into one "
            "folder."
        )
    return path


def model_of(found: Recognised) -> ModelSpec:
    """The model that a recognised transformer is by its header and names; Wan where neither names another.

    Raises:
        CheckpointError: it is no transformer.
    """
    if found.kind == TRANSFORMER:
        return MODELS["contextanyone"]
    if found.kind != WAN:
        raise CheckpointError(f"{found.path} is {found}; a transformer is needed here.")
    named = (spec for spec in MODELS.values() if spec.family and found.family.startswith(spec.family))
    return next(named, MODELS["wan"])


def misnamed_transformer(folder: Path, spec: ModelSpec) -> Recognised | None:
    """The transformer that `need_component` finds, if its name says that it was not trained as this model; else None.

    Raises:
        CheckpointError: as `need_component`.
    """
    if not (spec.family and spec.references) or spec.hosted:
        return None
    found = recognise(need_component(folder, "transformer", spec))
    return None if found.kind != WAN or _of_model([found], spec) else found


def _of_model(found: list[Recognised], model: ModelSpec) -> list[Recognised]:
    """The model's own transformers. If a file is called Phantom or so, the name of the common folder is ignored."""
    if not model.family:
        return [item for item in found if item.kind == TRANSFORMER]
    called = any(item.own_family.startswith(tuple(NAMED_FAMILIES.values())) for item in found)
    return [item for item in found if (item.own_family if called else item.family).startswith(model.family)]


def _whole(path: Path) -> bool:
    """Whether a file is a whole model or an index, not a single shard."""
    return path.is_file() and "-of-" not in path.name
