"""What the headless pipeline makes of the graphs in check_parity.py, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import picture_to_images, read_picture
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance

PICTURES = ("red_hair_bag_teal_shirt.png", "red_hair_bag_teal_shirt_other_view.png")
EXAMPLES = Path(__file__).resolve().parents[3] / "assets" / "examples"
PROMPT = TwoStagePrompt("A person (with red hair).", "The same person is waving at the beach (at sunset:1.5).")
SIZE = {"num_frames": 5, "width": 64, "height": 48, "steps": 4, "seed": 7, "sampler": "euler"}


def prepare(folder: Path) -> None:
    pipeline = ContextAnyonePipeline.miniature()
    pictures = [picture_to_images(read_picture(EXAMPLES / name)) for name in PICTURES]
    cfg = GenerationSettings(**SIZE)
    dual = GenerationSettings(**SIZE, guidance=DualGuidance(3.0, 2.0), emphasis=0.7, gap=5.0)
    some = (0.6, 0.95)
    some_cfg = GenerationSettings(**SIZE, guidance=CfgGuidance(pipeline.config.cfg_scale, some))
    some_dual = GenerationSettings(**SIZE, guidance=DualGuidance(3.0, 2.0, some), emphasis=0.7, gap=5.0)
    made = {
        "one_interval": pipeline.generate(pictures[:1], PROMPT, some_cfg).latents,
        "dual_interval": pipeline.generate(pictures[:1], PROMPT, some_dual, negative="A city.").latents,
        "one": pipeline.generate(pictures[:1], PROMPT, cfg).latents,
        "two": pipeline.generate(pictures, PROMPT, cfg).latents,
        "dual": pipeline.generate(pictures[:1], PROMPT, dual, negative="A city.").latents,
        "none": pipeline.generate([], PROMPT, cfg).latents,
    }
    config = pipeline.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    raw = {name: (latents * std + mean).contiguous() for name, latents in made.items()}
    encoded = [pipeline.dual_encoder.encode(pictures[0], cfg.size)]
    conditions = pipeline.conditions(encoded, PROMPT)
    raw["redrawn"] = pipeline.reconstruct(conditions, cfg)[0].contiguous()
    raw["std"] = std
    save_file(raw, folder / "parity.safetensors")
