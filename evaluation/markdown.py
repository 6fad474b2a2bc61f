"""Text of a user in a Markdown table."""

from __future__ import annotations

import re


def cell(text: str) -> str:
    """A name that a user gave, on one line, with what would end the cell or begin a tag escaped."""
    return re.sub(r"([|<])", r"\\\1", " ".join(text.split()))
