"""The native model around the network: latent format, conditionings, memory (comfy.model_base.BaseModel)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.encoders.reference import fit_text_embeds
from ...contextanyone_core.model.condition import pad_frames, present_frames
from ...contextanyone_core.model.references import ReferenceInputs
from ...contextanyone_core.runtime.memory import cache_bytes, forward_bytes
from ...contextanyone_core.runtime.reference_cache import CacheOptions
from ...contextanyone_core.weights.recognition import FAMILY
from ...contextanyone_core.weights.saved_header import HEADER, header_tensor
from .given import require_channels
from .network import ContextAnyoneNetwork, PoseActs
from .run import KeyedReferences, with_runs

REFERENCES = "contextanyone_references"
"""Key of a conditioning that holds `AppliedReferences`."""
FIRST_PROMPT = "contextanyone_first_prompt"
"""Key of a conditioning that holds the first-frame prompt's embeddings (1, L, text_dim)."""
EMPHASIS = "contextanyone_emphasis"
POSE = "contextanyone_pose"
"""Key of a conditioning that holds the raw latents (1, 16, T, h, w) of the drawn poses."""
POSE_STRENGTH = "contextanyone_pose_strength"
POSE_START = "contextanyone_pose_start"
POSE_END = "contextanyone_pose_end"
START_FRAME = "contextanyone_start_frame"
"""Key of a conditioning that holds the raw latents (1, 16, 1, h, w) of the clean first frame."""
PIECES = "contextanyone_pieces"
"""Key of a conditioning that holds the tokens of its text as sentencepiece writes them, a list in JSON."""
PERSON = "contextanyone_person"
"""Key of a conditioning that holds how much of each latent the person named in its text covers: (1, 1, T, h, w)."""
NAMED = "contextanyone_named"
"""Key of a conditioning that holds the rows of its text embeddings that name that person, whole numbers (n,)."""
CONDITION = (POSE, POSE_STRENGTH, POSE_START, POSE_END, START_FRAME)
"""Keys of pose and start frame, which are the same in every pass."""
APPLIED = (REFERENCES, EMPHASIS, PERSON, NAMED, *CONDITION)
"""All keys that Apply ContextAnyone adds to a conditioning."""

_NETWORK_REFERENCES = "references"
"""Name of the network's argument that is `KeyedReferences`."""
_NETWORK_POSE = "pose"
_NETWORK_START = "start"
_NETWORK_PERSON = "person"
_POSE_ACTS = {POSE_STRENGTH: 1.0, POSE_START: 0.0, POSE_END: 1.0}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class LatentFormat(comfy.latent_formats.Wan21):
    """Wan 2.1's latents with the statistics and preview colours of the model's own config."""

    def __init__(self, config: ContextAnyoneConfig) -> None:
        super().__init__()
        shape = (1, self.latent_channels, 1, 1, 1)
        self.latents_mean = torch.tensor(config.latents_mean).view(shape)
        self.latents_std = torch.tensor(config.latents_std).view(shape)
        if config.latent_rgb_factors is not None and config.latent_rgb_bias is not None:
            self.latent_rgb_factors = [list(row) for row in config.latent_rgb_factors]
            self.latent_rgb_factors_bias = list(config.latent_rgb_bias)
            self.taesd_decoder_name = None  # Wan's tiny decoder does not fit other latents


class ReferenceCondition(comfy.conds.CONDConstant):
    """`KeyedReferences` as a conditioning: of one sample, and valid for a batch of any size."""

    def can_concat(self, other: ReferenceCondition) -> bool:
        """Whether both are the same references."""
        return bool(self.cond.key == other.cond.key)

    def size(self) -> list[int]:
        """As `reference_size`."""
        return reference_size(self.cond.inputs.latents, self.cond.inputs.image_embeds)


def reference_size(latents: Sequence[torch.Tensor], image_embeds: Sequence[torch.Tensor]) -> list[int]:
    """[1, elements of one sample's latents, of its CLIP tokens], each at least 1: ComfyUI compares products."""
    return [1, *(max(1, sum(math.prod(item.shape[1:]) for item in each)) for each in (latents, image_embeds))]


def reference_numbers(cond_shapes: dict[str, list[list[int]]] | None) -> tuple[int, int]:
    """Elements of the latents and of the CLIP tokens of the largest set of references, from `reference_size`s."""
    sizes = (cond_shapes or {}).get(_NETWORK_REFERENCES, [])
    return max((size[1] for size in sizes), default=0), max((size[2] for size in sizes), default=0)


