"""A run's configuration: which sources, which chain, which thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from contextanyone_core.errors import InputError
from contextanyone_core.shapes import frames_mistake
from data_pipeline.pixels.shots import LENGTHS
from data_pipeline.world_sources import WorldSet
from training.settings import read_settings


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSettings(_Settings):
    """Where the videos are: a `folder` of files, or the rendered `world`."""

    folder: Path | None = None
    world: WorldSet | None = None

    @model_validator(mode="after")
    def _one(self) -> SourceSettings:
        if (self.folder is None) == (self.world is None):
            raise ValueError("give one of folder and world")
        return self


class EngineSettings(_Settings):
    """How it runs.

    Attributes:
        workers: processes. retries: attempts after the first for a stage that raises.
        max_failed: the share of failed sources above which the command ends with 3.
        row_seconds: a stage that takes longer for one row has failed, and its process is ended.
        stage_seconds: for a row, by stage: what --dry-run and status reckon with where nothing was measured yet.
    """

    workers: int = Field(default=2, ge=1, le=256)
    retries: int = Field(default=2, ge=0, le=10)
    max_failed: float = Field(default=0.01, ge=0, le=1)
    row_seconds: float = Field(default=3600, ge=1, le=10**6)
    stage_seconds: dict[str, Annotated[float, Field(ge=0)]] = {}


class SmallModels(_Settings):
    """Files of the chain `small`.

    Attributes:
        mediapipe: MediaPipe's wheel 0.10.21, or a folder with its .tflite files.
    """

    mediapipe: Path


class GpuModels(_Settings):
    """Models of the chain `gpu`: names of the hub or folders.

    Attributes:
        detector: RT-DETR. segmenter: SAM. embedder: DINOv2. editor: FLUX.2-klein or Qwen-Image-Edit.
        mediapipe: as in `small`; for poses.
        server: address of an OpenAI-compatible server up to and with /v1, and `vlm` its model: captions and verdicts.
        revision: of the models of the hub. same_person: distance of DINOv2's unit vectors.
        device: cuda (of several GPUs each worker has one, in turn), or one for all workers, such as cuda:1 or cpu.
        edit_steps: of the editor: 4 for the distilled FLUX.2-klein, about 40 for Qwen-Image-Edit.
        key_variable: the environment variable that holds the server's key; "" for none.
    """

    detector: str = "PekingU/rtdetr_r50vd"
    segmenter: str = "facebook/sam-vit-huge"
    embedder: str = "facebook/dinov2-base"
    editor: str = "black-forest-labs/FLUX.2-klein-4B"
    edit_steps: int = Field(default=4, ge=1, le=200)
    mediapipe: Path
    server: str
    vlm: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    revision: str = "main"
    device: str = "cuda"
    same_person: float = Field(default=0.9, gt=0)
    key_variable: str = ""


Reference = Literal["edit", "other_shot", "self"]


class PipelineSettings(_Settings):
    """Everything of a run.

    Attributes:
        chain: `pixels` scores shots and uses no model; `world` makes pairs of rendered sources; `small` uses real
            models that fit into packages; `gpu` full-size ones.
        reference: where a pair's reference is from. commercial: refuse models and sources that may not be used so.
        shots: what finds cuts. lengths: of a row, in frames at 16 a second: those of the buckets that the rows are to
            train in, without 1. text: whether text recognition (RapidOCR) scores burnt-in text too.
        consent: of the people shown; it goes into the card.
        source, license: where the videos are from and what allows their use; both go into the manifest and the card.
        filters: thresholds, as `<stage>: {min_<score>: x, max_<score>: y}`. They belong to the chain.
        gate: bounds as in `filters`, each there too and at least as tight: what breaks one enters no stage of models.
    """

    chain: Literal["pixels", "world", "small", "gpu"]
    sources: SourceSettings
    engine: EngineSettings = EngineSettings()
    filters: dict[str, dict[str, float]] = {}
    gate: dict[str, dict[str, float]] = {}
    reference: Reference = "edit"
    commercial: bool = False
    shots: Literal["pyscenedetect", "transnetv2"] = "pyscenedetect"
    lengths: tuple[int, ...] = LENGTHS
    text: bool = False
    small: SmallModels | None = None
    gpu: GpuModels | None = None
    source: str = Field(min_length=1)
    license: str = Field(min_length=1)
    consent: Literal["documented", "not_needed", "unknown"] = "unknown"

    @field_validator("lengths")
    @classmethod
    def _lengths_are_of_clips(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or min(lengths) < 2:
            raise ValueError("it needs at least one length of a clip, such as 33, and no single picture")
        for frames in lengths:
            if mistake := frames_mistake(frames):
                raise ValueError(f"{frames}: {mistake}")
        return lengths

    @field_validator("filters", "gate")
    @classmethod
    def _bounds(cls, filters: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for stage, bounds in filters.items():
            for name in bounds:
                if name[:4] not in ("min_", "max_") or len(name) == 4:
                    raise ValueError(f"{stage}.{name} must begin with min_ or max_ and name a score")
        return filters

    @model_validator(mode="after")
    def _gate_is_looser(self) -> PipelineSettings:
        for stage, bounds in self.gate.items():
            for name, value in bounds.items():
                tight = self.filters.get(stage, {}).get(name)
                rule = f"{stage}.{name}"
                if tight is None:
                    raise ValueError(
                        f"gate.{rule} is {value:g}, but filters.{rule} is not set; set it as tight or tighter"
                    )
                if (tight < value) if name.startswith("min_") else (tight > value):
                    raise ValueError(
                        f"filters.{rule} is {tight:g}, looser than gate.{rule}, {value:g}: rows between the two were "
                        "never given to the models; loosen the gate in the configuration, and run the chain again"
                    )
        return self

    @model_validator(mode="after")
    def _chain_fits(self) -> PipelineSettings:
        if self.chain == "world" and self.sources.world is None:
            raise ValueError("chain world needs sources.world: its models answer from the renderer's ground truth")
        for name in ("small", "gpu"):
            if self.chain == name and getattr(self, name) is None:
                raise ValueError(f"chain {name} needs the block {name}, with its models; docs/DATA_PIPELINE.md has one")
        if self.chain == "small" and self.reference == "edit":
            raise ValueError("chain small has no editor: set reference to other_shot or self")
        return self


def read_config(path: Path, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Read a YAML file, and apply `<stage>.<bound>=<number>` to its thresholds.

    Raises:
        InputError: it is missing, not YAML, or has an impossible value.
    """
    data = read_settings(path)
    try:
        return _with_thresholds(PipelineSettings.model_validate(data), overrides)
    except ValidationError as error:
        raise InputError(f"{path}: {_described(error)}") from None


