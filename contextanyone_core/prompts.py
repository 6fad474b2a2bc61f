"""The two-stage prompt: how the reference looks, then what happens (paper, data captions; DESIGN 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError

# Full-size Wan is sampled with a long negative prompt; the miniature has never seen one.
DEFAULT_NEGATIVE = ""
# What the published inference of Wan 2.1 and Phantom puts in where no negative prompt is given.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
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
        """What the reference stream reads: the first-frame prompt, or the only one given."""
        return self.first if self.first.strip() else self.later

    @property
    def video_text(self) -> str:
        """What the video stream reads: both prompts joined by one space and encoded once, or the only one given."""
        # Paper: how the two prompts meet is left open; joined as strings, so that words of both attend to each other.
        return " ".join(part for part in (self.first, self.later) if part.strip())

    def check_length(self, count_tokens: Callable[[str], int], text_len: int) -> None:
        """Refuse a prompt that does not fit; nothing is ever cut.

        Args:
            count_tokens: tokens of a string, end token included, such as `TextEncoder.count_tokens`.
            text_len: how many tokens the model reads.

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
