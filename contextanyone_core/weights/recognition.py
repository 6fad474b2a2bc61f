"""Recognition of a weight file from its header: kind, model family, naming, dtypes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .container import Container, open_container
from .naming import IMAGE_ENCODER, LORA, TEXT_ENCODER, TRANSFORMER, VAE, WAN, Named, is_lora, name_tensors
from .tensors import TensorInfo

_SIZES = {(1536, 30): "1.3B", (5120, 40): "14B", (3072, 30): "5B"}
FAMILY = "family"
"""Key of a header's metadata that names the family where the tensors do not determine it, such as Phantom-Wan."""
NAMED_FAMILIES = {"phantom": "Phantom-Wan", "refalign": "RefAlign", "bernini": "Bernini-R"}
"""Families with the tensors of Wan T2V, by the word (in any capitals) in the name of their file or folder."""
_EXPERT = re.compile(r"(high|low)[_-]?noise", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-0*([2-9]|[1-9]\d+)\.")
_ONE_SHARD = "one shard of several; give their index or their folder"
_INNER_FOLDER = "transformer"  # of diffusers' pipelines, whose own folder has the model's name
FUN_V1_1 = "Wan 2.1 Fun V1.1 Control"
RUNS_HERE = (
    "Wan 2.1 T2V",
    *NAMED_FAMILIES.values(),
    "Wan T2V with a CLIP branch",
    "Wan T2V with condition channels",
    "Wan 2.1 Fun Control",
)
"""How the families begin whose inputs are this project's: 16 channels of latents, 32 of conditions if any, and text."""
_HEAD_ROWS = 64  # of the head of every Wan 2.1: 16 channels of patches of 1 x 2 x 2
# A tensor that only this relative of Wan's transformer has, in any naming.
_RELATIVES = (
    ("vace_patch_embedding.weight", "VACE"),
    ("control_adapter.conv.weight", "Fun Camera"),
    ("casual_audio_encoder.encoder.final_linear.weight", "S2V"),
    ("audio_proj.audio_proj_glob_1.layer.bias", "HuMo"),
    ("face_adapter.fuser_blocks.0.k_norm.weight", "Animate"),
    ("patch_embedding_pose.weight", "SCAIL"),
)
_OTHERS = (
    ("enc.blk.0.attn_q.weight", "a text encoder in llama.cpp's naming"),
    ("text_model.encoder.layers.0.self_attn.q_proj.weight", "a CLIP text encoder"),
    ("double_blocks.0.img_attn.qkv.weight", "a Flux or HunyuanVideo transformer"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("decoder.conv_in.weight", "an image VAE"),
)


@dataclass(frozen=True)
class Recognised:
    """What a weight file is.

    Attributes:
        path: as given.
        form: "safetensors", "safetensors in 3 shards", "a .pth of torch.save" or "GGUF".
        kind: one of `naming`'s kinds (`contextanyone-transformer`, `wan-transformer`, `wan-vae`, `umt5-encoder`,
            `clip-vision`, `LoRA`), another kind that the header states, or None.
        family: model and size, such as "Wan 2.1 T2V 1.3B" or "umT5-XXL". The files of `NAMED_FAMILIES` have the names
            and shapes of Wan T2V: only the name of the file or of its folder tells them apart.
        own_family: the same, but ignoring the folder's name.
        naming: "original", "ComfyUI", "diffusers", "transformers", or "" if unknown.
        stated: whether the header states the kind; otherwise it is inferred from the tensor names.
        dtypes: number of elements of each dtype.
        quantisation: "", "fp8_e4m3fn", "scaled fp8", "nvfp4", "mxfp8", "int8", "GGUF Q4_K" and so on.
    """

    path: Path
    form: str
    kind: str | None
    family: str
    own_family: str
    naming: str
    stated: bool
    dtypes: dict[str, int]
    quantisation: str

    @property
    def expert(self) -> str:
        """The noise, high or low, of one of Wan 2.2's two experts, by the name of the file or folder; "" for others.

        Each has the tensors of a whole model.
        """
        for name in (self.path.name, self.path.parent.name) if self.kind in (WAN, TRANSFORMER) else ():
            if found := _EXPERT.search(name):
                return found[1].lower()
        return ""

    @property
    def shard(self) -> bool:
        """Whether this is one shard of several, by its name: no whole model, whatever tensors it has."""
        return _is_shard(self.path)

    @property
    def half(self) -> str:
        """What to tell of one of two experts; "" for a whole model."""
        if not self.expert:
            return ""
        steps, other = ("first", "low") if self.expert == "high" else ("last", "high")
        return (
            f"{self.path.name} is by its name Wan 2.2's expert for {self.expert} noise, half of a model: it is made "
            f"for the {steps} steps alone, and the {other}-noise file for the others"
        )

    def __str__(self) -> str:
        """A phrase such as "a Wan 2.1 T2V 1.3B transformer (safetensors, ComfyUI naming, scaled fp8)"."""
        noun = {
            TRANSFORMER: "transformer", WAN: "transformer", VAE: "VAE", TEXT_ENCODER: "text encoder",
            IMAGE_ENCODER: "image encoder",
        }.get(self.kind or "", "")  # fmt: skip
        details = [self.form, f"{self.naming} naming" if self.naming else "", self.quantisation]
        article = "an" if self.family[:1] in "aeioAEIO" else "a"
        words = f"{article} {self.family} {noun}".strip() if self.kind else self.family
        return f"{words} ({', '.join(detail for detail in details if detail)})"


def recognise(path: str | Path) -> Recognised:
    """Recognise a weight file, an index of shards or a folder with one model; only headers are read.

    A file of an unknown kind is not an error: its `kind` is None, and `family` describes what was found.

    Raises:
        CheckpointError: the file is missing, damaged, or not a weight file.
    """
    container = open_container(path)
    return recognise_container(container, name_tensors(container.tensors))


def recognise_container(container: Container, named: Named | None) -> Recognised:
    """As `recognise`, for an open container whose tensors have been named."""
    stated = container.metadata.get("kind")
    dtypes: dict[str, int] = {}
    for info in container.tensors.values():
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + math.prod(info.shape)
    kind, family, label = stated, stated or _other(container), ""
    own_family = family
    if named is not None:
        by_file, by_folder = _called(container)
        guessed, family = _describe(named, container.tensors, by_file or by_folder)
        _, own_family = _describe(named, container.tensors, by_file)
        kind = stated or guessed
        label = named.naming.name if "diffusion_model." not in named.prefix else "ComfyUI"
    elif is_lora(container.tensors):
        kind, family, own_family = stated or LORA, LORA, LORA
    if _is_shard(container.path):
        kind, family, own_family = None, _ONE_SHARD, _ONE_SHARD
    return Recognised(
        path=container.path,
        form=container.form,
        kind=kind,
        family=family,
        own_family=own_family,
        naming=label,
        stated=stated is not None,
        dtypes=dtypes,
        quantisation=_quantisation(container),
    )


def _is_shard(path: Path) -> bool:
    return _SHARD.search(path.name) is not None


def _called(container: Container) -> tuple[str, str]:
    """The families of `NAMED_FAMILIES` that the header or the file's name says, and its folder's name; "" for none."""
    path = container.path
    folder = path.parent if path.parent.name != _INNER_FOLDER else path.parent.parent
    stated = container.metadata.get(FAMILY, "")
    by_file, by_folder = (
        next((family for word, family in NAMED_FAMILIES.items() if word in name.lower()), "")
        for name in (path.name, folder.name)
    )
    return stated if stated in NAMED_FAMILIES.values() else by_file, by_folder


def _describe(named: Named, tensors: Mapping[str, TensorInfo], called: str) -> tuple[str, str]:
    """Kind and family of named tensors; `called` is the family that names indicate, one of `NAMED_FAMILIES`, or ""."""
    kind = named.naming.kind
    if kind == WAN:
        return _transformer(named, tensors, called)
    widths = {VAE: "decoder.conv1.weight", TEXT_ENCODER: "shared.weight"}
    shape = _shape(named, tensors, widths.get(kind, "vision_model.embeddings.class_embedding"))
    if kind == VAE:
        return kind, "Wan 2.2" if shape[1:2] == (48,) else "Wan 2.1"
    if kind == TEXT_ENCODER:
        return kind, "umT5-XXL" if shape[1:] == (4096,) else f"umT5 of width {shape[-1] if shape else 0}"
    width = shape[-1] if shape else 0
    return kind, "CLIP ViT-H/14" if width == 1280 else f"CLIP vision tower of width {width}"


def _transformer(named: Named, tensors: Mapping[str, TensorInfo], called: str) -> tuple[str, str]:
    patch = _shape(named, tensors, "patch_embedding.weight")
    dim, channels = (*patch[:2], 0, 0)[:2]
    size = _SIZES.get((dim, named.num_layers), f"of width {dim} with {named.num_layers} blocks")
    if any(".emphasize_attn." in name for name in named.places):
        return TRANSFORMER, f"ContextAnyone {size}"
    unknown = set(named.unknown) | named.places.keys()
    relative = next((name for mark, name in _RELATIVES if mark in unknown), None)
    plain = not {"img_emb.proj.0.weight", "ref_conv.weight"} & (unknown | named.places.keys())
    if relative is None and channels == 16 and plain:
        return WAN, f"{called or 'Wan 2.1 T2V'} {size}"
    if relative is None:
        head = (*_shape(named, tensors, "head.head.weight"), 0)[0]
        clip, reference = "img_emb.proj.0.weight" in named.places, "ref_conv.weight" in unknown
        relative = _with_pictures(channels, clip, reference, head)
    return WAN, f"Wan {relative} {size}"


def _with_pictures(channels: int, clip: bool, reference: bool, head: int) -> str:
    """Of a relative: `reference` is Fun V1.1's own convolution for pictures, `head` the rows of the last layer."""
    if reference:
        return FUN_V1_1.removeprefix("Wan ") if channels == 48 else f"Fun model with ref_conv and {channels} channels"
    if clip and channels == 36:
        return "2.1 I2V or Fun InP"
    if clip and channels == 48:
        return "2.1 Fun Control"
    if channels == 48:  # 16 channels out of 1 x 2 x 2 patches, else Wan 2.2's 48
        return "T2V with condition channels" if head == _HEAD_ROWS else "2.2 TI2V"
    return "T2V with a CLIP branch" if channels == 16 else f"model with {channels} channels"


def _shape(named: Named, tensors: Mapping[str, TensorInfo], name: str) -> tuple[int, ...]:
    place = named.places.get(name)
    return tensors[place.name].shape if place is not None and place.name in tensors else ()


def _quantisation(container: Container) -> str:
    stored = {info.dtype for info in container.tensors.values()}
    if container.form == "GGUF":
        packed = sorted(name for name in stored if name[0] in "QI" and "_" in name)
        return f"GGUF {', '.join(packed)}" if packed else ""
    leaves = {name.rpartition(".")[2] for name in container.tensors}
    if leaves & {"scale_weight", "weight_scale", "scaled_fp8", "comfy_quant"}:
        return ", ".join(_scaled(container, leaves)) or "scaled fp8"
    kinds = {"F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2"}
    return ", ".join(name for dtype, name in kinds.items() if dtype in stored)


def _scaled(container: Container, leaves: set[str]) -> Iterator[str]:
    """The quantisations of ComfyUI's releases beside scaled fp8, by the dtypes of weights and scales."""
    by_leaf: dict[str, set[str]] = {"weight": set(), "weight_scale": set()}
    for name, info in container.tensors.items():
        by_leaf.get(name.rpartition(".")[2], set()).add(info.dtype)
    if "weight_scale_2" in leaves:
        yield "nvfp4"
    elif by_leaf["weight_scale"] & {"U8", "F8_E8M0"}:
        yield "mxfp8"
    if "I8" in by_leaf["weight"]:
        yield "int8"


def _other(container: Container) -> str:
    known = (words for mark, words in _OTHERS if any(name.endswith(mark) for name in container.tensors))
    return next(known, "of no known kind")
