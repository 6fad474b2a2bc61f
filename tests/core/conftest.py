"""Weight files as the public ones are: names spelled out from Wan's structure, shapes at a small width."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer

sys.path.append(str(Path(__file__).parent))  # for the modules of this folder that are no tests

State = dict[str, torch.Tensor]
DIM, FFN, LAYERS, TEXT = 256, 512, 2, 64


def shapes_of_wan(
    dim: int = DIM, ffn: int = FFN, layers: int = LAYERS, in_dim: int = 16, out: int = 16, clip: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Every tensor of Wan 2.1's original transformer file."""

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, in_dim, 1, 2, 2),
        "patch_embedding.bias": (dim,),
    }
    shapes |= linear("text_embedding.0", dim, TEXT) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, 256) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim) | linear("head.head", 4 * out, dim)
    shapes |= {"head.modulation": (1, 2, dim)}
    if clip:
        shapes |= {f"img_emb.proj.0.{leaf}": (clip,) for leaf in ("weight", "bias")}
        shapes |= linear("img_emb.proj.1", clip, clip) | linear("img_emb.proj.3", dim, clip)
        shapes |= {f"img_emb.proj.4.{leaf}": (dim,) for leaf in ("weight", "bias")}
    for layer in range(layers):
        block = f"blocks.{layer}"
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{block}.{attention}.{part}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        if clip:
            shapes |= linear(f"{block}.cross_attn.k_img", dim, dim) | linear(f"{block}.cross_attn.v_img", dim, dim)
            shapes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        shapes |= {f"{block}.norm3.{leaf}": (dim,) for leaf in ("weight", "bias")}
        shapes |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
        shapes[f"{block}.modulation"] = (1, 6, dim)
    return shapes


@pytest.fixture(scope="session")
def wan_shapes() -> Callable[..., dict[str, tuple[int, ...]]]:
    """`shapes_of_wan`."""
    return shapes_of_wan


@pytest.fixture(scope="session")
def wan_state() -> Callable[..., State]:
    """Random weights under Wan's names; arguments as `shapes_of_wan`."""

    def make(**sizes: int) -> State:
        generator = torch.Generator().manual_seed(0)
        return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes_of_wan(**sizes).items()}

    return make


@pytest.fixture(scope="session")
def wan_file(wan_state: Callable[..., State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan 2.1 T2V as one safetensors file with the original names, float32."""
    path = tmp_path_factory.mktemp("wan") / "wan2.1_t2v.safetensors"
    save_file(wan_state(), path)
    return path


@pytest.fixture(scope="session")
def clip_file(wan_state: Callable[..., State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan 2.1 Fun InP: 36 channels in, and the CLIP branch."""
    path = tmp_path_factory.mktemp("fun") / "Wan2.1-Fun-InP.safetensors"
    save_file(wan_state(in_dim=36, clip=48), path)
    return path


@pytest.fixture(scope="session")
def control_file(wan_state: Callable[..., State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan 2.1 Fun Control: 48 channels in (noise, control, start image), and the CLIP branch."""
    path = tmp_path_factory.mktemp("control") / "Wan2.1-Fun-Control.safetensors"
    save_file(wan_state(in_dim=48, clip=48), path)
    return path


def _wan_network(config: ContextAnyoneConfig) -> ContextAnyoneTransformer:
    torch.manual_seed(4)
    model = ContextAnyoneTransformer(config)
    for name, parameter in model.named_parameters():
        # attention has to be sharp, or positions hardly matter
        torch.nn.init.normal_(parameter, mean=2.0 if ".norm_" in name else 0.0, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wan_folder(tiny_folder: Path, tiny_config: ContextAnyoneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny stack whose transformer is plain Wan's: neither CLIP branch nor Emphasize-Attention."""
    folder = tmp_path_factory.mktemp("wan")
    for part in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{part}.safetensors", folder)
    model = _wan_network(replace(tiny_config, image_dim=None, emphasize=False))
    save_transformer(folder / "transformer.safetensors", model, dtype=torch.float32)
    return folder
