"""The arms of the comparison: what each trains differently from `personal_miniature.yaml`, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass

_PLAIN = ("part.background_weight=1.0", "part.dilate_mask=0", "part.prior=0.0")
_ONE_STAGE = ("part.stills_steps=null", "part.data.buckets.frames=[17]", "optim.lr_factors={}")
_REGIONS = "regions in training, which no setting asks for yet"


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        changes: settings that differ from the preset; None trains nothing.
        reference: whether a picture of the person is given to the reference stream.
        waits_for: what is missing for the arm to run; "" for nothing.
    """

    name: str
    title: str
    changes: tuple[str, ...] | None
    reference: bool = False
    waits_for: str = ""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "base: text only", None),
        Arm("one_stage", "one stage, clips", (*_PLAIN, *_ONE_STAGE)),
        Arm("two_stages", "two stages", _PLAIN),
        Arm("weakening", "+ background weakening", ("part.prior=0.0",)),
        Arm("masked_attention", "+ mask-guided attention (paper)", ("part.prior=0.0",), waits_for=_REGIONS),
        Arm("prior", "+ prior", ()),
        Arm("regions_pose", "regions: pose", (), waits_for=_REGIONS),
        Arm("reference", "reference alone", None, reference=True),
        Arm("reference_lora", "reference + LoRA", (), reference=True),
    )
}
"""By name, in the order of the table; `reference_lora` generates with the LoRA of `prior`."""

PAIRS = (
    ("two_stages", "one_stage"),
    ("weakening", "two_stages"),
    ("prior", "weakening"),
    ("reference_lora", "reference"),
)
"""What is compared, paired over the characters: the first less the second."""
