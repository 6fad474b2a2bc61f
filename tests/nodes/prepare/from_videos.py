"""From raw videos to a network and a clip by the documents' commands, one after the other, for check_from_videos.py.

The network has Wan's names and layout at small width; the VAE is a file as ComfyUI has it, the other encoders are the
miniature's.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from contextanyone_core.cli import main as contextanyone
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.text import TextEncoder, load_text_encoder, save_text_encoder
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import picture_to_images, read_picture
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.weights.name_tables import vae_from_diffusers
from data_pipeline.commands import main as run_pipeline
from training.cache import main as cache
from training.data.manifest import read_manifest
from training.export import main as export
from training.train import main as train

WORLD = Path(__file__).resolve().parents[3] / "data_pipeline" / "configs" / "world.yaml"
PROMPT = TwoStagePrompt("A person with red hair.", "The same person is waving at the beach.")
SIZE = {"num_frames": 5, "width": 64, "height": 48, "steps": 4, "seed": 7, "sampler": "euler"}
WAN = replace(
    ContextAnyoneConfig.tiny(), dim=128, ffn_dim=64, num_heads=1, text_dim=128, freq_dim=256, text_len=512, shift=5.0
)


def prepare(folder: Path) -> None:
    """Leave `transformer.safetensors` and `vae.safetensors`, a reference, and the headless pipeline's latents."""
    manifest, encoders, run = folder / "pairs" / "manifest.jsonl", folder / "encoders", folder / "run"
    assert run_pipeline([str(WORLD), "--out", str(folder / "pairs"), "--limit", "3"]) == 0
    write_encoders(encoders)
    files = {"backbone": replace(WAN, image_dim=None), "clip-branch": replace(WAN, image_dim=128, condition_dim=32)}
    for name, config in files.items():
        save_file(random_weights(replace(config, emphasize=False)), folder / f"{name}.safetensors")
    given = [word for name in files for word in (f"--{name}", str(folder / f"{name}.safetensors"))]
    assert contextanyone(["init", *given, "--out", str(folder / "start.safetensors")]) == 0
    data = {"manifest": str(manifest), "encoders": str(encoders), "cache": str(folder / "cache")}
    config = {
        "run": {"name": "small", "out": str(run), "seed": 0, "steps": 3, "workers": 0, "trackers": []},
        "init": {"from": str(folder / "start.safetensors")},
        "part": {
            "name": "manifest",
            "train": {"lora": {"rank": 4, "alpha": 4}},
            "sample_steps": 1,
            "data": data | {"buckets": {"sizes": ["64x64"], "frames": [1, 17]}},
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert cache(["--config", str(folder / "run.yaml")]) == 0
    assert train(["--config", str(folder / "run.yaml")]) == 0
    exported = folder / "exported"
    assert export([str(run), "--out", str(exported), "--dtype", "fp32"]) == 0
    for path in encoders.iterdir():
        shutil.copy(path, exported)
    reference = manifest.parent / str(read_manifest(manifest).lines[0].row.reference)
    generate(exported, reference, folder)
    for path in (exported / "transformer.safetensors", exported / "vae.safetensors"):
        shutil.copy(path, folder / f"from_videos_{path.name}")
    shutil.copy(reference, folder / "reference.png")


def generate(exported: Path, reference: Path, folder: Path) -> None:
    """A clip by the command line, and the latents of the same by the pipeline."""
    words = ["--reference", str(reference), "--first", PROMPT.first, "--later", PROMPT.later, "--frames", "5"]
    where = ["--weights", str(exported), "--size", "64x48", "--steps", "4", "--out", str(folder / "clip.mp4")]
    assert contextanyone(["generate", *words, *where]) == 0
    pipeline = ContextAnyonePipeline.from_folder(exported)
    picture = picture_to_images(read_picture(reference))
    latents = pipeline.generate([picture], PROMPT, GenerationSettings(**SIZE), negative="").latents
    config = pipeline.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    save_file({"clip": (latents * std + mean).contiguous(), "std": std}, folder / "from_videos.safetensors")


def write_encoders(folder: Path) -> None:
    """The miniature's text and image encoders, and a small VAE under Wan's names, with its statistics."""
    folder.mkdir()
    shutil.copy(MINIATURE / "image_encoder.safetensors", folder)
    short = load_text_encoder(MINIATURE / "text_encoder.safetensors")
    long = TextEncoder(short.model, short.spiece_model, WAN.text_len)  # Wan reads 512 tokens, the miniature 128
    save_text_encoder(long, folder / "text_encoder.safetensors", dtype=torch.float32)
    torch.manual_seed(1)
    vae = vae_from_diffusers(AutoencoderKLWan(base_dim=8, z_dim=16).state_dict())
    save_file({name: tensor.contiguous() for name, tensor in vae.items()}, folder / "vae.safetensors")


def random_weights(config: ContextAnyoneConfig) -> dict[str, torch.Tensor]:
    """A network as it is published: names and shapes, no header."""
    torch.manual_seed(2)
    network = ContextAnyoneTransformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return dict(network.state_dict())
