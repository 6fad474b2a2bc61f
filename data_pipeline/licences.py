"""Models that chains may use, with the licences of their weights, and which may be used commercially."""

from __future__ import annotations

import re
from dataclasses import dataclass

from contextanyone_core.errors import InputError


@dataclass(frozen=True)
class Licence:
    """A licence's name, and whether it allows commercial use of the model and of what it makes."""

    name: str
    commercial: bool


@dataclass(frozen=True)
class ModelCard:
    """A model of a chain: its name or folder, its revision, and what it is used for."""

    name: str
    revision: str
    purpose: str

    @property
    def licence(self) -> Licence:
        """As `LICENCES` has it; a name that it does not have is "not known", and not for commercial use."""
        return LICENCES.get(self.name, Licence("not known", False))


_APACHE, _MIT = Licence("Apache-2.0", True), Licence("MIT", True)
LICENCES = {
    "world": Licence("Apache-2.0 (this repository)", True),
    "opencv-hog-people": _APACHE,
    "dlib-hog-face": Licence("BSL-1.0", True),
    "dlib-face-recognition-resnet": Licence("CC0-1.0", True),
    "mediapipe-blazepose-full": _APACHE,
    "mediapipe-selfie": _APACHE,
    "transnetv2": _MIT,
    "rapidocr-pp-ocr": _APACHE,
    "PekingU/rtdetr_r50vd": _APACHE,
    "PekingU/rtdetr_v2_r50vd": _APACHE,
    "facebook/sam-vit-base": _APACHE,
    "facebook/sam-vit-huge": _APACHE,
    "facebook/dinov2-small": _APACHE,
    "facebook/dinov2-base": _APACHE,
    "facebook/dinov2-large": _APACHE,
    "Qwen/Qwen2.5-VL-7B-Instruct": _APACHE,
    "Qwen/Qwen2.5-VL-3B-Instruct": Licence("Qwen Research License", False),
    "Qwen/Qwen3-VL-8B-Instruct": _APACHE,
    "black-forest-labs/FLUX.2-klein-4B": _APACHE,
    "black-forest-labs/FLUX.2-klein-9B": Licence("FLUX Non-Commercial License", False),
    "Qwen/Qwen-Image-Edit": _APACHE,
    "Qwen/Qwen-Image-Edit-2509": _APACHE,
    "insightface/antelopev2": Licence("non-commercial research only", False),
}
"""Licences of weights by the model's name, as its publisher states them; check them again before you rely on one."""

_UNKNOWN = {"", "unknown", "not known", "unclear", "unspecified", "not specified"}
_LIMITED = re.compile(
    r"\bnc\b|bync|\b(non|no|not|not for) ?commercial"
    r"|\b(research|academic|educational|personal|evaluation)( (use|only|purposes|licen[cs]e)|$)"
)


def refuse_non_commercial(cards: tuple[ModelCard, ...], sources: str) -> None:
    """Refuse a run that may not be used commercially.

    Args:
        cards: the chain's models. sources: the licence of the videos.

    Raises:
        InputError: a model's licence, or that of the sources, does not allow it or is not known.
    """
    for card in cards:
        if not card.licence.commercial:
            raise InputError(
                f"--commercial: {card.name} ({card.purpose}) has the licence {card.licence.name}; "
                "choose another model in the configuration."
            )
    if not allows_commercial_use(sources):
        raise InputError(f"--commercial: the sources' licence is {sources}; give sources whose licence allows it.")


def allows_commercial_use(licence: str) -> bool:
    """Whether nothing in the name of a licence of videos speaks against commercial use, however it is written."""
    return not is_unknown(licence) and _LIMITED.search(_words(licence)) is None


def is_unknown(licence: str) -> bool:
    """Whether the name of a licence says that none is known."""
    return _words(licence) in _UNKNOWN


def _words(licence: str) -> str:
    """In small letters, one space between words; hyphens and underscores are spaces too."""
    return re.sub(r"[\W_]+", " ", licence.lower()).strip()
