"""The kit `gpu`: full-size models through transformers, diffusers and a server. Not run with real weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.late_import import host_class
from contextanyone_core.pose.blazepose import BlazePose
from data_pipeline.config import GpuModels
from data_pipeline.engine.slots import own_card
from data_pipeline.licences import ModelCard
from data_pipeline.models.pictures import Parts, Picture, Vector
from data_pipeline.models.protocols import Box
from data_pipeline.models.server import VisionServer
from data_pipeline.models.tracks import Found
from data_pipeline.rows import digest

_SCORE = 0.5  # of a detection


def _pretrained(name: str, place: str, settings: GpuModels) -> Any:
    """A class's `from_pretrained`, with one line where there are no such weights."""
    try:
        return host_class("transformers", name).from_pretrained(place, revision=settings.revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place} cannot be loaded as {name}: {reason} Give a folder, or a name of the hub.") from None


class TransformersDetector:
    """RT-DETR, or another detector with the class `person`. Raises: InputError if it cannot be loaded."""

    def __init__(self, settings: GpuModels) -> None:
        self._processor = _pretrained("AutoImageProcessor", settings.detector, settings)
        self._model = _pretrained("AutoModelForObjectDetection", settings.detector, settings)
        self._model = self._model.to(settings.device).eval()

    def people(self, picture: Picture) -> list[Found]:
        """As `Detector.people`."""
        import torch

        inputs = self._processor(images=picture, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        height, width = picture.shape[:2]
        found = self._processor.post_process_object_detection(
            outputs, threshold=_SCORE, target_sizes=[(height, width)]
        )[0]
        names = self._model.config.id2label
        mine = torch.tensor([names[int(label)] == "person" for label in found["labels"]], dtype=torch.bool)
        boxes = (found["boxes"].cpu()[mine] / torch.tensor([width, height, width, height])).clamp(0, 1)
        pairs = zip(boxes.tolist(), found["scores"].cpu()[mine].tolist(), strict=True)
        return [Found((box[0], box[1], box[2], box[3]), score) for box, score in pairs]


class SamMasks:
    """SAM, given the box. Raises: InputError if it cannot be loaded."""

    def __init__(self, settings: GpuModels) -> None:
        self._processor = _pretrained("SamProcessor", settings.segmenter, settings)
        self._model = _pretrained("SamModel", settings.segmenter, settings).to(settings.device).eval()

    def mask(self, picture: Picture, box: Box) -> Picture:
        """As `Segmenter.mask`."""
        import torch

        height, width = picture.shape[:2]
        pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        inputs = self._processor(picture, input_boxes=[[pixels]], return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs, multimask_output=False)
        masks = self._processor.image_processor.post_process_masks(
            outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        return np.where(masks[0][0, 0].numpy(), 255, 0).astype(np.uint8)


class DinoVectors:
    """DINOv2's class token of the person's crop, of length 1. Raises: InputError if it cannot be loaded."""

    def __init__(self, settings: GpuModels) -> None:
        self.limit = settings.same_person
        self._processor = _pretrained("AutoImageProcessor", settings.embedder, settings)
        self._model = _pretrained("AutoModel", settings.embedder, settings).to(settings.device).eval()

    def vector(self, picture: Picture, box: Box) -> Vector | None:
        """As `Embedder.vector`; None for a box without a pixel."""
        import torch

        height, width = picture.shape[:2]
        x0, y0, x1, y1 = (round(value * side) for value, side in zip(box, (width, height) * 2, strict=True))
        if x1 <= x0 or y1 <= y0:
            return None
        inputs = self._processor(images=picture[y0:y1, x0:x1], return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            token = self._model(**inputs).last_hidden_state[0, 0].float().cpu().numpy()
        return np.asarray(token / max(float(np.linalg.norm(token)), 1e-12), np.float32)


class DiffusersEditor:
    """FLUX.2-klein, Qwen-Image-Edit or another of diffusers' pipelines that takes a picture and words.

    Raises: InputError if it cannot be loaded.
    """

    def __init__(self, settings: GpuModels) -> None:
        import torch

        from contextanyone_core.runtime.processor import card_dtype  # it imports torch

        kind = host_class("diffusers", "DiffusionPipeline")
        dtype = card_dtype(torch.device(settings.device))
        try:
            self._pipeline = kind.from_pretrained(settings.editor, revision=settings.revision, torch_dtype=dtype)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{settings.editor} cannot be loaded by diffusers: {reason}") from None
        self._steps = settings.edit_steps
        self._pipeline.to(settings.device).set_progress_bar_config(disable=True)

    def edit(self, picture: Picture, instruction: str, seed: int) -> Picture:
        """As `Editor.edit`: the pipeline's own size; noise from the CPU."""
        import torch
        from PIL import Image

        generator = torch.Generator("cpu").manual_seed(seed)
        made = self._pipeline(
            image=Image.fromarray(picture), prompt=instruction, num_inference_steps=self._steps, generator=generator
        ).images[0]
        return np.asarray(made.convert("RGB"), np.uint8)


@dataclass(frozen=True)
class GpuKit:
    """The parts of the chain `gpu`."""

    settings: GpuModels

    @property
    def name(self) -> str:
        """As `Kit.name`."""
        return "gpu"

    @property
    def mark(self) -> str:
        """As `Kit.mark`: where a model runs and where its server is do not change an answer."""
        return digest(self.settings.model_dump(mode="json", exclude={"device", "server", "key_variable", "mediapipe"}))

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """As `Kit.cards`."""
        x = self.settings
        return (
            ModelCard(x.detector, x.revision, "people"),
            ModelCard(x.segmenter, x.revision, "masks"),
            ModelCard(x.embedder, x.revision, "identity"),
            ModelCard(x.vlm, "as the server has it", "captions, verdicts"),
            ModelCard(x.editor, x.revision, "edits"),
            ModelCard("mediapipe-blazepose-full", "mediapipe 0.10.21", "poses"),
        )

    @property
    def gpu(self) -> bool:
        """As `Kit.gpu`."""
        return self.settings.device.startswith("cuda")

    def check(self) -> None:
        """As `Kit.check`."""
        for package in ("transformers", "diffusers", "ai_edge_litert"):
            if find_spec(package) is None:
                raise MissingDependencyError(f"The chain gpu needs {package}. Run: pip install {package}")
        if not self.settings.server.startswith(("http://", "https://")):
            raise InputError(f"gpu.server is {self.settings.server}; it must be like http://localhost:8000/v1.")
        if not self.settings.mediapipe.exists():
            raise InputError(f"gpu.mediapipe {self.settings.mediapipe} does not exist; see docs/POSES.md.")

    def load(self) -> Parts:
        """As `Kit.load`."""
        x = self.settings.model_copy(update={"device": own_card(self.settings.device)})
        server = VisionServer(x.server, x.vlm, x.key_variable)
        detector, masks, poses = TransformersDetector(x), SamMasks(x), BlazePose(x.mediapipe)
        return Parts(detector, masks, poses, DinoVectors(x), server, server, DiffusersEditor(x))
