"""Which file of a folder is which part of a model: by our file names, else by what the headers say."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..model_kinds import ModelKind
from .naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, WAN
from .recognition import Recognised, recognise

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


def find_part(folder: Path, part: str, kind: ModelKind | None = None) -> Path | None:
    """The file or folder of a part, or None.

    A transformer of the model's own name, such as `phantom.safetensors`, comes first, so that models can share their
    encoders; then `<part>.safetensors`, then a diffusers folder `<part>/`, then any weight file directly in the folder
    whose header says that it is one: Wan's and Phantom's downloads need no renaming. Where Wan's or Phantom's own file
    is there, a `transformer.safetensors` of ours is passed over for it.

    Args:
        folder: to look in.
        part: `transformer`, `vae`, `text_encoder` or `image_encoder`.
        kind: the model, where there may be transformers of several.

    Raises:
        CheckpointError: there are several, or a file on the way is damaged.
    """
    model = kind if part == "transformer" else None
    own = [folder / f"{model.name}.safetensors"] if model is not None else []
    places = (*own, folder / f"{part}.safetensors", folder / part)
    named = next((path for path in places if path.is_file() or (path.is_dir() and any(path.iterdir()))), None)
    if named is not None and (model is None or named in own or not _is_ours_for(named, model)):
        return named
    found = [item for item in map(recognise, weight_files(folder)) if item.kind in _KINDS[part]]
    if len(found) > 1 and model is not None:
        found = _of_kind(found, model) or [item for item in found if named in (None, item.path)]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds several files for the {part}: {_listed(found)}. Keep one of them there, or call one "
            f"{part}.safetensors if it is such a file."
        )
    return found[0].path if found else None


def weight_files(folder: Path) -> list[Path]:
    """The models directly in a folder: single files, and indexes in place of their shards."""
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(_ENDINGS) and _whole(path)]


def need_part(folder: Path, part: str, kind: ModelKind | None = None) -> Path:
    """`find_part`, where the part must be there.

    Raises:
        CheckpointError: it is not, or as `find_part`.
    """
    path = find_part(folder, part, kind) if folder.is_dir() else None
    if path is None:
        raise CheckpointError(
            f"{folder / part}.safetensors is missing, and no other file there serves as the {part.replace('_', ' ')}, "
            f"such as Wan's {_PUBLIC[part]}. All files of a model belong into one folder."
        )
    return path


def misnamed_transformer(folder: Path, kind: ModelKind) -> Recognised | None:
    """The transformer that `need_part` finds, where its name says that it has not learnt to read pictures as the model.

    Raises:
        CheckpointError: as `need_part`.
    """
    if not (kind.family and kind.references) or kind.hosted:
        return None
    found = recognise(need_part(folder, "transformer", kind))
    return None if found.kind != WAN or _of_kind([found], kind) else found


def _is_ours_for(path: Path, kind: ModelKind) -> bool:
    """Whether a single file is a ContextAnyone transformer and asked for as another model."""
    return bool(kind.family) and path.is_file() and recognise(path).kind == TRANSFORMER


def _of_kind(found: list[Recognised], kind: ModelKind) -> list[Recognised]:
    """The model's own. Phantom's files look like Wan's: a file's own name tells more than that of the folder of all."""
    if not kind.family:
        return [item for item in found if item.kind == TRANSFORMER]
    marked = [item for item in found if "phantom" in item.path.name.lower()]
    families = {
        item.path: item.family if item in marked or not marked else item.family.replace("Phantom-Wan", "Wan 2.1 T2V")
        for item in found
    }
    return [item for item in found if families[item.path].startswith(kind.family)]


def _whole(path: Path) -> bool:
    """Whether a file is a model or an index of shards, and no shard."""
    return path.is_file() and "-of-" not in path.name


def _listed(found: list[Recognised]) -> str:
    return ", ".join(item.path.name for item in found)
