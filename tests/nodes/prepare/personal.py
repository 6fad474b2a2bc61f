"""A personal file for the miniature, and what the headless pipeline makes of it, for check_personal.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from contextanyone_core.generation.personal import named_rows, person_regions
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import frames_to_images
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.body import body_of
from contextanyone_core.pose.drawing import STYLES
from contextanyone_core.pose.driving import driven_by
from contextanyone_core.pose.hull import person_hull
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.guidance import DualGuidance
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.file_hash import sha256_of
from contextanyone_core.weights.personal_file import PersonalFile

POSES = Path(__file__).resolve().parents[3] / "assets" / "poses"
PROMPT = TwoStagePrompt("A person (with red hair).", "The zuv person is waving (at the beach:1.5), zuv person.")
SIZE = {"num_frames": 5, "width": 64, "height": 48, "steps": 4, "seed": 7, "sampler": "euler"}


def prepare(folder: Path) -> None:
    base = MINIATURE / "transformer.safetensors"
    body = body_of(read_poses(POSES / "walk.json", PoseSource()))
    person = PersonalFile("zuv", "person", "A zuv person", sha256_of(base), body)
    tensors = lora(load_transformer(base))
    save_file(tensors, folder / "zuv.safetensors", person.metadata())
    other = PersonalFile("zuv", "person", "A zuv person", "ab" * 32)
    save_file(tensors, folder / "other_base.safetensors", other.metadata())
    save_file(tensors, folder / "no_person.safetensors")
    key = next(iter(tensors)).rpartition(".lora_")[0]
    wide = {f"{key}.lora_A.weight": torch.zeros(2, 999), f"{key}.lora_B.weight": torch.zeros(999, 2)}
    save_file(wide, folder / "other_size.safetensors", person.metadata())
    save_file(_headless(person), folder / "personal.safetensors")


def lora(model: ContextAnyoneTransformer, rank: int = 4) -> dict[str, torch.Tensor]:
    """Random updates of the cross-attention, as the preset `paper` trains it, in ComfyUI's form."""
    generator, tensors = torch.Generator().manual_seed(5), dict[str, torch.Tensor]()
    for name, weight in model.named_parameters():
        module = name.removesuffix(".weight")
        if ".cross_attn." in name and module.rpartition(".")[2] in "qkvo" and module != name:
            out, into = weight.shape
            key = f"diffusion_model.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.05
            tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def _headless(person: PersonalFile) -> dict[str, torch.Tensor]:
    """Raw latents of the miniature without the file's update: what regions do is compared to the last bit but few."""
    pipeline = ContextAnyonePipeline.miniature()
    poses = driven_by(read_poses(POSES / "dance.json", PoseSource()), None, None, "dance").for_clip(5, (48, 64))
    style = STYLES[pipeline.config.pose_style]
    condition = pipeline.encode_condition(frames_to_images(poses.pictures(style)), None, (48, 64))
    rows, _ = named_rows(pipeline.text_encoder.split(PROMPT.video_text), person)
    regions = person_regions(person_hull(poses.poses, style), rows)
    plain, dual = (GenerationSettings(**SIZE, guidance=guidance) for guidance in (None, DualGuidance(3.0, 2.0)))
    asked = {"posed": (plain, None), "regions": (plain, regions), "dual": (dual, regions)}
    results = {
        name: pipeline.generate([], PROMPT, settings, condition=replace(condition, regions=given)).latents
        for name, (settings, given) in asked.items()
    }
    config = pipeline.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    raw = {name: (latents * std + mean).contiguous() for name, latents in results.items()}
    return raw | {"std": std, "rows": torch.tensor(rows), "hull": regions.person}
