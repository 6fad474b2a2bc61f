"""The section `part.data` of a run: which manifest, how it is cut into buckets, where its cache is."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from training.data.buckets import BucketSettings
from training.data.manifest import Split
from training.settings import MINIATURE, ShippedPath


class DataSettings(BaseModel):
    """Data of one run.

    Attributes:
        manifest: a JSONL file (`training.data.manifest.ManifestRow` has the columns).
        split: which of its rows.
        cache: folder of the encoded rows; several manifests and runs may share one.
        encoders: folder of the frozen encoders: vae, text_encoder and, for the CLIP branch, image_encoder.
        buckets: sizes and lengths.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path
    split: Split = "train"
    cache: Path = Path("runs/cache")
    encoders: ShippedPath = MINIATURE
    buckets: BucketSettings = BucketSettings()
