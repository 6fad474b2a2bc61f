"""The identifier of a person: letters that are no ordinary word, so that it means nobody else."""

from __future__ import annotations

import re

from contextanyone_core.encoders.text import Tokenizer
from contextanyone_core.errors import InputError

_WORD = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)*")


def check_name(name: str, tokenizer: Tokenizer) -> list[str]:
    """The tokenizer's pieces of a name.

    Raises:
        InputError: it holds anything but letters, or is one piece: an ordinary word, which means something already.
    """
    pieces = tokenizer.split(name)
    shown = " ".join(pieces)
    if not re.fullmatch(r"[^\W\d_]+", name):
        raise InputError(
            f"--name {name} falls into {shown}; digits and signs are common pieces that carry no face: give letters "
            "alone, such as zuv."
        )
    if len([piece for piece in pieces if piece.strip("▁")]) < 2:
        raise InputError(
            f"--name {name} is one piece of the tokenizer, {shown}: an ordinary word, which means something already; "
            "give an invented one, such as zuv."
        )
    return pieces


def check_class(name: str) -> None:
    """Refuse a class that is no word or words. Raises: InputError."""
    if not _WORD.fullmatch(name):
        raise InputError(f"--class {name!r} must be what the person is, in letters, such as woman.")


def trigger_caption(name: str, class_name: str) -> str:
    """What the captions begin with: `A zuv woman`."""
    return f"{'An' if name[0].lower() in 'aeiou' else 'A'} {name} {class_name}"


def without_name(caption: str, name: str, class_name: str) -> str:
    """A caption about anyone of the class: `A zuv woman dances.` becomes `A woman dances.`"""
    article = "n" if class_name[0].lower() in "aeiou" else ""
    named = rf"\b(?:([Aa])n? )?{re.escape(name)} {re.escape(class_name)}\b"
    return re.sub(named, lambda found: f"{found[1]}{article} {class_name}" if found[1] else class_name, caption)


def check_caption(caption: str, name: str, class_name: str) -> None:
    """Refuse a caption that does not name the person. Raises: InputError."""
    if f"{name} {class_name}".lower() not in caption.lower():
        raise InputError(
            f"--caption {caption!r} does not name the person as '{name} {class_name}'; say so, and describe what must "
            "stay free: the place, the light, what is held; not the face, hair or skin."
        )
