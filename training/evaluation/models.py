"""The networks of an evaluation, and which files they came from."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline
from contextanyone_core.generation.vace import VacePipeline
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.locate import need_component
from training.evaluation.pose_reader import PoseReader, load_pose_reader
from training.evaluation.probe import Probe, load_probe
from training.evaluation.settings import EvaluateSettings, torch_dtype

_LOG = logging.getLogger(__name__)
_PARTS = ("transformer", "vae", "text_encoder", "image_encoder", "probe")


@dataclass(frozen=True)
class Models:
    """The pipeline that is measured, what measures, and the file of each part; a pose reader if it follows poses."""

    pipeline: ContextAnyonePipeline | VacePipeline
    probe: Probe
    files: dict[str, Path]
    pose_reader: PoseReader | None = None

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return {name: _hash(path) for name, path in self.files.items()}


def measuring_device() -> torch.device:
    """Where an evaluation computes: the first card, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_models(settings: EvaluateSettings) -> Models:
    """Load the parts from the settings' folder, those that it lacks from the shipped miniature. Dtypes are `settled`.

    Raises:
        InputError: the folder does not exist.
        CheckpointError: a part is in neither place, damaged, or does not fit the others.
    """
    if settings.weights is not None and not settings.weights.is_dir():
        raise InputError(f"weights is {settings.weights}, which is not a folder.")
    if settings.model == VacePipeline.spec.name:
        return _load_vace(settings)
    files = {name: _find(name, settings) for name in _PARTS}
    device = measuring_device()
    dtype, plain = torch_dtype(settings.dtype), not settings.spec.emphasis
    transformer = load_transformer(files["transformer"], dtype=dtype, device=device, plain=plain)
    if plain and settings.spec.references and transformer.config.emphasize:
        raise CheckpointError(f"{files['transformer']} is a ContextAnyone transformer; model is {settings.model}.")
    vae = VideoVAE(load_vae(files["vae"], torch_dtype(settings.vae_dtype), device), transformer.config)
    image_encoder = None
    if transformer.config.image_dim is not None:
        image_encoder = load_image_encoder(files["image_encoder"], device=device)
    text_encoder = load_text_encoder(files["text_encoder"], device=device)
    pipeline = ContextAnyonePipeline(transformer, vae, text_encoder, image_encoder, settings.spec)
    reader = None
    if transformer.config.condition_dim and settings.variants.poses > 0:
        files["pose_reader"] = _find("pose_reader", settings)
        reader = load_pose_reader(files["pose_reader"])
    return Models(pipeline, load_probe(files["probe"]), files, reader)


def _load_vace(settings: EvaluateSettings) -> Models:
    """VACE's folder, whose files do not replace each other; all of it in one dtype."""
    if settings.weights is None:
        raise InputError("model is vace, and weights is not given; there are no shipped ones: set weights=FOLDER.")
    device = measuring_device()
    pipeline = VacePipeline.from_folder(settings.weights, device, torch_dtype(settings.dtype))
    files = {name: need_component(settings.weights, name) for name in ("vae", "text_encoder")}
    files |= {"transformer": settings.weights / "transformer", "probe": _find("probe", settings)}
    return Models(pipeline, load_probe(files["probe"]), files)


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's weight files one after the other."""
    found = hashlib.sha256()
    for part in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest()


def _find(name: str, settings: EvaluateSettings) -> Path:
    folder, file = settings.weights, f"{name}.safetensors"
    names = [f"{settings.model}.safetensors", file] if name == "transformer" else [file]
    if folder is not None:
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
        _LOG.info("%s has no %s: taken from the shipped miniature.", folder, file)
    for candidate in names:
        if (MINIATURE / candidate).is_file():
            return MINIATURE / candidate
    places = MINIATURE if folder is None else f"{folder} nor in {MINIATURE}"
    raise CheckpointError(f"{file} is not in {places}; train it or name another folder with --set weights=FOLDER.")
