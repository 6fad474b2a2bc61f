"""What `personalize.py` trains by each `--preset`: a configuration and what differs from it, and the sheet's places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.settings import PRESETS as CONFIGS


@dataclass(frozen=True)
class Preset:
    """A configuration, and the settings that differ from it.

    `shipped`: the base and its encoders come with the package, and clips show the character world's drawn people, whom
    estimators for photographs do not find.
    """

    config: Path
    changes: tuple[str, ...] = ()
    shipped: bool = False


_ATTENTIONS = [f"blocks.*.{kind}_attn.{layer}" for kind in ("cross", "self") for layer in "qkvo"]

PRESETS = {
    "paper": Preset(CONFIGS / "personal_1.3b.yaml"),
    "strong": Preset(
        CONFIGS / "personal_1.3b.yaml",
        (f"part.train.lora.targets=[{', '.join([*_ATTENTIONS, 'blocks.*.ffn.*'])}]",),
    ),
    "miniature": Preset(CONFIGS / "personal_miniature.yaml", shipped=True),
}

PLACES = ("at the beach at sunset", "in the snow by day", "in the city at night")
"""Where the sheet shows the person: words of the miniature's captions, which say the same at full size."""
