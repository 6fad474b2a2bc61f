"""A miniature whose condition channels are random, and what the headless pipeline makes of poses and a start frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import frames_to_images, picture_to_images, read_picture
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.body import body_of
from contextanyone_core.pose.drawing import STYLES
from contextanyone_core.pose.driving import driven_by
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.guidance import DualGuidance
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer

ASSETS = Path(__file__).resolve().parents[3] / "assets"
PICTURE = ASSETS / "examples" / "red_hair_bag_teal_shirt.png"
PROMPT = TwoStagePrompt("A person (with red hair).", "The same person is waving at the beach (at sunset:1.5).")
FRAMES, WIDTH, HEIGHT = 5, 64, 48
SIZE = {"num_frames": FRAMES, "width": WIDTH, "height": HEIGHT, "steps": 4, "seed": 7, "sampler": "euler"}


def prepare(folder: Path) -> None:
    weights = folder / "weights"
    _widen(weights)
    pipeline = ContextAnyonePipeline.from_folder(weights)
    pictures = [picture_to_images(read_picture(PICTURE))]
    first = read_picture(PICTURE)
    first = first[: first.shape[1] * HEIGHT // WIDTH]  # of the video's aspect
    Image.fromarray(first).save(folder / "start.png")
    start = picture_to_images(first)
    dance, drawn = _drawn("dance", None), _drawn("dance", "walk")
    np.save(folder / "drawn.npy", dance)
    plain = GenerationSettings(**SIZE)
    dual = replace(plain, guidance=DualGuidance(3.0, 2.0), emphasis=0.7, gap=5.0)

    def made(frames, start, settings, **more):
        pose = None if frames is None else frames_to_images(frames)
        condition = pipeline.encode_condition(pose, start, plain.size)
        return pipeline.generate(pictures, PROMPT, settings, condition=condition, **more).latents

    results = {
        "none": pipeline.generate(pictures, PROMPT, plain).latents,
        "pose": made(dance, None, plain),
        "fitted": made(drawn, None, plain),
        "start": made(None, start, plain),
        "both": made(dance, start, replace(plain, pose_strength=0.5)),
        "window": made(dance, None, replace(plain, pose_window=(0.25, 0.75))),
        "dual": made(dance, start, dual, negative="A city."),
    }
    config = pipeline.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    raw = {name: (latents * std + mean).contiguous() for name, latents in results.items()}
    save_file(raw | {"std": std}, folder / "pose.safetensors")


def _drawn(name: str, body: str | None) -> np.ndarray:
    """An example pose at the clip's size as the miniature knows it."""
    read = {key: read_poses(ASSETS / "poses" / f"{key}.json", PoseSource()) for key in (name, body) if key}
    whose = None if body is None else body_of(read[body])
    return driven_by(read[name], whose, None, name).for_clip(FRAMES, (HEIGHT, WIDTH)).pictures(STYLES["miniature"])


def _widen(weights: Path) -> None:
    """The shipped miniature with condition channels, their weights random whatever it has."""
    weights.mkdir()
    for part in MINIATURE.glob("*.safetensors"):
        if part.name != "transformer.safetensors":
            (weights / part.name).symlink_to(part)
    shipped = load_transformer(MINIATURE / "transformer.safetensors")
    wide = ContextAnyoneTransformer(replace(shipped.config, condition_dim=32, pose_style="miniature"))
    state = shipped.state_dict()
    old = state["patch_embedding.weight"][:, :16]
    torch.manual_seed(4)
    new = torch.randn(old.shape[0], 32, *old.shape[2:]) * old.std()
    wide.load_state_dict(state | {"patch_embedding.weight": torch.cat([old, new], 1)})
    save_transformer(weights / "transformer.safetensors", wide, dtype=torch.float32)
