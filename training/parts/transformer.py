"""The ContextAnyone transformer of the miniature, trained on encoded pairs of the character world (DESIGN 1 and 2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from contextanyone_core.blocks import TransformerBlock
from contextanyone_core.checkpoint import load_transformer, read_header, save_transformer
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.flow import add_noise, sample_sigmas, velocity_target
from contextanyone_core.hosts.image import load_image_encoder
from contextanyone_core.hosts.text import load_text_encoder
from contextanyone_core.hosts.vae import VideoVAE, load_vae
from contextanyone_core.losses import dual_guidance_loss, reconstruction
from contextanyone_core.pipeline import ContextAnyonePipeline, GenerationSettings, stack_conditions
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.transformer import ContextAnyoneTransformer, ReferenceInputs
from training.data.pool import PoolKey, files_hash, open_pool
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.randomness import numpy_generator
from training.world import TEST_SEED_START, neutral_prompts, sample
from training.world.captions import draw_named, first_caption, later_caption

_LOG = logging.getLogger(__name__)


class Settings(PartSettings):
    """The pairs to train on, the frozen encoders' folder, and the objective."""

    name: Literal["transformer"] = "transformer"
    num_frames: int = Field(17, ge=1)  # 1: stills
    size: int = Field(128, ge=16, multiple_of=16)
    batch: int = Field(12, ge=1)
    pairs: int = Field(4000, ge=1)
    pool_seed: int = 0
    pools: Path = Path("runs/pools")
    weights: Path = Path("contextanyone_core/miniature")
    compile: bool = False  # torch.compile of the blocks; for the C++ compiler that it needs, see docs/TRAINING.md
    explicit_attention: bool = False  # plain matrix products: on a CPU their backward is faster than the fused kernel's
    reference_weight: float = Field(0.2, ge=0)  # the paper's lambda
    reconstruct: Literal["target", "reference"] = "target"
    person_weight: float = Field(2.0, ge=0)  # loss weight of a latent is 1 + this * the person's share of it
    drop_reference: float = Field(0.15, ge=0, lt=1)
    drop_text: float = Field(0.1, ge=0, lt=1)
    shift: float = Field(2.0, gt=0)
    uniform: float = Field(0.2, ge=0, le=1)
    sample_steps: int = Field(12, ge=1)


