"""Complete pipelines with random weights: the networks of `networks`, with VAE, umT5 and CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.networks import diffusers_vace, made_on, parameter_bytes, plain, random_transformer
from benchmarks.options import network_config
from contextanyone_core.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.encoders.image import ImageEncoder, build_image_model, mini_image_config
from contextanyone_core.encoders.text import TextEncoder, build_text_model, load_text_encoder, mini_text_config
from contextanyone_core.encoders.vae import VideoVAE, build_vae, mini_vae_config
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline
from contextanyone_core.generation.vace import VacePipeline
from contextanyone_core.model_specs import MODELS

UMT5_LAYERS = 24
"""Number of layers of the published umT5-XXL."""


@dataclass(frozen=True)
class StackSizes:
    """Configs of all parts; those of the encoders have the keys of diffusers and transformers."""

    transformer: ContextAnyoneConfig
    vae: dict[str, Any]
    text: dict[str, int]
    image: dict[str, Any]


def full_sizes(text_layers: int = UMT5_LAYERS) -> StackSizes:
    """Wan 2.1 1.3B with our new layers, Wan's VAE, umT5-XXL with the given number of layers, CLIP ViT-H/14."""
    statistics = {"latents_mean": list(WAN_LATENTS_MEAN), "latents_std": list(WAN_LATENTS_STD)}
    text = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64}
    image = {"image_size": 224, "patch_size": 14, "hidden_size": 1280, "intermediate_size": 5120}
    return StackSizes(
        network_config(small=False),
        mini_vae_config() | {"base_dim": 96} | statistics,
        text | {"num_layers": text_layers, "text_len": 512},
        image | {"num_hidden_layers": 32, "num_attention_heads": 16, "hidden_act": "gelu"},
    )


def small_sizes() -> StackSizes:
    """The smallest stack with all components."""
    config = network_config(small=True)
    text = mini_text_config(vocab_size=2048) | {"d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    return StackSizes(
        config,
        mini_vae_config() | {"base_dim": 4},
        text | {"d_model": config.text_dim, "text_len": config.text_len},
        mini_image_config() | {"image_size": 16, "hidden_size": config.image_dim, "num_attention_heads": 2},
    )


class Stacks:
    """Pipelines of the models of `model_specs.MODELS` on one device; networks that several use are created once."""

    def __init__(self, sizes: StackSizes, device: torch.device, dtype: torch.dtype) -> None:
        self.sizes, self.device, self.dtype = sizes, device, dtype
        self._parts: dict[str, Any] = {}

    def pipeline(self, model: str) -> ContextAnyonePipeline | VacePipeline:
        """The model's pipeline, as in `contextanyone generate`."""
        text = self._part("text", self._text)
        if model == "vace":
            network = self._part("vace", lambda: diffusers_vace(self.sizes.transformer, self.device, self.dtype))
            return VacePipeline(network, VideoVAE(self._part("vae", self._vae)), text)
        ours, config = model == "contextanyone", self.sizes.transformer
        config = config if ours else plain(config)
        network = self._part("ours" if ours else "wan", lambda: random_transformer(config, self.device, self.dtype))
        image = self._part("image", self._image) if ours else None
        vae = VideoVAE(self._part("vae", self._vae), config)
        return ContextAnyonePipeline(network, vae, text, image, MODELS[model])

    def weights(self, model: str) -> dict[str, int]:
        """Bytes of each part of the model's pipeline."""
        network = {"contextanyone": "ours", "vace": "vace"}.get(model, "wan")
        names = {"transformer": network, "vae": "vae", "text_encoder": "text"}
        names |= {"image_encoder": "image"} if model == "contextanyone" else {}
        modules: dict[str, nn.Module] = {
            part: getattr(self._parts[name], "model", self._parts[name]) for part, name in names.items()
        }
        return {part: parameter_bytes(module) for part, module in modules.items()}

    def network(self, model: str) -> nn.Module:
        """The model's transformer."""
        found: nn.Module = self._parts[{"contextanyone": "ours", "vace": "vace"}.get(model, "wan")]
        return found

    @property
    def networks(self) -> list[nn.Module]:
        """All transformers created so far."""
        return [self._parts[name] for name in ("ours", "wan", "vace") if name in self._parts]

    def _part(self, name: str, make: Any) -> Any:
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    def _vae(self) -> Any:
        with made_on(self.device, self.dtype):
            return build_vae(self.sizes.vae).requires_grad_(False).eval()

    def _text(self) -> TextEncoder:
        with made_on(self.device, self.dtype):
            model = build_text_model(self.sizes.text).requires_grad_(False).eval()
        return TextEncoder(model, borrowed_tokenizer(), self.sizes.text["text_len"])

    def _image(self) -> ImageEncoder:
        with made_on(self.device, self.dtype):
            return ImageEncoder(build_image_model(self.sizes.image).requires_grad_(False).eval())


def borrowed_tokenizer() -> bytes:
    """The miniature's SentencePiece model: umT5's is part of its weights, and the tokens do not affect the timing."""
    return load_text_encoder(MINIATURE / "text_encoder.safetensors").spiece_model
