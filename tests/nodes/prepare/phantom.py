"""A tiny file with Phantom's names, and what the headless sampler makes of it, for check_phantom.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.generation.pipeline import Conditions, ContextAnyonePipeline, GenerationSettings, LatentSampler
from contextanyone_core.media.image_io import picture_to_images, read_picture
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance
from contextanyone_core.sampling.reference_modes import TemporalConcatenation
from contextanyone_core.weights.checkpoint import load_transformer

PICTURES = ("red_hair_bag_teal_shirt.png", "red_hair_bag_teal_shirt_other_view.png")
EXAMPLES = Path(__file__).resolve().parents[3] / "assets" / "examples"
PROMPT = TwoStagePrompt("A person (with red hair).", "The same person is waving at the beach (at sunset:1.5).")
SIZE = {"num_frames": 5, "width": 64, "height": 48, "steps": 4, "seed": 7, "sampler": "euler"}
TINY = {"dim": 256, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 128}


def prepare(folder: Path) -> None:
    path = folder / "Phantom-Wan-tiny.safetensors"
    torch.manual_seed(3)
    network = ContextAnyoneTransformer(replace(ContextAnyoneConfig.wan_1_3b(), **TINY, image_dim=None, emphasize=False))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), path)
    sampler = LatentSampler(load_transformer(path, plain=True), TemporalConcatenation)
    std = torch.tensor(sampler.config.latents_std).view(1, -1, 1, 1, 1)
    mean = torch.tensor(sampler.config.latents_mean).view(1, -1, 1, 1, 1)
    one, two = (_conditions(count, mean, std) for count in (1, 2))
    dual, cfg = (GenerationSettings(**SIZE, guidance=kind) for kind in (None, CfgGuidance(3.0)))
    assert DualGuidance() == DualGuidance(7.5, 5.0)
    noise = sampler.noise([7], dual)
    made = {"dual": (one, dual), "cfg": (one, cfg), "two": (two, cfg)}
    raw = {name: sampler.sample_latents(*given, noise) * std + mean for name, given in made.items()}
    save_file(raw | {"std": std}, folder / "phantom.safetensors")


def _conditions(count: int, mean: torch.Tensor, std: torch.Tensor) -> Conditions:
    """Text and latents by the miniature's encoders, padded and normalised as the full-size model's."""
    pipeline = ContextAnyonePipeline.miniature()
    own = pipeline.config
    own_std, own_mean = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (own.latents_std, own.latents_mean))
    latents = []
    for name in PICTURES[:count]:
        encoded = pipeline.dual_encoder.encode(picture_to_images(read_picture(EXAMPLES / name)), (48, 64)).latents
        latents.append((encoded * own_std + own_mean - mean) / std)
    embeds = pipeline.text_encoder.encode([PROMPT.video_text, "A city.", PROMPT.first])
    embeds = torch.nn.functional.pad(embeds, (0, 0, 0, 512 - embeds.shape[1]))
    return Conditions(embeds[:1], embeds[1:2], ReferenceInputs(latents, embeds[2:], []))