class TransformerPart:
    """Trains `ContextAnyoneTransformer` with the dual-guidance loss; VAE, text and image encoders stay frozen."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings, self.context = settings, context
        paths = {name: settings.weights / f"{name}.safetensors" for name in ("vae", "text_encoder", "image_encoder")}
        self.vae = VideoVAE(load_vae(paths["vae"], torch.bfloat16, context.device))
        self.text_encoder = load_text_encoder(paths["text_encoder"]).to(context.device)
        self.image_encoder = load_image_encoder(paths["image_encoder"]).to(context.device)
        if context.init_from:
            self.transformer = load_transformer(context.init_from, dtype=torch.float32)
        else:
            self.transformer = ContextAnyoneTransformer(self._config(paths["vae"]))
        if settings.explicit_attention:
            self.transformer.attention = explicit_attention
        if settings.compile:
            _compile_blocks(self.transformer)
        encoders = files_hash(paths["vae"], paths["image_encoder"])
        key = PoolKey(encoders, settings.pool_seed, settings.num_frames, settings.size, settings.pairs)
        self.pool = open_pool(settings.pools, key, self.vae, self.image_encoder)

    def _config(self, vae_path: Path) -> ContextAnyoneConfig:
        """The miniature's config with the latent statistics and preview projection that the VAE's file carries."""
        header = read_header(vae_path)
        factors, bias = (json.loads(header.metadata[f"latent_rgb_{name}"]) for name in ("factors", "bias"))
        return replace(
            ContextAnyoneConfig.miniature(),
            text_dim=self.text_encoder.text_dim,
            text_len=self.text_encoder.text_len,
            image_dim=self.image_encoder.image_dim,
            latents_mean=tuple(self.vae.vae.config.latents_mean),
            latents_std=tuple(self.vae.vae.config.latents_std),
            latent_rgb_factors=tuple((row[0], row[1], row[2]) for row in factors),
            latent_rgb_bias=(bias[0], bias[1], bias[2]),
        )

    def modules(self) -> dict[str, nn.Module]:
        """The transformer; its encoders stay frozen."""
        return {"transformer": self.transformer}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of it (Paper: all DiT blocks are fine-tuned)."""
        return default_groups(self.modules(), hidden=lambda name: ".blocks." in name and name.endswith("weight"))

    def batch(self, step: int) -> Any:
        """Encoded pairs, and captions drawn anew."""
        pool, rng = self.pool, numpy_generator(self.context.seed, step, "pairs")
        chosen = rng.integers(len(pool), size=self.settings.batch)
        first, later = [], []
        for index in chosen.tolist():
            character, scene = pool.character(index), pool.scene(index)
            first.append(first_caption(character, scene, draw_named(rng, silent_share=0.4), rng))
            later.append(later_caption(character, scene, draw_named(rng, silent_share=0.7), rng))
        rows = torch.from_numpy(chosen)
        return {
            "latents": pool.latents[rows],
            "masks": pool.masks[rows],
            "reference_latents": pool.reference_latents[rows],
            "image_embeds": pool.image_embeds[rows],
            "first": first,
            "later": later,
        }

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The dual-guidance loss of a batch; the reference is dropped for a whole batch, text for single samples."""
        settings, device = self.settings, self.context.device
        clean = batch["latents"].float()
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = sample_sigmas(count, shift=settings.shift, uniform=settings.uniform, generator=generator).to(device)
        draws = torch.rand(count + 1, generator=generator)
        with_reference = bool(draws[0] >= settings.drop_reference)
        prompts = [TwoStagePrompt(first, later) for first, later in zip(batch["first"], batch["later"], strict=True)]
        kept = (draws[1:] >= settings.drop_text).tolist()
        video_text = self._encode([p.video_text if keep else "" for p, keep in zip(prompts, kept, strict=True)])
        references, targets = None, None
        if with_reference:
            first_text = self._encode([prompt.reference_text for prompt in prompts])
            references = self._references(batch, first_text, generator)
            # Paper: the target is "ground-truth appearance": here the unedited frame, the clip's first.
            targets = clean[:, :, :1] if settings.reconstruct == "target" else batch["reference_latents"].float()
        output = self.transformer(add_noise(clean, noise, sigma), 1000.0 * sigma, video_text, references=references)
        weights = 1.0 + settings.person_weight * batch["masks"].float()
        terms = dual_guidance_loss(
            output.velocity.float(),
            velocity_target(clean, noise),
            [reconstruction(references.latents[0], output.reference_output[0].float())] if references else (),
            [targets] if targets is not None else (),
            reference_weight=settings.reference_weight,
            video_mask=weights,
            reference_masks=[weights[:, :, :1]] if references and settings.reconstruct == "target" else None,
        )
        return terms.total, self._metrics(terms.video, terms.reference, sigma, with_reference)

    def _encode(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.text_encoder.encode(texts).float()

    def _references(self, batch: Any, text_embeds: Tensor, generator: torch.Generator) -> ReferenceInputs:
        """Half of the references clean, half noised with sigma in (0, 0.1]."""
        latents = batch["reference_latents"].float()
        draws = torch.rand(2, len(latents), generator=generator)
        sigma = torch.where(draws[0] < 0.5, torch.zeros(len(latents)), 0.1 * (1.0 - draws[1])).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        noised = add_noise(latents, noise, sigma)
        return ReferenceInputs([noised], text_embeds, [batch["image_embeds"].float()], timesteps=1000.0 * sigma)

    @staticmethod
    def _metrics(video: Tensor, reference: Tensor, sigma: Tensor, with_reference: bool) -> Metrics:
        video, metrics = video.detach(), {"video": video.detach()}
        if with_reference:
            metrics["reference"] = reference.detach()
        for index in range(4):
            inside = (sigma * 4).long().clamp(max=3) == index
            if inside.any():
                metrics[f"sigma_{index}"] = video[inside]
        return dict(metrics)

    def pipeline(self) -> ContextAnyonePipeline:
        """The pipeline over the present weights."""
        return ContextAnyonePipeline(self.transformer, self.vae, self.text_encoder, self.image_encoder)

    def sample(self, step: int, folder: Path) -> None:
        """Six test characters, prompts that name no attribute: reference, then every fourth frame."""
        size, length = self.settings.size, self.settings.num_frames
        pairs = [sample(TEST_SEED_START + 500 + i, length, (size, size)) for i in range(6)]
        pipeline = self.pipeline()
        settings = GenerationSettings(num_frames=length, width=size, height=size, steps=self.settings.sample_steps)
        conditions = []
        for pair in pairs:
            picture = torch.from_numpy(pair.reference).permute(2, 0, 1)[None].float() / 127.5 - 1.0
            encoded = pipeline.dual_encoder.encode(picture, settings.size)
            conditions.append(pipeline.conditions([encoded], TwoStagePrompt(*neutral_prompts(pair.scene))))
        batch = stack_conditions(conditions)
        with torch.compiler.set_stance("force_eager"):  # other shapes than in training: not worth a compilation
            latents = pipeline.sample_latents(batch, settings, pipeline.noise(list(range(6)), settings))
        frames = _pixels(pipeline.decode(latents)[:, :, ::4])
        rows = [
            np.concatenate([pair.reference, *shown, *pair.video[::4]], axis=1)
            for pair, shown in zip(pairs, frames, strict=True)
        ]
        cv2.imwrite(str(folder / f"{step:06d}.png"), np.concatenate(rows)[..., ::-1])

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write transformer.safetensors."""
        path = folder / "transformer.safetensors"
        save_transformer(path, self.transformer, dtype=torch.float16, extra={"record": json.dumps(dict(record))})


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`torch_attention` written out as two matrix products and a softmax in float32; shapes as there."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    read: Tensor = scores.float().softmax(-1).to(v.dtype) @ v
    return read.transpose(1, 2).flatten(-2)


def _compile_blocks(transformer: ContextAnyoneTransformer) -> None:
    """Compile the repeated block once for each of its two uses, with shapes as they are."""
    for block in transformer.blocks:
        assert isinstance(block, TransformerBlock)
        block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
        block.encode_reference = torch.compile(block.encode_reference, dynamic=False)  # type: ignore[method-assign]


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) in [-1, 1] to (B, T, H, W, 3) uint8."""
    return ((images + 1.0) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
