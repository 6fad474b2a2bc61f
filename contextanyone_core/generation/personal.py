"""Using a personal file: whether it fits the base model, and where its person is in the prompt and in the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..model.regions import Regions, Tokens
from ..prompts import rows_naming
from ..weights.naming import COMFYUI_PREFIX
from ..weights.personal_file import PersonalFile

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
Shape = tuple[int, ...]


def require_fit(file: str, lora: Mapping[str, Shape], base: Mapping[str, Shape]) -> None:
    """Refuse a personal file that was trained on a base of another size; a LoRA loader would skip what does not fit.

    Args:
        file: its name, for the message.
        lora: shapes of its tensors, which are in ComfyUI's form.
        base: shapes of the base's tensors by Wan's names.

    Raises:
        CheckpointError: naming the first weight that differs.
    """
    for key, (rank, into, *_) in (
        (key, shape) for key, shape in lora.items() if key.endswith(_DOWN) and len(shape) > 1
    ):
        module = key.removesuffix(_DOWN)
        trained = (lora.get(module + _UP, (0,))[0], into)
        weight = f"{module.removeprefix(COMFYUI_PREFIX)}.weight"
        here = base.get(weight)
        if here is None or (len(here) == 2 and here != trained):
            found = "no such weight" if here is None else f"{here[0]} x {here[1]} there"
            raise CheckpointError(
                f"{file} was trained on a base of another size: its update of {weight} (rank {rank}) is for "
                f"{trained[0]} x {trained[1]}, and this model has {found}. Use the base that it was trained on."
            )


def other_base(file: str, personal: PersonalFile, base_hash: str) -> str:
    """A warning if the base is not the one that a personal file was trained on, else empty."""
    if personal.base_hash == base_hash:
        return ""
    return (
        f"{file} was trained on another base (SHA-256 {personal.base_hash[:12]}..., this is {base_hash[:12]}...); if "
        "that is another model, and not this one in another form, the likeness may suffer."
    )


def introduction(file: str, personal: PersonalFile) -> str:
    """A sentence on how a prompt names the person of a file."""
    return (
        f'{file} is a {personal.class_name}; write "{personal.trigger}" in the prompt, as in "{personal.caption} ..."'
    )


def named_rows(pieces: Sequence[str], personal: PersonalFile) -> tuple[Tokens, str]:
    """The rows of a prompt's embeddings that name the person, and a warning if there are none, else "".

    Args:
        pieces: the tokens of the video's prompt, by `Tokenizer.split`.
    """
    rows = rows_naming(pieces, personal.name, personal.class_name)
    told = f'The prompt does not say "{personal.trigger}": nothing calls this person, and there are no regions.'
    return rows, "" if rows else told


def person_regions(hull: NDArray[np.float32], rows: Tokens) -> Regions:
    """Regions of one video for mask-guided attention.

    Args:
        hull: where the person is, (t, h, w), by `pose.hull.person_hull`.
        rows: of the prompt, by `named_rows`.
    """
    return Regions(torch.from_numpy(np.ascontiguousarray(hull))[None, None], (rows,))
