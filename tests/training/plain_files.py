"""Small files of published names and shapes: backbones as Wan-AI and alibaba-pai publish them, without any header."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from contextanyone_core.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.encoders.text import load_text_encoder, save_text_encoder
from contextanyone_core.encoders.vae import build_vae, mini_vae_config, save_vae
from contextanyone_core.model.transformer import ContextAnyoneTransformer


def write_backbone(path: Path, *, control: bool, text_dim: int = 32) -> Path:
    """Wan 2.1 T2V, or Wan2.1-Fun-Control, 128 wide, random: the names and shapes alone say what it is."""
    torch.manual_seed(5)
    network = ContextAnyoneTransformer(
        replace(
            ContextAnyoneConfig.tiny(),
            dim=128,
            ffn_dim=64,
            num_heads=1,
            num_layers=2,
            text_dim=text_dim,
            freq_dim=256,
            image_dim=24 if control else None,
            condition_dim=32 if control else 0,
            emphasize=False,
        )
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    save_file(dict(network.state_dict()), path)
    return path


def write_encoders(folder: Path, tiny: Path) -> Path:
    """The encoders of the tiny stack, with texts and latents as long and wide as published backbones imply."""
    folder.mkdir(exist_ok=True)
    shutil.copy(tiny / "image_encoder.safetensors", folder)
    text = load_text_encoder(tiny / "text_encoder.safetensors")
    text.text_len = ContextAnyoneConfig.wan_1_3b().text_len
    save_text_encoder(text, folder / "text_encoder.safetensors", dtype=torch.float32)
    statistics = {"latents_mean": list(WAN_LATENTS_MEAN), "latents_std": list(WAN_LATENTS_STD)}
    torch.manual_seed(6)
    vae = build_vae(mini_vae_config() | {"base_dim": 4} | statistics)
    save_vae(vae, folder / "vae.safetensors", dtype=torch.float32)
    return folder
