"""The two-stage prompt: how the reference looks, then what happens (paper, data captions)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError

# Full-size Wan is sampled with a long negative prompt; the miniature was not trained with one.
DEFAULT_NEGATIVE = ""
# The default negative prompt of the published inference of Wan 2.1 and Phantom.
WAN_NEGATIVE = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c"
    "\u591a\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c"
    "\u80cc\u666f\u4eba\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)


@dataclass(frozen=True)
class TwoStagePrompt:
    """First-frame prompt and later-frames prompt of one video; either may be empty, not both.

    Args:
        first: describes how the reference looks ("A woman with red hair standing in a park.").
        later: says what happens ("The same woman is waving at the beach.").

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
        # Paper: how the two prompts meet is left open; joined as strings, so that words of both attend to each other.
        return " ".join(part for part in (self.first, self.later) if part.strip())

    def check_length(self, count_tokens: Callable[[str], int], text_len: int) -> None:
        """Refuse a prompt that does not fit; nothing is ever cut.

        Args:
            count_tokens: tokens of a string, end token included, such as `TextEncoder.count_tokens`.
            text_len: the most tokens that the model takes.

        Raises:
            InputError: saying by how many tokens the joined prompt is too long.
        """
        check_text_length("The prompt (first and later together)", self.video_text, count_tokens, text_len)


def check_prompts(prompt: TwoStagePrompt, negative: str, count_tokens: Callable[[str], int], text_len: int) -> None:
    """Refuse a run's prompts where they do not fit.

    Raises:
        InputError: saying by how many tokens a prompt is too long.
    """
    prompt.check_length(count_tokens, text_len)
    check_text_length("The negative prompt", negative, count_tokens, text_len)


def check_text_length(what: str, text: str, count_tokens: Callable[[str], int], text_len: int) -> None:
    """Refuse a text of more than `text_len` tokens (end token included).

    Raises:
        InputError: saying by how many tokens it is too long.
    """
    count = count_tokens(text)
    if count > text_len:
        raise InputError(
            f"{what} has {count} tokens, {count - text_len} more than the {text_len} that the model reads; shorten it."
        )
