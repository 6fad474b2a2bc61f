"""The arms of the comparison: what each trains differently from `personal_miniature.yaml`, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from training.personal.presets import PRESETS

_LAYERS = "part.train.lora.targets=[" + ", ".join(f"blocks.*.cross_attn.{layer}" for layer in "qkvo") + "]"
_NONE = "part.regions=none"
_PAPER = (_LAYERS, _NONE, "part.prior_beside=0.0", "part.elsewhere=0.0")
_PLAIN = ("part.background_weight=1.0", *_PAPER)
_USED = PRESETS["miniature"].strength
_ONE_STAGE = ("part.stills_steps=null", "part.data.buckets.frames=[17]")


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        changes: settings that differ from the preset; None trains nothing.
        reference: whether a picture of the person is given to the reference stream.
        regions: whether the background reads the prompt without the name when clips are made, too.
        strength: of the LoRA when clips are made.
    """

    name: str
    title: str
    changes: tuple[str, ...] | None
    reference: bool = False
    regions: bool = False
    strength: float = 1.0


ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "base: text only", None),
        Arm("one_stage", "one stage, clips", (*_PLAIN, *_ONE_STAGE)),
        Arm("two_stages", "two stages", _PLAIN),
        Arm("weakening", "+ background weakening", _PAPER),
        Arm("masked_attention", "+ mask-guided attention (paper)", (*_PAPER, "part.regions=mask")),
        Arm("elsewhere", "weakening + other places", (_LAYERS, _NONE, "part.prior_beside=0.0")),
        Arm("cross_attention", "+ prior", (_LAYERS, _NONE)),
        Arm("prior", "+ text embedding", (_NONE,)),
        Arm("regions_pose", "+ regions: pose (preset)", (), regions=True),
        Arm("strength", f"the same at strength {_USED:g}", (), regions=True, strength=_USED),
        Arm("reference", "reference alone", None, reference=True),
        Arm("reference_lora", f"reference + LoRA at {_USED:g}", (), reference=True, regions=True, strength=_USED),
    )
}
"""By name, in the order of the table; `strength` and `reference_lora` generate with the LoRA of `regions_pose`."""

PAIRS = (
    ("two_stages", "one_stage"),
    ("weakening", "two_stages"),
    ("masked_attention", "weakening"),
    ("elsewhere", "weakening"),
    ("cross_attention", "elsewhere"),
    ("prior", "cross_attention"),
    ("prior", "weakening"),
    ("regions_pose", "prior"),
    ("strength", "regions_pose"),
    ("reference_lora", "reference"),
)
"""What is compared, paired over the characters: the first less the second."""
