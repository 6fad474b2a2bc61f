"""Tensor naming: recognises the model and the naming of a file, and maps its tensors to our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from .name_tables import (
    image_modules,
    image_table,
    image_thirds,
    inverse,
    text_table,
    transformer_table,
    translate,
    vae_table,
)

TRANSFORMER = "contextanyone-transformer"
WAN = "wan-transformer"
VAE = "wan-vae"
TEXT_ENCODER = "umt5-encoder"
IMAGE_ENCODER = "clip-vision"
LORA = "LoRA"

COMFYUI_PREFIX = "diffusion_model."
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Prefixes that torch.compile, FSDP and activation checkpointing insert at wrapped modules."""
_PREFIX = re.compile(r"(?:(?:model|module|transformer|diffusion_model|first_stage_model|base_model)\.){0,4}")
"""Prefixes of names by trainers, DDP, ComfyUI and PEFT."""
_SCALES = (
    *("scale_weight", "scale_input", "weight_scale", "input_scale", "comfy_quant"),
    *("weight_scale_2", "pre_quant_scale"),  # of nvfp4
)


@dataclass(frozen=True)
class Naming:
    """One naming of one kind of model.

    Attributes:
        kind: kind of model.
        name: original, diffusers or transformers.
        marks: tensors that identify it: a file with all of them has this naming.
        table: number of layers -> table from our names to this naming; None if they are the same.
        thirds: number of layers -> fused modules of this naming, each mapped to our three modules.
        ignored: prefixes of names that are not needed.
        layer: what precedes the number of a layer.
    """

    kind: str
    name: str
    marks: tuple[str, ...]
    table: Callable[[int], dict[str, str]] | None
    ignored: tuple[str, ...] = ()
    layer: str = "blocks."
    thirds: Callable[[int], dict[str, tuple[str, str, str]]] | None = None


