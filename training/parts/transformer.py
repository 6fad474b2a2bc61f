"""The ContextAnyone transformer of the miniature, trained on encoded pairs of the character world."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings, stack_conditions
from contextanyone_core.media.image_io import frames_to_images, picture_to_images
from contextanyone_core.model.blocks import TransformerBlock
from contextanyone_core.model.transfer import moved
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.model_specs import MODELS
from contextanyone_core.pose.drawing import MINIATURE as MINIATURE_POSES
from contextanyone_core.pose.drawing import draw_poses
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.processor import fast_dtype
from contextanyone_core.weights.safetensors_file import read_header
from training.data.buckets import FrameCount
from training.data.pool import Pool, PoolKey, encoders_hash, open_pool
from training.data.world_poses import world_poses
from training.evaluation.clips import shown_picture
from training.files import file_sha256, write_png
from training.parts.attribute_heads import AttributeHeads, StreamTap
from training.parts.base import Metrics, PartContext
from training.parts.joint_head import JointHead
from training.parts.objective import Draws, EncodedClips, dual_guidance_step
from training.parts.transformer_base import TransformerSettings, TransformerTraining, starting_network
from training.randomness import numpy_generator
from training.settings import MINIATURE, ShippedPath
from training.world import ATTRIBUTES, TEST_SEED_START, neutral_prompts, posed_keypoints, posed_sample, sample
from training.world.captions import draw_named, first_caption, later_caption

_LOG = logging.getLogger(__name__)


class Settings(TransformerSettings):
    """The pairs to train on, the frozen encoders' folder, and the objective."""

    name: Literal["transformer"] = "transformer"
    num_frames: FrameCount = 17  # 1: stills
    size: int = Field(128, ge=16, multiple_of=16)
    batch: int = Field(12, ge=1)
    pairs: int = Field(4000, ge=1)
    pool_seed: int = 0
    pools: Path = Path("runs/pools")
    weights: ShippedPath = MINIATURE
    person_weight: float = Field(2.0, ge=0)  # loss weight of a latent is 1 + this * the person's share of it
    motion_weight: float = Field(0.0, ge=0)  # and this * how much it differs from the frame before or after
    drop_action: float = Field(0.0, ge=0, le=1)  # of the samples with a pose: their caption leaves the action to it
    sample_steps: int = Field(12, ge=1)
    attribute_weight: float = Field(0.0, ge=0)  # of the attributes' cross-entropy in both streams, after a middle block
    joint_weight: float = Field(0.0, ge=0)  # of the joints' cross-entropy where a pose is shown, after the same block
    validation_pairs: int = Field(64, ge=1)  # of a pool that has none of the pairs above

    def network_config(self, config: ContextAnyoneConfig) -> ContextAnyoneConfig:
        """As its base; poses are drawn as the pool draws them."""
        config = super().network_config(config)
        return replace(config, pose_style="miniature") if config.condition_dim else config


