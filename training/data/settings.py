"""The section `part.data` of a run: which manifest, how it is cut into buckets, where its cache is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training.data.buckets import BucketSettings
from training.data.manifest import Split
from training.settings import MINIATURE, ShippedPath

_CLASS_PROMPTS = Path(__file__).with_name("class_prompts.txt")


class DataSettings(BaseModel):
    """Data of one run.

    Attributes:
        manifest: a JSONL file (`training.data.manifest.ManifestRow` has the columns).
        split: which of its rows.
        cache: folder of the encoded rows; several manifests and runs may share one.
        encoders: folder of the frozen encoders: vae, text_encoder and, for the CLIP branch, image_encoder.
        buckets: sizes and lengths.
        prior_class: a noun such as "woman"; the 50 prompts of `class_prompts.txt` about one are encoded too, for
            `part.prior`.
        prior_captions: the data's captions about one of the class without the name; half of the prior's prompts are
            of these, so that the name and nothing else in them means the person.
        poses: how the rows' poses are drawn and encoded for the condition channels: as Wan2.1-Fun-Control knows them,
            or on grey as the miniature does. None: poses are not used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path
    split: Split = "train"
    cache: Path = Path("runs/cache")
    encoders: ShippedPath = MINIATURE
    buckets: BucketSettings = BucketSettings()
    poses: Literal["full", "miniature"] | None = None
    prior_class: str | None = Field(default=None, min_length=1, max_length=60)
    prior_captions: tuple[str, ...] = ()

    def prior_prompts(self) -> list[str]:
        """The prompts of the class, `prior_captions` last; none without a class."""
        if self.prior_class is None:
            return []
        lines = _CLASS_PROMPTS.read_text(encoding="utf-8").splitlines()
        article = "An" if self.prior_class[0].lower() in "aeiou" else "A"
        return [*(line.replace("{class}", f"{article} {self.prior_class}") for line in lines), *self.prior_captions]