_CHECKPOINT = ("first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
NAMINGS = (
    Naming(WAN, "original", ("head.modulation",), None, _CHECKPOINT),
    Naming(
        WAN, "diffusers", ("scale_shift_table", "condition_embedder.time_proj.weight"), transformer_table, _CHECKPOINT
    ),
    Naming(VAE, "original", ("decoder.middle.0.residual.0.gamma",), None),
    Naming(VAE, "diffusers", ("decoder.mid_block.resnets.0.norm1.gamma",), lambda _: vae_table()),
    Naming(
        TEXT_ENCODER,
        "transformers",
        ("encoder.block.0.layer.0.SelfAttention.q.weight",),
        None,
        ("encoder.embed_tokens.", "decoder.", "lm_head."),
        "encoder.block.",
    ),
    Naming(TEXT_ENCODER, "original", ("token_embedding.weight", "blocks.0.attn.q.weight"), text_table),
    Naming(
        IMAGE_ENCODER,
        "transformers",
        ("vision_model.embeddings.class_embedding",),
        None,
        (
            "visual_projection.",
            "text_model.",
            "text_projection.",
            "logit_scale",
            "vision_model.embeddings.position_ids",
        ),
        "vision_model.encoder.layers.",
    ),
    Naming(  # newer versions of transformers omit the tower's prefix
        IMAGE_ENCODER,
        "transformers",
        ("embeddings.class_embedding", "pre_layrnorm.weight"),
        lambda layers: {ours: ours.removeprefix("vision_model.") for ours in image_modules(layers)},
        ("embeddings.position_ids",),
        "encoder.layers.",
    ),
    Naming(
        IMAGE_ENCODER,
        "original",
        ("visual.cls_embedding", "visual.pos_embedding"),
        image_table,
        ("textual.", "log_scale", "visual.head"),
        "visual.transformer.",
        image_thirds,
    ),
)
"""All supported namings; a row's table maps from our names."""


@dataclass(frozen=True)
class Place:
    """Location of one of our tensors in a file: a whole tensor, or a third of a fused one.

    Attributes:
        name: as in the file.
        third: 0, 1 or 2 of three equal slices along the first dimension; None is the whole tensor.
    """

    name: str
    third: int | None = None


@dataclass(frozen=True)
class Named:
    """A file's tensors under our names.

    Attributes:
        naming: the file's naming.
        prefix: prefix of every name, without those of wrappers.
        places: our name -> location in the file.
        scales: our name -> name of its scale, for scaled fp8.
        unknown: names, without the prefix, that the naming does not have; they may belong to a variant of the model.
        num_layers: number of layers.
    """

    naming: Naming
    prefix: str
    places: dict[str, Place]
    scales: dict[str, str]
    unknown: list[str]
    num_layers: int


def is_lora(names: Iterable[str]) -> bool:
    """Whether the names are those of a LoRA or a similar method: low-rank factors or differences."""
    pattern = r"\.(lora_(A|B|up|down)|lokr_w[12](_[ab])?|hada_w[12]_[ab])\b|\.(diff|diff_b|diff_m)$"
    return any(re.search(pattern, name) for name in names)


def plain_name(name: str) -> str:
    """A name without the prefixes that torch.compile, FSDP and activation checkpointing insert."""
    return _WRAPPERS.sub("", name)


def split_prefix(name: str) -> tuple[str, str]:
    """A plain name's prefix, such as `model.diffusion_model.`, and the rest."""
    found = _PREFIX.match(name)
    end = found.end() if found else 0
    return name[:end], name[end:]


def name_tensors(names: Collection[str]) -> Named | None:
    """A file's tensors under our names, or None if the naming is unknown."""
    found = find_naming(names)
    return None if found is None else _our_names(names, *found)


def find_naming(names: Iterable[str]) -> tuple[Naming, str] | None:
    """The naming and the prefix of a file with these tensor names, or None.

    If a checkpoint holds several models under different prefixes, the first one in the order of `NAMINGS` is taken.
    """
    given = {plain_name(name) for name in names}
    prefixes = sorted({split_prefix(name)[0] for name in given})
    for naming in NAMINGS:
        for prefix in prefixes:
            if all(prefix + mark in given for mark in naming.marks):
                return naming, prefix
    return None


def _our_names(names: Collection[str], naming: Naming, prefix: str) -> Named:
    """The location of every tensor, by our name.

    Args:
        names: tensor names as in the file.
        naming, prefix: from `find_naming`.
    """
    layers = _count_layers(map(plain_name, names), prefix + naming.layer)
    table = None if naming.table is None else inverse(naming.table(layers))
    thirds = {} if naming.thirds is None else naming.thirds(layers)
    places: dict[str, Place] = {}
    scales: dict[str, str] = {}
    unknown: list[str] = []
    for stored in names:
        name = plain_name(stored)
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or short.startswith(naming.ignored):
            if not name.startswith((prefix, *naming.ignored)):
                unknown.append(name)
            continue
        module, _, leaf = short.rpartition(".")
        if leaf in _SCALES or short == "scaled_fp8":
            scaled = _ours(f"{module}.weight", table)
            if leaf in ("scale_weight", "weight_scale") and scaled:
                scales[scaled] = stored
            continue
        if module in thirds:
            ours = {f"{part}.{leaf}": Place(stored, third) for third, part in enumerate(thirds[module])}
        else:
            whole = _ours(short, table)
            ours = {} if whole is None else {whole: Place(stored)}
        if not ours:
            unknown.append(short)
        elif ours.keys() & places.keys():  # the same tensor twice, once under a wrapper's name
            unknown.append(stored)
        else:
            places |= ours
    return Named(naming, prefix, places, scales, unknown, layers)


def _ours(name: str, table: Mapping[str, str] | None) -> str | None:
    return name if table is None else translate(name, table)


def _count_layers(names: Iterable[str], before: str) -> int:
    """Number of consecutive layers 0, 1, ...; a number after a gap does not count."""
    found = set()
    for name in names:
        if name.startswith(before):
            number = name[len(before) :].partition(".")[0]
            if number.isdecimal() and number.isascii() and len(number) < 6:
                found.add(int(number))
    layers = 0
    while layers in found:
        layers += 1
    return layers
