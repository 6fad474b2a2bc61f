"""How a file names its tensors: which model it is, in which naming, and each tensor's name in ours."""

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
"""What torch.compile, FSDP and activation checkpointing put into names, wherever a module is wrapped."""
_PREFIX = re.compile(r"(?:(?:model|module|transformer|diffusion_model|first_stage_model|base_model)\.){0,4}")
"""What trainers, DDP, ComfyUI and PEFT put before names."""
_SCALES = ("scale_weight", "scale_input", "weight_scale", "input_scale", "comfy_quant")


@dataclass(frozen=True)
class Naming:
    """One naming of one kind of model.

    Attributes:
        kind, name: what it names, and what it is called: original, diffusers or transformers.
        marks: tensors that only such a file has, all of them.
        table: for a number of layers, names in our files to names in this naming; None where they are the same.
        thirds: for a number of layers, this naming's modules whose tensors are three of ours in a row, to the three.
        ignored: beginnings of names that belong to parts we have no use for.
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
    Naming(  # newer transformers save the tower without its prefix
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
"""Every naming that is read; a row's table leads from our names."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of ours is in a file: under a name, whole or as a third of what is there.

    Attributes:
        name: as in the file.
        third: 0, 1 or 2 of three equal pieces along the first side; None is the whole tensor.
    """

    name: str
    third: int | None = None


@dataclass(frozen=True)
class Named:
    """A file's tensors under our names.

    Attributes:
        naming: how the file names them.
        prefix: what stands before every name, wrappers aside.
        places: our name -> where it is in the file.
        scales: our name -> the name of its scale, for scaled fp8.
        unknown: names, without the prefix, that the naming does not have; they may belong to a relative of the model.
        num_layers: how many layers there are.
    """

    naming: Naming
    prefix: str
    places: dict[str, Place]
    scales: dict[str, str]
    unknown: list[str]
    num_layers: int


def is_lora(names: Iterable[str]) -> bool:
    """Whether the names are those of a LoRA or its relatives: small matrices for a large one, or differences."""
    pattern = r"\.(lora_(A|B|up|down)|lokr_w[12](_[ab])?|hada_w[12]_[ab])\b|\.(diff|diff_b|diff_m)$"
    return any(re.search(pattern, name) for name in names)


def plain_name(name: str) -> str:
    """A name without what torch.compile, FSDP and activation checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def split_prefix(name: str) -> tuple[str, str]:
    """A plain name's prefix, such as `model.diffusion_model.`, and the rest."""
    found = _PREFIX.match(name)
    end = found.end() if found else 0
    return name[:end], name[end:]


def name_tensors(names: Collection[str]) -> Named | None:
    """The places of a file's tensors under our names, or None where the naming is not known."""
    found = find_naming(names)
    return None if found is None else _our_names(names, *found)


def find_naming(names: Iterable[str]) -> tuple[Naming, str] | None:
    """The naming of a file with these tensor names and the prefix that stands before them, or None.

    Of a checkpoint that holds several models, each with a prefix of its own, it is the first in the order of `NAMINGS`.
    """
    given = {plain_name(name) for name in names}
    prefixes = sorted({split_prefix(name)[0] for name in given})
    for naming in NAMINGS:
        for prefix in prefixes:
            if all(prefix + mark in given for mark in naming.marks):
                return naming, prefix
    return None


def _our_names(names: Collection[str], naming: Naming, prefix: str) -> Named:
    """Every tensor's place under its name in our files.

    Args:
        names: tensor names as in the file.
        naming, prefix: as `find_naming` gives them.
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
        elif ours.keys() & places.keys():  # one tensor twice, wrapped and not
            unknown.append(stored)
        else:
            places |= ours
    return Named(naming, prefix, places, scales, unknown, layers)


def _ours(name: str, table: Mapping[str, str] | None) -> str | None:
    return name if table is None else translate(name, table)


def _count_layers(names: Iterable[str], before: str) -> int:
    """Layers 0, 1, ... without a hole; a number far beyond them is no layer."""
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
