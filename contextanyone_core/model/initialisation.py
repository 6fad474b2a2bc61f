"""How the weights of a new transformer start."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def initialise(model: nn.Module) -> None:
    """Initialise a transformer as Wan 2.1; new layers start without effect on the output.

    Linear layers Xavier, embeddings of text and time normal (0.02), the head zero, modulation normal / sqrt(dim).
    """
    for name, module in model.named_modules():
        initialise_layer(name, module)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("modulation"):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def initial_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a newly made transformer holds, float32, on the CPU, one layer at a time.

    Each parameter comes once. Random numbers are drawn from torch's global generator in the order in which making the
    whole transformer on the CPU draws them, so the values are the same.

    Args:
        model: a transformer on the meta device, which stays as it is.
    """
    for name, module in model.named_modules():
        if (layer := _real(module)) is not None:
            layer.reset_parameters()
            if not isinstance(layer, nn.Linear | nn.Conv3d):  # those are drawn once more, by `initialise`
                yield from _own(name, layer)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and (layer := _real(module)) is not None:
            initialise_layer(name, layer)
            yield from _own(name, layer)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            drawn = parameter.new_empty(parameter.shape, device="cpu")
            yield name, nn.init.normal_(drawn, std=parameter.shape[-1] ** -0.5)


def _real(module: nn.Module) -> Any:
    """A copy on the CPU, with any content, of a layer that has parameters of its own and fills them itself."""
    filled = hasattr(module, "reset_parameters") and next(module.parameters(recurse=False), None) is not None
    return copy.deepcopy(module).to_empty(device="cpu") if filled else None


def _own(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for leaf, parameter in layer.named_parameters(recurse=False):
        yield f"{name}.{leaf}", parameter.detach()


def initialise_layer(name: str, module: nn.Module) -> None:
    """Fill one Linear or Conv3d layer as `initialise` does, by its name in the transformer; others stay."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if name.startswith(("text_embedding.", "time_embedding.")) and isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
    # Paper: how the CLIP branch and Emphasize-Attention start is not stated. Zero values (v_img) and a zero output
    # (o) leave a pretrained backbone unchanged at step 0; their keys and queries are not zero, so both learn.
    if name.endswith((".v_img", "emphasize_attn.o")) or name == "head.head":
        nn.init.zeros_(module.get_parameter("weight"))
