"""A small stock Wan T2V, what training/export.py --pose-lora writes of one that was widened, and drawn poses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from contextanyone_core.checkpoints.init import write_starting_checkpoint
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.condition import resized_patch_weight
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.drawing import FULL_SIZE, draw_poses
from contextanyone_core.pose.sequence import PoseSequence
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import PATCHES, Lora, merge_loras, save_lora
from contextanyone_core.weights.lora_updates import LowRank
from training.lora import NEW_PARTS
from training.pose_lora import pose_lora
from training.trainable import TrainSettings, choose_trained

SHIPPED = Path(__file__).resolve().parents[3] / "contextanyone_core" / "miniature" / "transformer.safetensors"
SETTINGS = TrainSettings(lora={"rank": 4, "alpha": 8.0, "full": [*NEW_PARTS, "patch_embedding.*", "head.head.*"]})
SIZES = {"dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 2, "image_dim": None, "emphasize": False}


def prepare(folder: Path) -> None:
    torch.manual_seed(5)
    stock = ContextAnyoneTransformer(replace(ContextAnyoneConfig.wan_1_3b(), **SIZES))
    for parameter in stock.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_file(stock.state_dict(), folder / "stock_wan.safetensors")
    write_starting_checkpoint(folder / "stock_wan.safetensors", folder / "wide.safetensors", condition=True)
    start, trained = (load_transformer(folder / "wide.safetensors", dtype=torch.float32) for _ in range(2))
    choose_trained(trained, SETTINGS)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:  # as if it had been trained
                parameter.add_(torch.randn_like(parameter) * 0.05)
    lora, _ = pose_lora(trained, SETTINGS, start)
    save_lora(folder / "pose_lora.safetensors", lora, dtype=torch.float32)
    start.load_state_dict(merged(trained))
    save_transformer(folder / "trained.safetensors", start, dtype=torch.float32)
    prepare_ours(folder)
    points = np.random.default_rng(0).uniform(4, 44, (5, 18, 2))
    body = np.concatenate([points, np.ones((5, 18, 1))], axis=-1)
    drawn = draw_poses(PoseSequence(body, 64, 48, 16.0), FULL_SIZE)
    save_file({"poses": torch.from_numpy(drawn).float() / 255}, folder / "drawn.safetensors")


def prepare_ours(folder: Path) -> None:
    """The miniature without condition channels, a LoRA that adds them, and the network that both give."""
    shipped = load_transformer(SHIPPED, dtype=torch.float32)
    network = ContextAnyoneTransformer(replace(shipped.config, condition_dim=0))
    state = shipped.state_dict()
    network.load_state_dict(state | {PATCHES: resized_patch_weight(state[PATCHES], 16)})
    save_transformer(folder / "narrow_ours.safetensors", network, dtype=torch.float32)
    update = LowRank(torch.randn(8, 192), 0.05 * torch.randn(network.config.dim, 8))
    shape = (network.config.dim, 48, 1, 2, 2)
    lora = Lora("", {"patch_embedding": update}, {}, patch_shape=shape)
    save_lora(folder / "ours_lora.safetensors", lora, dtype=torch.float32)
    merge_loras(network, [(lora, 1.0)])
    save_transformer(folder / "wide_ours.safetensors", network, dtype=torch.float32)


def merged(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network that peft adapts, its updates added, independent of how they are exported."""
    state = network.state_dict()
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    scale = SETTINGS.lora.alpha / SETTINGS.lora.rank
    for name in state:
        if name.endswith(".lora_A.default.weight"):
            up = state[name.replace(".lora_A.", ".lora_B.")]
            plain[name.replace(".lora_A.default.", ".")] += scale * up @ state[name]
    return plain
