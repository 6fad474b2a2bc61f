"""What an evaluation is made with: training/configs/miniature/evaluate.yaml and the `--set` of the command line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import GenerationSettings
from contextanyone_core.model_specs import MODELS, ModelSpec
from contextanyone_core.runtime.processor import SLOW_HERE, fast_dtype, is_slow
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance
from training.data.buckets import FrameCount
from training.settings import ShippedPath, describe_errors, read_settings

_LOG = logging.getLogger(__name__)
Dtype = Literal["float32", "bfloat16", "auto"]
VARIANTS = ("reference", "text_only", "shuffled_reference", "emphasis_0", "contradicting_prompt")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantShares(_Section):
    """Share of the characters on which each row is measured; 0 leaves the row out."""

    reference: float = Field(1.0, gt=0, le=1)
    text_only: float = Field(0.25, ge=0, le=1)
    shuffled_reference: float = Field(0.25, ge=0, le=1)
    emphasis_0: float = Field(0.25, ge=0, le=1)
    contradicting_prompt: float = Field(0.25, ge=0, le=1)
    poses: float = Field(0.25, ge=0, le=1)  # each row of the poses, of a model that follows them

    def counts(self, count: int) -> dict[str, int]:
        """How many characters each row gets, of `count`: at least 2 where the share is not 0."""
        shares = {name: float(getattr(self, name)) for name in VARIANTS}
        return {name: _number(share, count) for name, share in shares.items() if share > 0}

    def posed(self, count: int) -> int:
        """How many of `count` characters each row of the poses gets."""
        return _number(self.poses, count) if self.poses > 0 else 0


def _number(share: float, count: int) -> int:
    return min(count, max(2, round(share * count)))


class EvaluateSettings(_Section):
    """The whole of an evaluation apart from seed and count.

    `weights` is a folder with transformer, vae, text_encoder, image_encoder and probe (.safetensors); a file that it
    lacks is taken from the shipped miniature. None is the shipped miniature itself. `model` is as in `contextanyone
    generate`; its transformer may have the model's name (`phantom.safetensors`), and VACE's folder is in diffusers'
    form. With `reference_scale` the guidance is `dual`, else `cfg`. `settled` resolves `auto`.
    """

    model: Literal["contextanyone", "wan", "phantom", "refalign", "bernini", "vace"] = "contextanyone"
    weights: ShippedPath | None = None
    size: int = Field(128, ge=16, multiple_of=16)
    num_frames: FrameCount = Field(17, ge=5)
    batch_size: int = Field(8, ge=1)
    sampler: str = "unipc"
    steps: int = Field(10, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    reference_scale: float | None = Field(None, ge=0)
    shift: float | None = None
    dtype: Dtype = "float32"
    vae_dtype: Dtype = "float32"
    variants: VariantShares = VariantShares()  # type: ignore[call-arg]  # pydantic fills the defaults
    vae_clips: int = Field(16, ge=2)
    probe_frames: int = Field(1000, ge=10)
    threads: int | None = Field(None, ge=1)

    @property
    def spec(self) -> ModelSpec:
        """The model's own options."""
        return MODELS[self.model]

    def settled(self, device: torch.device) -> EvaluateSettings:
        """The same with float32 or bfloat16 in place of `auto`; the log warns of a dtype that is slow on the device."""
        auto = "float32" if fast_dtype(device) is torch.float32 else "bfloat16"
        dtypes = {name: getattr(self, name) for name in ("dtype", "vae_dtype")}
        for name, dtype in dtypes.items():
            if dtype != "auto" and is_slow(torch_dtype(dtype), device):
                _LOG.warning("%s is %s, %s", name, dtype, SLOW_HERE)
        return self.model_copy(update={name: auto if dtype == "auto" else dtype for name, dtype in dtypes.items()})

    def counts(self, count: int) -> dict[str, int]:
        """How many of `count` characters each row gets that the model has; scene and motion are the first row's."""
        if not self.spec.references:
            return {"text_only": count}
        counts = self.variants.counts(count)
        return {name: number for name, number in counts.items() if self.spec.emphasis or name != "emphasis_0"}

    def generation(self, *, emphasis: float = 1.0) -> GenerationSettings:
        """The same as the pipeline's settings; its seed is not used, every clip has its own.

        Raises:
            InputError: sizes or a sampler that the pipeline does not have.
        """
        scale, reference_scale = self.guidance_scale, self.reference_scale
        return GenerationSettings(
            num_frames=self.num_frames,
            width=self.size,
            height=self.size,
            steps=self.steps,
            sampler=self.sampler,
            shift=self.shift,
            guidance=CfgGuidance(scale) if reference_scale is None else DualGuidance(scale, reference_scale),
            emphasis=emphasis,
        )


def load_settings(path: Path, overrides: Sequence[str] = ()) -> EvaluateSettings:
    """Read and check a YAML file with `a.b=value` overrides.

    Raises:
        InputError: it cannot be read, has an unknown key or a value that cannot be met; the message names the key.
    """
    data = read_settings(path, overrides)
    try:
        settings = EvaluateSettings.model_validate(data)
    except ValidationError as error:
        raise InputError(describe_errors(error, EvaluateSettings, "")) from None
    settings.generation()
    return settings


def torch_dtype(name: Dtype) -> torch.dtype:
    """torch's dtype of that name; `auto` has none, see `EvaluateSettings.settled`."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
