"""CLIP and DINO by transformers' own classes, from a local folder or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.late_import import host_class
from contextanyone_core.runtime.devices import check_device
from evaluation.metrics.frames import file_digest

Features = NDArray[np.float32]
Kind = Literal["clip", "dino"]

_WANTED = {"clip": "CLIPModel", "dino": "AutoModel"}
_TYPES = {"clip": ("clip",), "dino": ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")}
"""Model types of a config.json that are read: what else loads has its features elsewhere, or random ones."""

_UNUSED = {"clip": ("logit_scale",), "dino": ("pooler.", "embeddings.mask_token")}
"""Beginnings of the names of tensors that no feature depends on."""

_SAVED = (".json", ".safetensors", ".txt", ".model")


class Backbone:
    """A frozen encoder of pictures; a CLIP also encodes text.

    Pictures go through the checkpoint's own processor. Features are the projected embeddings of CLIP, or the class
    token after the last norm of DINO and DINOv2, divided by their length.

    Args:
        kind: "clip" or "dino".
        name: a folder with config.json, model.safetensors, preprocessor_config.json (and a tokenizer), or a hub name.
        device: of torch.
        batch: pictures at a time.

    Raises: InputError if it cannot be loaded, is another kind of model or lacks tensors, or if the device cannot be
        used; MissingDependencyError without transformers.
    """

    def __init__(self, kind: Kind, name: str, device: str = "cpu", batch: int = 16) -> None:
        self.name, self._kind, self._device, self._batch = name, kind, device, batch
        check_device(device)
        try:
            _check_type(kind, name)
            self._processor: Any = host_class("transformers", "AutoImageProcessor").from_pretrained(name)
            model: Any = _whole_model(kind, name)
            self._tokenizer: Any = None
            if kind == "clip":
                self._tokenizer = host_class("transformers", "AutoTokenizer").from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            taken = "" if Path(name).is_dir() else " (there is no such folder, so it was taken as a name of the hub)"
            raise InputError(f"--{kind} {name} cannot be loaded{taken}: {str(error).splitlines()[0]}") from None
        self._model = model.to(device=device, dtype=torch.float32).eval()
        self.revision = _revision(name, model.config)

    @property
    def key(self) -> tuple[str, ...]:
        """What features depend on beside the picture."""
        return (self._kind, self.revision)

    def pictures(self, frames: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of pictures (H, W, 3) uint8 of any sizes: (N, D), of length 1. Equal pictures are encoded once."""
        hashes = [hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).digest() for frame in frames]
        first = {digest: index for index, digest in reversed(list(enumerate(hashes)))}
        order = sorted(first.values())
        encoded = np.concatenate(
            [
                self._encode([frames[index] for index in order[start : start + self._batch]])
                for start in range(0, len(order), self._batch)
            ]
        )
        place = {index: row for row, index in enumerate(order)}
        return encoded[[place[first[digest]] for digest in hashes]]

    def text(self, text: str) -> Features:
        """Features of a text: (1, D), of length 1. A CLIP reads 77 tokens and cuts what is longer."""
        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._text_length())
        return self._run(lambda: _projected(self._model.get_text_features(**tokens.to(self._device))))

    def _text_length(self) -> int:
        return int(self._model.config.text_config.max_position_embeddings)

    def _encode(self, frames: Sequence[NDArray[np.uint8]]) -> Features:
        pixels = self._processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
        values = pixels["pixel_values"].to(self._device)
        if self._kind == "clip":
            return self._run(lambda: _projected(self._model.get_image_features(pixel_values=values)))
        return self._run(lambda: self._model(pixel_values=values).last_hidden_state[:, 0])

    def _run(self, compute: Callable[[], torch.Tensor]) -> Features:
        with torch.inference_mode():
            return np.asarray(torch.nn.functional.normalize(compute().float(), dim=-1).cpu().numpy(), np.float32)


def _check_type(kind: Kind, name: str) -> None:
    """Raise InputError for a model whose features would not be those of its kind."""
    found = host_class("transformers", "AutoConfig").from_pretrained(name).model_type
    if found not in _TYPES[kind]:
        raise InputError(f"--{kind} {name} is a model of type {found}; it must be {' or '.join(_TYPES[kind])}.")


def _whole_model(kind: Kind, name: str) -> Any:
    """The model with every tensor that its features depend on; InputError where the files lack one.

    transformers fills such a one with random numbers, with a warning.
    """
    model, report = host_class("transformers", _WANTED[kind]).from_pretrained(
        name, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    wrong = sorted(key for key in {*report["missing_keys"], *mismatched} if not key.startswith(_UNUSED[kind]))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"--{kind} {name} lacks {wrong[0]}{more}, or has it in another shape; give the whole checkpoint."
        )
    return model


def _projected(found: Any) -> torch.Tensor:
    """The projected embedding: transformers 5 wraps it, older ones return it."""
    tensor: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
    return tensor


def _revision(name: str, config: Any) -> str:
    """The hub's commit, or a hash of a local folder's files."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{config._commit_hash}"
    files = sorted(file for file in folder.iterdir() if file.suffix in _SAVED)
    named = [f"{file.name} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
