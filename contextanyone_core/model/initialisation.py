"""How the weights of a new transformer start."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> None:
    """Initialise a transformer as Wan 2.1; new layers start without effect on the output.

    Linear layers Xavier, embeddings of text and time normal (0.02), the head zero, modulation normal / sqrt(dim).
    """
    for name, module in model.named_modules():
        initialise_layer(name, module)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("modulation"):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


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
