"""The two-stage prompt: the look of the first frame, then the action (paper, data captions)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .errors import InputError

# Full-size Wan is sampled with a long negative prompt; the miniature was not trained with one.
DEFAULT_NEGATIVE = ""
# The default negative prompt of the published inference of Wan 2.1 and Phantom.
WAN_NEGATIVE = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c"
    "\u591a\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c"
    "\u80cc\u666f\u4eba\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)


_SPACE = "\u2581"  # how sentencepiece writes the space before a word
# Letters and digits, but for those of scripts that write no space between words, or particles beside them.
_IN_WORDS = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"


@dataclass(frozen=True)
class TwoStagePrompt:
    """First-frame prompt and later-frames prompt of one video; either may be empty, not both.

    Args:
        first: describes the look of the character ("A woman with red hair standing in a park.").
        later: describes the action ("The same woman is waving at the beach.").

    Raises:
        InputError: both prompts are empty.
    """

    first: str
    later: str = ""

    def __post_init__(self) -> None:
        if not self.first.strip() and not self.later.strip():
            raise InputError("The prompt is empty; describe the first frame (first), what happens (later), or both.")

    @property
    def reference_text(self) -> str:
        """The prompt of the reference stream: the first-frame prompt, or the only one given."""
        return self.first if self.first.strip() else self.later

    @property
    def video_text(self) -> str:
        """The prompt of the video stream: both prompts joined by one space and encoded once, or the only one given."""
        # Paper: how the prompts are combined is not stated; joined as text, so that all tokens attend to each other.
        return " ".join(part for part in (self.first, self.later) if part.strip())

    def check_length(self, count_tokens: Callable[[str], int], text_len: int) -> None:
        """Check the length of the prompts; they are never truncated.

        Args:
            count_tokens: counts the tokens of a text, end token included, such as `TextEncoder.count_tokens`.
            text_len: maximum number of tokens of the model.

        Raises:
            InputError: the joined prompt is too long; the message states by how many tokens.
        """
        check_text_length("The prompt (first and later together)", self.video_text, count_tokens, text_len)


def rows_naming(pieces: Sequence[str], name: str, class_name: str) -> tuple[int, ...]:
    """Indices of the tokens that name a person in a text: those of the name, and of the class name where it follows.

    Case is ignored, and a name inside a longer word does not count. A token that lies only partly in the name counts.

    Args:
        pieces: the tokens as sentencepiece writes them, such as `Tokenizer.split`.
    """
    surfaces = [_surface(piece) for piece in pieces]
    text = b"".join(surfaces).decode(errors="surrogateescape")
    words = [r"\s+".join(map(re.escape, part.split())) for part in (name, class_name)]
    pattern = rf"(?<!{_IN_WORDS}){words[0]}(?:\s+{words[1]})?(?!{_IN_WORDS})"
    spans = [
        tuple(len(text[:place].encode(errors="surrogateescape")) for place in found.span())
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]
    ends = accumulate(map(len, surfaces))
    return tuple(
        place
        for place, (stop, surface) in enumerate(zip(ends, surfaces, strict=True))
        if any(start < stop and stop - len(surface.lstrip()) < end for start, end in spans)
    )


def _surface(piece: str) -> bytes:
    """The text of a token in UTF-8; a rare character is several tokens of one byte each."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ").encode()


def check_prompts(prompt: TwoStagePrompt, negative: str, count_tokens: Callable[[str], int], text_len: int) -> None:
    """Check the length of a run's prompts, the negative one included.

    Raises:
        InputError: a prompt is too long; the message states by how many tokens.
    """
    prompt.check_length(count_tokens, text_len)
    check_text_length("The negative prompt", negative, count_tokens, text_len)


def check_text_length(what: str, text: str, count_tokens: Callable[[str], int], text_len: int) -> None:
    """Check that a text has at most `text_len` tokens, end token included.

    Raises:
        InputError: the text is too long; the message states by how many tokens.
    """
    count = count_tokens(text)
    if count > text_len:
        raise InputError(
            f"{what} has {count} tokens, {count - text_len} more than the {text_len} that the model reads; shorten it."
        )
