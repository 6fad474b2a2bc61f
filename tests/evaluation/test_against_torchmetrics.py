"""CLIP-I, CLIP-T and the cosines against torchmetrics' own (of the extra `dev`; it needs no torchvision)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbones import write_clip

from evaluation.metrics.backbones import Backbone
from evaluation.metrics.known_truth import _rank
from evaluation.metrics.similarity import at_gap, to_reference

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

PROMPT = "A woman. The same woman is walking."


def unit(rows: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, 12)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_cosines_are_torchmetrics():
    frames, reference = unit(9, 0), unit(1, 1)
    cosines = torchmetrics.functional.pairwise_cosine_similarity(torch.tensor(frames), torch.tensor(reference))[:, 0]
    assert to_reference(frames, reference) == pytest.approx(cosines.numpy(), abs=1e-6)
    own = torchmetrics.functional.pairwise_cosine_similarity(torch.tensor(frames), zero_diagonal=False)
    for gap in (1, 2, 5):
        assert at_gap(frames, gap) == pytest.approx(float(own.diagonal(gap).mean()), abs=1e-6)


def test_rank_correlations_are_torchmetrics():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 30).astype(np.float64)  # with ties
    measured = truth + rng.normal(size=30)
    expected = torchmetrics.functional.spearman_corrcoef(torch.tensor(measured), torch.tensor(truth))
    assert _rank(truth, measured) == pytest.approx(float(expected), abs=1e-6)


class Unwrapped(torch.nn.Module):
    """A CLIP in transformers 4's form, which torchmetrics 1.9 expects: transformers 5 wraps the features."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *given: torch.Tensor) -> torch.Tensor:
        found = self.model.get_image_features(*given)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    def get_text_features(self, *given: torch.Tensor) -> torch.Tensor:
        found = self.model.get_text_features(*given)
        return found if isinstance(found, torch.Tensor) else found.pooler_output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


def test_clip_t_and_clip_i_are_torchmetrics_clip_score(folder):
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    def loaded() -> tuple[Unwrapped, CLIPProcessor]:
        parts = CLIPImageProcessor.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
        return Unwrapped(CLIPModel.from_pretrained(folder).eval()), CLIPProcessor(*parts)

    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)]
    reference = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    tensors = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    backbone = Backbone("clip", str(folder))
    features = backbone.pictures(frames)
    with torch.no_grad():
        of_text = [float(clip_score(one, PROMPT, loaded)) for one in tensors]
        of_picture = [float(clip_score(one, torch.from_numpy(reference).permute(2, 0, 1), loaded)) for one in tensors]
    text, picture = backbone.text(PROMPT), backbone.pictures([reference])
    # The score is cut at 0, ours is not.
    assert np.maximum(100 * to_reference(features, text), 0) == pytest.approx(of_text, abs=2e-3)
    assert np.maximum(100 * to_reference(features, picture), 0) == pytest.approx(of_picture, abs=2e-3)
    assert max(of_picture) > 1
