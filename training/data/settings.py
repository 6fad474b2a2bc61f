"""The section `part.data` of a run: which manifest, how it is cut into buckets, where its cache is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contextanyone_core.errors import InputError
from training.config import load_config
from training.data.buckets import BucketSettings
from training.data.manifest import Split


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
    encoders: Path = Path("contextanyone_core/miniature")
    buckets: BucketSettings = BucketSettings()


def data_settings(config: Path, overrides: Sequence[str] = ()) -> DataSettings:
    """Read the section `part.data` of a run's configuration.

    Raises:
        InputError: the configuration has a mistake, or its part does not train on a manifest.
    """
    part = load_config(config, overrides).part
    data = getattr(part, "data", None)
    if not isinstance(data, DataSettings):
        raise InputError(f"{config} trains the part {part.name}, which reads no manifest; part.name: manifest does.")
    return data