class ModelConfig(comfy.supported_models_base.BASE):
    """The model configuration that ComfyUI needs."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  # ComfyUI's own form
    supported_inference_dtypes = list(_DTYPES)  # noqa: RUF012

    def __init__(self, config: ContextAnyoneConfig) -> None:
        super().__init__({"image_model": "contextanyone", "contextanyone": config})
        self.sampling_settings = {"shift": config.shift}
        self.latent_format = LatentFormat(config)
        self.memory_usage_factor = config.dim / 2222  # native Wan's; the model computes its own


class ContextAnyoneModel(comfy.model_base.BaseModel):
    """Wan 2.1's flow model with references as conditionings.

    Attributes:
        network: the class of `diffusion_model`.
        unconditional: what an unconditional pass has in the references' place: `nothing`, `zeros` or the `references`.
        own_size: whether references keep their own size.
        cut_out: whether references should be subjects cut out on white.
        family: family to state in a saved file where its tensors do not determine it.
        has_cache: whether its references are computed once, and kept for the run.
        cache_options: how the present run keeps them.
    """

    network: type[ContextAnyoneNetwork] = ContextAnyoneNetwork
    unconditional: Literal["nothing", "zeros", "references"] = "nothing"
    own_size = False
    cut_out = False
    family = ""
    has_cache = True
    cache_options = CacheOptions()

    def __init__(self, model_config: ModelConfig, device: torch.device | None = None) -> None:
        kind = comfy.model_base.ModelType.FLOW
        super().__init__(model_config, kind, device=device, unet_model=self.network)
        self.config: ContextAnyoneConfig = model_config.unet_config["contextanyone"]
        self.memory_usage_factor_conds = (_NETWORK_REFERENCES,)

    @property
    def follows_references(self) -> bool:
        """Whether the model was trained to follow references."""
        return self.config.emphasize

    @property
    def config_now(self) -> ContextAnyoneConfig:
        """The config of the network as it is loaded: a LoRA may have given it condition channels."""
        return widened_config(self.config, cast("ContextAnyoneNetwork", self.diffusion_model).patch_channels)

    def state_dict_for_saving(self, unet_state_dict: dict[str, torch.Tensor], *parts: Any, **more: Any) -> Any:
        """What ModelSave and CheckpointSave write: they keep tensors only, so the config goes along as one."""
        stated = {"config": json.dumps(self.config_now.to_dict()), FAMILY: self.family}
        unet_state_dict = unet_state_dict | {HEADER: header_tensor(stated)}
        return super().state_dict_for_saving(unet_state_dict, *parts, **more)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The network's keyword arguments out of a conditioning."""
        out = super().extra_conds(**kwargs)
        text = kwargs.get("cross_attn")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(fit_text_embeds(text, self.config, _prompt_name(kwargs)))
        out["emphasis"] = comfy.conds.CONDConstant(float(kwargs.get(EMPHASIS, 1.0)))
        out |= self._condition(kwargs)
        applied = kwargs.get(REFERENCES)
        if applied is None:
            return out
        latents = [self.process_latent_in(item) for item in applied.latents]
        text = fit_text_embeds(applied.text_embeds, self.config)
        inputs = ReferenceInputs(latents, text, list(applied.image_embeds), gap=applied.gap)
        out[_NETWORK_REFERENCES] = ReferenceCondition(KeyedReferences(inputs, applied.key))
        return out

    def _condition(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Pose, person and start frame as conditionings of the video's size, which ComfyUI cuts together with it."""
        out: dict[str, Any] = {}
        pose, start = given.get(POSE), given.get(START_FRAME)
        require_channels(self.config_now, pose=pose, start_frame=start)
        if pose is not None:
            out[_NETWORK_POSE] = comfy.conds.CONDNoiseShape(self.process_latent_in(pose))
            strength, first, last = (given.get(key, own) for key, own in _POSE_ACTS.items())
            high = self.model_sampling.percent_to_sigma(first) if first > 0 else math.inf
            low = self.model_sampling.percent_to_sigma(last)
            out["pose_acts"] = comfy.conds.CONDConstant(PoseActs(strength, high, low))
        if given.get(PERSON) is not None:
            out[_NETWORK_PERSON] = comfy.conds.CONDNoiseShape(given[PERSON])
            out["named"] = comfy.conds.CONDConstant(tuple(given[NAMED].tolist()))
        if start is not None:
            whole = pad_frames(self.process_latent_in(start), given["noise"].shape[2])
            out[_NETWORK_START] = comfy.conds.CONDNoiseShape(whole)
        return out

    def _apply_model(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Denoised latents of a pass, with the start frame in its own frames (as `conditions.lead_to_start`)."""
        denoised = super()._apply_model(x, *args, **kwargs)
        start = kwargs.get(_NETWORK_START)
        if start is None:
            return denoised
        start = start.to(denoised)  # newer versions of ComfyUI leave conditionings on the CPU until the network's call
        return torch.where(present_frames(start), start, denoised)

    def resize_cond_for_context_window(
        self, cond_key: str, cond_value: Any, window: Any, x_in: torch.Tensor, device: Any, **_: Any
    ) -> Any:
        """Pose and person belong to their frames: a context window gets its own, whatever frames it retains."""
        if cond_key not in (_NETWORK_POSE, _NETWORK_PERSON):
            return None
        return comfy.conds.CONDNoiseShape(window.get_tensor(cond_value.cond, device, dim=2))

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """Sizes of the references, for the memory that ComfyUI plans with before anything is loaded."""
        applied = kwargs.get(REFERENCES)
        if applied is None:
            return {}
        return {_NETWORK_REFERENCES: reference_size(applied.latents, applied.image_embeds)}

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[list[int]]] | None = None) -> float:
        """Bytes that a call of the network needs beside the weights, the references' cache included.

        One cache serves all branches and the whole batch: the largest set of references counts, once.
        """
        numbers, clip = reference_numbers(cond_shapes)
        config, size = self.config, comfy.model_management.dtype_size(self.get_dtype_inference())
        tokens = numbers // (config.in_dim * math.prod(config.patch_size))
        image = clip // (config.image_dim or 1)
        needed = forward_bytes(config, input_shape, reference_tokens=tokens, image_tokens=image, dtype_size=size)
        cache = cache_bytes(config, tokens, image, size)
        return needed - cache + self.cache_options.device_bytes(cache, config.num_layers, size)


def widened_config(config: ContextAnyoneConfig, channels: int) -> ContextAnyoneConfig:
    """The config of a network whose patch embedding takes so many channels: with pose and start frame, or as it is."""
    return replace(config, condition_dim=2 * config.in_dim) if channels == 3 * config.in_dim else config


def _prompt_name(conditioning: Mapping[str, Any]) -> str:
    """What an error calls the prompt of a pass; ComfyUI hands over which of a guider's conditionings it is."""
    return "The negative prompt" if str(conditioning.get("prompt_type")).startswith("negative") else "The prompt"


@dataclass(frozen=True)
class Storage:
    """How weights are kept in memory.

    Attributes:
        dtype: None lets ComfyUI choose by the weights and the device.
        fp8_optimizations: multiply in fp8 where the card can.
        quantization: ComfyUI's own description of scaled fp8 weights; None for plain ones.
    """

    dtype: torch.dtype | None = None
    fp8_optimizations: bool = False
    quantization: Any = None


def native_model(
    config: ContextAnyoneConfig,
    tensors: dict[str, torch.Tensor],
    storage: Storage | None = None,
    *,
    model_class: type[ContextAnyoneModel] = ContextAnyoneModel,
    disable_dynamic: bool = False,
) -> Any:
    """A native MODEL (ModelPatcher) with these weights.

    Args:
        config: the model's.
        tensors: weights by Wan's names, without a prefix.
        storage: how the weights are kept.
        model_class: of the model, which decides the reference mode.
        disable_dynamic: without weight streaming (ComfyUI asks for it when it reloads a model).
    """
    management = comfy.model_management
    storage = storage or Storage()
    quantization = storage.quantization
    model_config = ModelConfig(config)
    model_config.quant_config = quantization
    device = management.get_torch_device()
    supported = list(_DTYPES)
    weight_dtype = None if quantization else comfy.utils.weight_dtype(tensors)
    count = comfy.utils.calculate_parameters(tensors)
    chosen = storage.dtype or management.unet_dtype(
        device=device, model_params=count, supported_dtypes=supported, weight_dtype=weight_dtype
    )
    cast = management.unet_manual_cast(None if quantization else chosen, device, supported)
    model_config.set_inference_dtype(chosen, cast)
    if storage.fp8_optimizations:
        model_config.optimizations["fp8"] = True
    offload = management.unet_offload_device()
    model = model_class(model_config)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # looked up at call time: ComfyUI puts another class there on a GPU
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(model, load_device=device, offload_device=offload)
    if not management.is_device_cpu(offload):
        model.to(offload)
    assign = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    model.load_model_weights(tensors, "", **assign)
    return with_runs(patcher)
