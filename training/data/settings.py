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
        elsewhere: who `prior_class` is by name, such as "A zuv woman"; the 50 prompts about them are encoded too, for
            `part.elsewhere`.
        places: how many of the prompts are taken, from the first on: the first 25 are in the miniature's words, of
            which alone its text encoder has an idea.
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
    elsewhere: str | None = Field(default=None, min_length=1, max_length=120)
    places: int = Field(default=50, ge=1, le=50)

    def prior_prompts(self) -> list[str]:
        """The prompts of the class, `prior_captions` last; none without a class."""
        if self.prior_class is None:
            return []
        article = "An" if self.prior_class[0].lower() in "aeiou" else "A"
        return [*self._about(f"{article} {self.prior_class}"), *self.prior_captions]

    def elsewhere_prompts(self) -> list[str]:
        """The prompts about whom `elsewhere` names; none without it."""
        return [] if self.elsewhere is None else self._about(self.elsewhere)

    def _about(self, who: str) -> list[str]:
        lines = _CLASS_PROMPTS.read_text(encoding="utf-8").splitlines()[: self.places]
        return [line.replace("{class}", who) for line in lines]
