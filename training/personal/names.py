"""The identifier of a person: letters that are no ordinary word, so that it means nobody else."""

from __future__ import annotations

import re

from contextanyone_core.encoders.text import Tokenizer
from contextanyone_core.errors import InputError

_ARTICLES = ("a", "an", "the")
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
    """Refuse a class that is no word or words, or begins with an article. Raises: InputError."""
    if not _WORD.fullmatch(name):
        raise InputError(f"--class {name!r} must be what the person is, in letters, such as woman.")
    if name.split()[0].lower() in _ARTICLES:
        raise InputError(f"--class {name!r} begins with an article, and prompts add their own; give the noun alone.")


def trigger_caption(name: str, class_name: str) -> str:
    """What the captions begin with: `A zuv woman`."""
    return f"{'An' if name[0].lower() in 'aeiou' else 'A'} {name} {class_name}"


def without_name(caption: str, name: str, class_name: str) -> str:
    """A caption about anyone of the class: `A zuv woman dances.` becomes `A woman dances.`, in any case."""
    article = "n" if class_name[0].lower() in "aeiou" else ""

    def anyone(found: re.Match[str]) -> str:
        if found[1]:
            return f"{found[1]}{article} {class_name}"
        first = class_name[0].upper() if found.start() == 0 and found[0][0].isupper() else class_name[0]
        return first + class_name[1:]

    return _naming(name, class_name).sub(anyone, caption)


def check_caption(caption: str, name: str, class_name: str) -> None:
    """Refuse a caption that does not name the person, or names it without the class too. Raises: InputError."""
    if not _naming(name, class_name).search(caption):
        raise InputError(
            f"--caption {caption!r} does not name the person as '{name} {class_name}'; say so, and describe what must "
            "stay free: the place, the light, what is held; not the face, hair or skin."
        )
    if re.search(rf"\b{re.escape(name)}\b", without_name(caption, name, class_name), re.IGNORECASE):
        raise InputError(
            f"--caption {caption!r} has {name} without {class_name}, where the name cannot be taken out for prompts of "
            f"anyone: say '{name} {class_name}' each time, or he, she or they."
        )


def _naming(name: str, class_name: str) -> re.Pattern[str]:
    """What names the person, with the article, whose letter is its group."""
    return re.compile(rf"\b(?:(a)n? )?{re.escape(name)} {re.escape(class_name)}\b", re.IGNORECASE)
