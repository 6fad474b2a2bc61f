"""The header of a personal file: a LoRA of one person in ComfyUI's form, with what is needed to use and to judge it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..pose.body import PERSONAL_KEY, Body, body_of_lengths, stated_lengths
from .safetensors_file import read_header

_TEXTS = {
    "name": "name",
    "class": "class_name",
    "caption": "caption",
    "base": "base_hash",
    "preset": "preset",
    "license": "license",
    "consent": "consent",
}
"""Key of the header's object -> field of `PersonalFile`."""


@dataclass(frozen=True, eq=False)
class PersonalFile:
    """What a personal file says of itself.

    Attributes:
        name: the identifier, such as `zuv`. class_name: what the person is, such as `woman`.
        caption: what the trained captions begin with, such as `A zuv woman`; a prompt continues it.
        base_hash: SHA-256 of the file of the base that the LoRA was trained on, in hexadecimal digits.
        body: the person's bone lengths; None if they are not known.
        preset: what was trained, such as `paper`. strength: what of the LoRA as it was trained the file holds as its 1.
        license: what allows its use. consent: the person's agreement; both as the user wrote them.
    """

    name: str
    class_name: str
    caption: str
    base_hash: str
    body: Body | None = None
    preset: str = "paper"
    strength: float = 1.0
    license: str = "unknown"
    consent: str = ""

    @property
    def trigger(self) -> str:
        """The words that mean this person in a prompt."""
        return f"{self.name} {self.class_name}"

    def metadata(self) -> dict[str, str]:
        """The header entry, for `save_lora`."""
        stated: dict[str, object] = {key: getattr(self, field) for key, field in _TEXTS.items()}
        stated["strength"] = self.strength
        stated["bones"] = None if self.body is None else stated_lengths(self.body)
        return {PERSONAL_KEY: json.dumps(stated, ensure_ascii=False)}


def read_personal_file(path: Path) -> PersonalFile:
    """Read a personal file's header; no tensor is read.

    Raises:
        CheckpointError: it is no safetensors file, or a damaged one.
        InputError: it has no such header, or one that is not complete.
    """
    text = read_header(path).metadata.get(PERSONAL_KEY)
    if text is None:
        raise InputError(f"{path.name} is no personal file: its header has no {PERSONAL_KEY}; load it as a LoRA.")
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: {PERSONAL_KEY} in its header is not JSON.") from error
    found = stated if isinstance(stated, dict) else {}
    wrong = [key for key in _TEXTS if not isinstance(found.get(key), str)]
    wrong += [key for key in ("name", "class") if key not in wrong and not found[key].strip()]
    if wrong:
        raise InputError(f"{path.name}: {PERSONAL_KEY} in its header lacks {', '.join(wrong)}; train it again.")
    strength = found.get("strength", 1.0)  # files of before hold what was trained
    if not isinstance(strength, float | int) or isinstance(strength, bool) or not 0 < strength <= 1:
        raise InputError(f"{path.name}: strength in {PERSONAL_KEY} of its header is not above 0 and at most 1.")
    bones = found.get("bones")
    try:
        body = None if bones is None else body_of_lengths(bones)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    return PersonalFile(**{field: found[key] for key, field in _TEXTS.items()}, strength=strength, body=body)