class TransformerPart(TransformerTraining):
    """Trains `ContextAnyoneTransformer` with the dual-guidance loss; VAE, text and image encoders stay frozen."""

    settings: Settings

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings, self.context = settings, context
        paths = {name: settings.weights / f"{name}.safetensors" for name in ("vae", "text_encoder", "image_encoder")}
        self.vae = VideoVAE(load_vae(paths["vae"], fast_dtype(context.device), context.device))
        self.text_encoder = load_text_encoder(paths["text_encoder"]).to(context.device)
        self.image_encoder = load_image_encoder(paths["image_encoder"]).to(context.device)
        super().__init__(settings, self.starting_network(), context.shares)
        self.heads = nn.ModuleDict()
        self._tap: StreamTap | None = None
        if settings.attribute_weight > 0 or settings.joint_weight > 0:
            self._ask()
        encoders = encoders_hash(self.vae, self.image_encoder)
        self._key = PoolKey(
            encoders,
            settings.pool_seed,
            settings.num_frames,
            settings.size,
            settings.pairs,
            posed=self.conditioned,
            cut_out=MODELS[settings.reading].cut_out,
        )
        self._held_out: Pool | None = None

    def encoders(self) -> Path:
        """The folder of VAE, text encoder and image encoder."""
        return self.settings.weights

    def starting_network(self) -> ContextAnyoneTransformer:
        """The network of `init.from`, else the miniature's, from nothing."""
        vae = self.settings.weights / "vae.safetensors"
        return starting_network(self.settings, self.context, lambda: self._config(vae))

    def data_hash(self) -> str:
        """A hash of the pairs' seed and of the encoders, the text encoder too; not of the number of pairs."""
        text = file_sha256(self.settings.weights / "text_encoder.safetensors")
        return hashlib.sha256(json.dumps([self._key.encoders, self._key.seed, text]).encode()).hexdigest()

    def _ask(self) -> None:
        """Adds the heads that ask a middle block for what they classify."""
        block, width = self.transformer.blocks[len(self.transformer.blocks) // 2], self.transformer.config.dim
        assert isinstance(block, TransformerBlock)
        self._tap = StreamTap(block)
        if self.settings.attribute_weight > 0:
            self.heads.update({"video": AttributeHeads(width), "reference": AttributeHeads(width)})
        if self.settings.joint_weight > 0:
            if not self.conditioned:
                raise InputError("part.joint_weight needs condition channels for poses: part.condition: true.")
            self.heads["joints"] = JointHead(width)

    def modules(self) -> dict[str, nn.Module]:
        """The transformer, and the heads that classify attributes and place joints."""
        return super().modules() | ({"attribute_heads": self.heads} if len(self.heads) else {})

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The dual-guidance loss, and what the heads add to it."""
        if self._tap is None:
            return super().loss(batch, step, generator)
        self._tap.take()  # left by a sample or a validation
        clips = self.encoded(batch)
        draws = self.draws(clips, step, generator)
        losses, metrics = dual_guidance_step(self.transformer, self.settings, clips, draws, self.texts(batch, draws))
        video, reference = self._tap.take()
        assert video is not None
        if self.settings.attribute_weight > 0 and reference is not None:
            labels = batch["labels"][:, : len(ATTRIBUTES)]
            for name, tokens in (("video", video), ("reference", reference)):
                entropy, right = self.heads[name](tokens, labels)
                losses = losses + self.settings.attribute_weight * entropy
                metrics |= {f"attributes_{name}": entropy.detach(), f"told_{name}": right}
        shown = [] if draws.condition is None else [i for i, posed in enumerate(draws.condition.with_pose) if posed]
        if self.settings.joint_weight > 0 and shown:
            rows = moved(torch.tensor(shown), losses.device)
            entropy, placed = self.heads["joints"](video[rows], self._grid(clips.latents), batch["joints"][rows])
            losses = losses.index_add(0, rows, entropy.to(losses.dtype), alpha=self.settings.joint_weight)
            metrics |= {"joints": entropy.detach(), "placed": placed}
        return losses, metrics

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        frames, rows, columns = (
            size // side for size, side in zip(latents.shape[2:], self.transformer.config.patch_size, strict=True)
        )
        return frames, rows, columns

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

    @cached_property
    def pool(self) -> Pool:
        """The pairs to train on, encoded at first use."""
        return open_pool(self.settings.pools, self._key, self.vae, self.image_encoder)

    def open_data(self) -> None:
        """Read the pool into memory, which worker processes then share."""
        _LOG.info("%d encoded pairs.", len(self.pool))

    def batch(self, step: int) -> Any:
        """Encoded pairs, and captions drawn anew."""
        rng = numpy_generator(self.context.own_seed, step, "pairs")
        chosen = rng.integers(len(self.pool), size=self.settings.batch)
        captioned = _captioned(self.pool, chosen, rng, self.settings.drop_action)
        return captioned | ({"joints": self._joints(chosen)} if self.settings.joint_weight > 0 else {})

    def _joints(self, chosen: NDArray[np.int64]) -> Tensor:
        """Where the joints of pairs are, (B, T, 14, 2), as shares of the picture."""
        seeds, size = (self._key.world_seed(index) for index in chosen.tolist()), (self._key.size,) * 2
        keypoints = [posed_keypoints(seed, self._key.num_frames, size) for seed in seeds]
        return torch.from_numpy(np.stack(keypoints)) / self._key.size

    def validation_batches(self) -> Iterator[Any]:
        """Pairs of another pool, encoded at first use."""
        if self._held_out is None:
            own = self._key
            key = replace(own, seed=own.seed + 1, pairs=self.settings.validation_pairs, apart_from=own)
            self._held_out = open_pool(self.settings.pools, key, self.vae, self.image_encoder)
        rows = np.arange(len(self._held_out))
        for start in range(0, len(rows), self.settings.batch):
            rng = numpy_generator(self._key.seed, start, "validation captions")
            yield _captioned(self._held_out, rows[start : start + self.settings.batch], rng)

    def encoded(self, batch: Any) -> EncodedClips:
        """A batch with weights that are larger where the person is, and where something moves."""
        latents, references = batch["latents"].float(), batch["reference_latents"].float()
        weights = 1.0 + self.settings.person_weight * batch["masks"].float()
        if self.settings.motion_weight > 0:
            weights = weights + self.settings.motion_weight * _movement(latents)
        # Paper: the target is "ground-truth appearance": here the unedited frame, the clip's first.
        ground_truth = self.settings.reconstruct == "target"
        return EncodedClips(
            latents,
            weights,
            references,
            batch["image_embeds"].float(),
            target=latents[:, :, :1] if ground_truth else references,
            target_weights=weights[:, :, :1] if ground_truth else None,
            poses=batch["poses"].float() if self.conditioned else None,
            conditioned=self.conditioned,
            start_frames=self.start_frames,
        )

    def texts(self, batch: Any, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the captions, which are drawn anew for every batch."""
        with_pose = draws.condition.with_pose if draws.condition else (False,) * len(batch["later"])
        captions = zip(batch["first"], batch["later"], batch["later_posed"], with_pose, strict=True)
        prompts = [TwoStagePrompt(first, posed if shown else later) for first, later, posed, shown in captions]
        kept = zip(prompts, draws.keep_text, strict=True)
        video_text = self._encode([prompt.video_text if keep else "" for prompt, keep in kept])
        return video_text, self._encode([prompt.reference_text for prompt in prompts]) if draws.reference else None

    def _encode(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.text_encoder.encode(texts).float()

    def pipeline(self) -> ContextAnyonePipeline:
        """The pipeline over the present weights."""
        image_encoder = None if self.transformer.config.image_dim is None else self.image_encoder
        spec = MODELS[self.settings.reading]
        return ContextAnyonePipeline(self.transformer, self.vae, self.text_encoder, image_encoder, spec)

    def sample(self, step: int, folder: Path) -> None:
        """Six test characters, prompts that name no attribute, poses if used: reference, then every fourth frame."""
        size, length = self.settings.size, self.settings.num_frames
        drawn = posed_sample if self.conditioned else sample
        pairs = [drawn(TEST_SEED_START + 500 + i, length, (size, size)) for i in range(6)]
        pipeline = self.pipeline()
        settings = GenerationSettings(num_frames=length, width=size, height=size, steps=self.settings.sample_steps)
        conditions = []
        for pair in pairs:
            picture = picture_to_images(shown_picture(pair, pipeline.spec))
            encoded = pipeline.dual_encoder.encode(picture, settings.size)
            prompt = TwoStagePrompt(*neutral_prompts(pair.scene, action_named=not pair.free))
            given = pipeline.conditions([encoded], prompt)
            if self.conditioned:
                poses = frames_to_images(draw_poses(world_poses(pair.keypoints, (size, size)), MINIATURE_POSES))
                given = replace(given, video=pipeline.encode_condition(poses, None, (size, size)))
            conditions.append(given)
        batch = stack_conditions(conditions)
        with torch.compiler.set_stance("force_eager"):  # other shapes than in training: not worth a compilation
            latents = pipeline.sample_latents(batch, settings, pipeline.noise(list(range(6)), settings))
        frames = _pixels(pipeline.decode(latents)[:, :, ::4])
        rows = [
            np.concatenate([pair.reference, *shown, *pair.video[::4]], axis=1)
            for pair, shown in zip(pairs, frames, strict=True)
        ]
        write_png(folder / f"{step:06d}.png", np.concatenate(rows))


def _captioned(
    pool: Pool, chosen: NDArray[np.int64], rng: np.random.Generator, drop_action: float = 0.0
) -> dict[str, Any]:
    """Pairs with their captions; `later_posed` is the later one where the pose is shown."""
    first, later, posed = [], [], []
    for index in chosen.tolist():
        character, scene = pool.character(index), pool.scene(index)
        first.append(first_caption(character, scene, draw_named(rng, silent_share=0.6), rng))
        named = draw_named(rng, silent_share=0.8)
        later.append(later_caption(character, scene, named, rng, action_named=not pool.moves_freely(index)))
        leave_out = drop_action > 0 and rng.random() < drop_action
        posed.append(later_caption(character, scene, named, rng, action_named=False) if leave_out else later[-1])
    rows = torch.from_numpy(chosen)
    poses = {} if pool.poses is None else {"poses": pool.poses[rows]}
    return poses | {
        "latents": pool.latents[rows],
        "masks": pool.masks[rows],
        "reference_latents": pool.reference_latents[rows],
        "image_embeds": pool.image_embeds[rows],
        "labels": pool.labels[rows],
        "first": first,
        "later": later,
        "later_posed": posed,
    }


def _movement(latents: Tensor) -> Tensor:
    """How much a latent differs from the frame before or after, the larger: (B, 1, t, h, w), root mean square."""
    step = (latents[:, :, 1:] - latents[:, :, :-1]).square().mean(1, keepdim=True).sqrt()
    return torch.maximum(nn.functional.pad(step, (0, 0, 0, 0, 1, 0)), nn.functional.pad(step, (0, 0, 0, 0, 0, 1)))


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) in [-1, 1] to (B, T, H, W, 3) uint8."""
    return ((images + 1.0) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
