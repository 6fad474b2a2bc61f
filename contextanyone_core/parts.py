"""Which file of a folder is which part of a model: by our file names, else by what the headers say."""

from __future__ import annotations

from pathlib import Path

from .errors import CheckpointError
from .kinds import ModelKind
from .weights.naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, WAN
from .weights.recognition import Recognised, recognise

_KINDS = {
    "transformer": (TRANSFORMER, WAN),
    "vae": (VAE,),
    "text_encoder": (TEXT_ENCODER,),
    "image_encoder": (IMAGE_ENCODER,),
}
_ENDINGS = (".safetensors", ".safetensors.index.json", ".pth", ".gguf")


def find_part(folder: Path, part: str, kind: ModelKind | None = None) -> Path | None:
    """The file or folder of a part, or None.

    A transformer of the model's own name, such as `phantom.safetensors`, comes first, so that models can share their
    encoders; then `<part>.safetensors`, then a diffusers folder `<part>/`, then any weight file directly in the folder
    whose header says that it is one: Wan's and Phantom's downloads need no renaming.

    Args:
        folder: to look in.
        part: `transformer`, `vae`, `text_encoder` or `image_encoder`.
        kind: the model, where there may be transformers of several.

    Raises:
        CheckpointError: there are several, or a file on the way is damaged.
    """
    own = [folder / f"{kind.name}.safetensors"] if kind is not None and part == "transformer" else []
    for named in (*own, folder / f"{part}.safetensors", folder / part):
        if named.is_file() or (named.is_dir() and any(named.iterdir())):
            return named
    found = [recognise(path) for path in sorted(folder.iterdir()) if path.name.endswith(_ENDINGS) and _whole(path)]
    found = [item for item in found if item.kind in _KINDS[part]]
    if len(found) > 1 and part == "transformer" and kind is not None:
        found = [item for item in found if item.family.startswith(kind.family)]
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds several files for the {part}: {_listed(found)}. Keep one of them there.")
    return found[0].path if found else None


def need_part(folder: Path, part: str, kind: ModelKind | None = None) -> Path:
    """`find_part`, where the part must be there.

    Raises:
        CheckpointError: it is not, or as `find_part`.
    """
    path = find_part(folder, part, kind) if folder.is_dir() else None
    if path is None:
        raise CheckpointError(
            f"{folder / part}.safetensors is missing; the folder must hold transformer, vae, text_encoder and "
            "image_encoder, each as a .safetensors file, or the public files of such a model."
        )
    return path


def _whole(path: Path) -> bool:
    """Whether a file is a model or an index of shards, and no shard."""
    return path.is_file() and "-of-" not in path.name


def _listed(found: list[Recognised]) -> str:
    return ", ".join(item.path.name for item in found)