def changed(settings: PipelineSettings, reference: Reference | None, commercial: bool) -> PipelineSettings:
    """The settings with what the command line gives.

    Raises:
        InputError: the chain does not make such references.
    """
    data = settings.model_dump(mode="json")
    data |= {"reference": reference or settings.reference, "commercial": commercial or settings.commercial}
    try:
        return PipelineSettings.model_validate(data)
    except ValidationError as error:
        raise InputError(_described(error)) from None


def _with_thresholds(settings: PipelineSettings, overrides: Sequence[str]) -> PipelineSettings:
    filters = {stage: dict(bounds) for stage, bounds in settings.filters.items()}
    for override in overrides:
        name, _, value = override.partition("=")
        stage, _, bound = name.partition(".")
        try:
            number = float(value)
        except ValueError:
            raise InputError(
                f"--set {override} must be <stage>.<bound>=<number>, such as person.min_area=0.1."
            ) from None
        filters.setdefault(stage, {})[bound] = number
    data: dict[str, Any] = settings.model_dump(mode="json") | {"filters": filters}
    return PipelineSettings.model_validate(data)


def _described(error: ValidationError) -> str:
    found = error.errors()[0]
    place, message = ".".join(str(part) for part in found["loc"]), found["msg"].removeprefix("Value error, ")
    return f"{place}: {message}." if place else f"{message}."
