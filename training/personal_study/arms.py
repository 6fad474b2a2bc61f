"""The arms of the comparison: what each trains differently from `personal_miniature.yaml`, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from training.config import load_config
from training.parts.manifest import Settings
from training.personal.presets import PRESETS

_LAYERS = "part.train.lora.targets=[" + ", ".join(f"blocks.*.cross_attn.{layer}" for layer in "qkvo") + "]"
_NO_WEAKENING, _NO_REGIONS, _NO_PRIOR = "part.background_weight=1.0", "part.regions=none", "part.prior_beside=0.0"
_MASK = "part.regions=mask"
_ONE_STAGE = ("part.stills_steps=null", "part.data.buckets.frames=[17]")


def _folded() -> float:
    """What of the trained LoRA the preset's file holds as strength 1."""
    part = load_config(PRESETS["miniature"].config).part
    assert isinstance(part, Settings)
    assert part.personal is not None
    return part.personal.strength


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        changes: settings that differ from the preset; None trains nothing.
        reference: whether a picture of the person is given to the reference stream.
        regions: whether the background reads the prompt without the name when clips are made, too.
        strength: of the personal file when clips are made.
        rendered: whether the clips are the renderings of what is asked, encoded and decoded: the ceiling.
    """

    name: str
    title: str
    changes: tuple[str, ...] | None
    reference: bool = False
    regions: bool = False
    strength: float = 1.0
    rendered: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "base: text only", None),
        Arm("one_stage", "one stage, clips", (_NO_WEAKENING, _NO_REGIONS, _NO_PRIOR, *_ONE_STAGE)),
        Arm("two_stages", "two stages", (_NO_WEAKENING, _NO_REGIONS, _NO_PRIOR)),
        Arm("weakening", "+ background weakening", (_NO_REGIONS, _NO_PRIOR)),
        Arm("masked_attention", "+ mask-guided attention", (_MASK, _NO_PRIOR)),
        Arm("prior", "+ prior", (_MASK,)),
        Arm("regions_pose", "+ regions: pose (preset)", (), regions=True),
        Arm("unfolded", "the same as trained, not folded", (), regions=True, strength=1 / _folded()),
        Arm("reference", "reference alone", None, reference=True),
        Arm("reference_lora", "reference + LoRA", (), reference=True, regions=True),
        Arm("paper", "the paper's layers and captions", (_LAYERS, _MASK, "part.elsewhere=0.0")),
        Arm("round_trip", "ceiling: rendered, through the VAE", None, rendered=True),
    )
}
"""By name, in the order of the table; `unfolded` and `reference_lora` generate with the LoRA of `regions_pose`.

From `one_stage` to `regions_pose` each arm has what the one before it has, and all have what this text encoder needs
for a name to call anybody: the text's projection among the layers, and prompts of other places.
"""

PAIRS = (
    ("two_stages", "one_stage"),
    ("weakening", "two_stages"),
    ("masked_attention", "weakening"),
    ("prior", "masked_attention"),
    ("prior", "two_stages"),
    ("regions_pose", "prior"),
    ("regions_pose", "two_stages"),
    ("regions_pose", "weakening"),
    ("regions_pose", "base"),
    ("regions_pose", "paper"),
    ("regions_pose", "unfolded"),
    ("reference_lora", "reference"),
)
"""What is compared, paired over the characters: the first less the second."""
