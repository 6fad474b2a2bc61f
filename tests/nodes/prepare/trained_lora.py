"""A LoRA as training/export.py writes it, and the network that it gives merged, for check_trained_lora.py."""

from __future__ import annotations

from pathlib import Path

import torch

from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import merge_loras, save_lora
from training.lora import trained_lora
from training.trainable import TrainSettings, choose_trained

SHIPPED = Path(__file__).resolve().parents[3] / "contextanyone_core" / "miniature" / "transformer.safetensors"


def prepare(folder: Path) -> None:
    start = load_transformer(SHIPPED, dtype=torch.float32)
    trained = load_transformer(SHIPPED, dtype=torch.float32)
    settings = TrainSettings(lora={"rank": 4, "alpha": 8.0})
    choose_trained(trained, settings)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:  # as if it had been trained
                parameter.add_(torch.randn_like(parameter) * 0.02)
    lora = trained_lora(trained.state_dict(), settings.lora, start.state_dict())
    save_lora(folder / "trained_lora.safetensors", lora, dtype=torch.float32)
    merge_loras(start, [(lora, 1.0)])
    save_transformer(folder / "trained_merged.safetensors", start, dtype=torch.float32)
