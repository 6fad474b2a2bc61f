"""The ContextAnyone transformer trained on a manifest's cached rows: filmed data, or the character world written out.

It needs no encoder while it trains; `sample` loads the VAE to show frames.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.generation.pipeline import Conditions, GenerationSettings, LatentSampler
from contextanyone_core.media.image_io import images_to_frames
from contextanyone_core.media.video_io import write_clip
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.transfer import moved
from contextanyone_core.runtime.processor import card_dtype
from training.data.batches import CachedData, padded_text
from training.data.buckets import Bucket, plan_buckets
from training.data.cache import data_hash
from training.data.frames import dilated
from training.data.named import NamedRows
from training.data.sampler import BucketSampler, StagedSampler
from training.data.settings import DataSettings
from training.files import file_sha256, write_png
from training.lora import lora_at
from training.parts.base import Metrics, PartContext
from training.parts.cache_fit import check_encoders, check_length, check_poses
from training.parts.objective import Draws, EncodedClips, dual_guidance_step, prior_step
from training.parts.person_prompts import PersonPrompts
from training.parts.personal import PersonalSettings
from training.parts.transformer_base import TransformerSettings, TransformerTraining, starting_network
from training.randomness import torch_generator

_LOG = logging.getLogger(__name__)
CONFIGS = {
    "miniature": ContextAnyoneConfig.miniature,
    "wan_1_3b": ContextAnyoneConfig.wan_1_3b,
    "wan_14b": ContextAnyoneConfig.wan_14b,
}


class Settings(TransformerSettings):
    """The data, the network where it starts from nothing, and the masked objective."""

    name: Literal["manifest"] = "manifest"
    data: DataSettings
    model: Literal["miniature", "wan_1_3b", "wan_14b"] = "wan_1_3b"  # its sizes, where init.from is not given
    background_weight: float = Field(default=1.0, ge=0, le=1)  # loss weight outside the person's mask; inside it is 1
    dilate_mask: int = Field(default=0, ge=0)  # by how many latents the person's mask is enlarged on all sides
    stills_steps: int | None = Field(default=None, ge=1)  # before this step only pictures, then only longer clips
    prior: float = Field(default=0.0, ge=0, lt=1)  # of the steps preserve what the LoRA's network makes of its class
    prior_beside: float = Field(default=0.0, ge=0, le=1)  # in every step, on so many of its samples beside their loss
    prior_weight: float = Field(default=1.0, gt=0)  # factor of the prior's loss
    elsewhere: float = Field(default=0.0, ge=0, le=1)  # of the samples have a prompt of data.elsewhere as their caption
    regions: Literal["none", "mask", "pose"] = "none"  # mask-guided attention: where the person is, by what
    personal: PersonalSettings | None = None  # who the LoRA is of, for the header of its file
    sample_clips: int = Field(default=2, ge=1)
    sample_steps: int = Field(default=20, ge=1)
    validation_clips: int = Field(default=16, ge=1)  # of the split `val`, which cache.py must have encoded

    @model_validator(mode="before")
    @classmethod
    def _lora_also_stands_alone(cls, given: Any) -> Any:
        beside = isinstance(given, dict) and given.get("personal") and given.get("anchor", "reference") == "reference"
        return {"drop_reference": 0.3} | given if beside else given

    @model_validator(mode="after")
    def _reads_in_a_stream(self) -> Self:
        if self.one_stream:
            raise ValueError(
                f"part.reading is {self.reading}, which the part transformer trains; on a manifest leave part.reading "
                "out"
            )
        return self

    @model_validator(mode="after")
    def _prior_has_a_target(self) -> Self:
        lora = self.train.lora
        if max(self.prior, self.prior_beside) > 0 and (lora is None or lora.full or self.data.prior_class is None):
            raise ValueError(
                "part.prior needs part.data.prior_class, and a LoRA alone, whose network is its target: part.train."
                "lora with full: []"
            )
        if self.personal is not None and lora is None:
            raise ValueError("part.personal is the header of a LoRA's file; give part.train.lora, or leave it out")
        if self.personal is not None and self.personal.strength < 1 and lora is not None and lora.full:
            raise ValueError("part.personal.strength below 1 needs a LoRA alone: part.train.lora with full: []")
        return self

    @model_validator(mode="after")
    def _person_is_named(self) -> Self:
        if self.elsewhere > 0 and self.data.elsewhere is None:
            raise ValueError('part.elsewhere needs part.data.elsewhere, who is meant, such as "A zuv woman"')
        if self.regions != "none" and self.personal is None:
            raise ValueError("part.regions needs part.personal, whose name the background does not read")
        if self.regions == "pose" and self.data.poses is None:
            raise ValueError("part.regions: pose needs part.data.poses; part.regions: mask does without")
        return self


class ManifestPart(TransformerTraining):
    """Trains `ContextAnyoneTransformer` on cached rows, bucket by bucket, with the dual-guidance loss."""

    settings: Settings

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings, self.context = settings, context
        self.data = CachedData(settings.data, hulls=settings.regions == "pose")
        super().__init__(settings, starting_network(settings, context, self._fresh_config), context.shares)
        self.config = self.transformer.config
        self._check_fit()
        named = settings.regions != "none" or settings.elsewhere > 0  # whether something needs who is named
        self.prompts = PersonPrompts(
            self.data,
            settings.data,
            self.config.text_len,
            settings.personal if named else None,
            elsewhere=settings.elsewhere,
            prior=settings.prior > 0 or settings.prior_beside > 0,
        )
        empty_text = padded_text(self.data.empty_text, self.config.text_len).float()[None]
        self.empty_text = empty_text.to(context.device)  # once: every step needs it
        buckets = [row.bucket for row in self.data.rows]
        shape = self.data.image_embeds_shape()
        tokens, rank, world = shape[0] if shape else 0, context.rank, context.world
        costs = [
            bucket._replace(references=bucket.references if settings.anchor == "reference" else 0) for bucket in buckets
        ]
        plan = plan_buckets(costs, self.config, settings.data.buckets, tokens, world, rank)
        batch = {bucket: plan.batch[cost] for bucket, cost in zip(buckets, costs, strict=True)}
        self._batches = batch
        self.sampler: BucketSampler | StagedSampler
        if settings.stills_steps is None:
            self.sampler = BucketSampler(buckets, batch, context.seed, rank, world)
        else:
            stills = settings.stills_steps * context.accumulate
            self.sampler = StagedSampler(buckets, batch, context.seed, rank, world, stills=stills)
        if rank == 0:
            _LOG.info("%d rows, %d dropped:\n%s", len(buckets), len(self.data.index.dropped), plan.table())

    def encoders(self) -> Path:
        """The folder of the encoders that the cache was encoded by."""
        return self.settings.data.encoders

    def _fresh_config(self) -> ContextAnyoneConfig:
        """The chosen sizes with the widths and statistics of what the cache was encoded by."""
        index, shape, preset = self.data.index, self.data.image_embeds_shape(), CONFIGS[self.settings.model]()
        return replace(
            preset,
            text_len=index.text_len or preset.text_len,
            text_dim=self.data.empty_text.shape[1],
            image_dim=None if shape is None else shape[1],
            latents_mean=index.latents_mean,
            latents_std=index.latents_std,
        )

    def _check_fit(self) -> None:
        """Refuse a network whose encoders, or drawn poses, are not those of the cache."""
        settings, config = self.settings, self.config
        check_encoders(self.data, settings.data, config, clip_tokens=settings.anchor == "reference")
        check_poses(settings.data, config, hulls=settings.regions == "pose")
        check_length(self.data, config)

    def data_hash(self) -> str:
        """A hash of the rows and of the contents that they were encoded from."""
        return data_hash(self.data.index)

    def batches_by_bucket(self) -> dict[str, int]:
        """Clips of a batch, of all processes together, by bucket."""
        return {str(bucket): count for bucket, count in sorted(self._batches.items())}

    def batch(self, step: int) -> Any:
        """The entries of this process's rows of a step."""
        return self._named(self.data.batch(self.sampler.rows(step), self.config.text_len), self.prompts.named)

    def _named(self, batch: dict[str, Any], named: NamedRows | None) -> dict[str, Any]:
        """The batch with the tokens of each prompt that name the person, where something needs them."""
        return batch if named is None else batch | {"named": [named.captions[name] for name in batch["ids"]]}

    @property
    def _held_out_settings(self) -> DataSettings:
        return self.settings.data.model_copy(update={"split": "val"})

    @cached_property
    def held_out(self) -> CachedData:
        """The manifest's split `val`, as of its first use."""
        found = CachedData(self._held_out_settings, hulls=self.settings.regions == "pose")
        check_length(found, self.config)
        return found

    def validation_batches(self) -> Iterator[Any]:
        """The first rows of the manifest's split `val`, one by one; None for one that can no longer be read."""
        named = self.prompts.named_in(self._held_out_settings)
        for number in range(min(self.settings.validation_clips, len(self.held_out.rows))):
            batch = self.held_out.row(number, self.config.text_len)
            yield None if batch is None else self._named(batch, named)

    def encoded(self, batch: Any) -> EncodedClips:
        """A batch with weights that are `background_weight` outside the person's mask."""
        settings = self.settings
        aim = "target" if settings.reconstruct == "target" else "reference"
        tokens = batch.get("image_embeds")
        return EncodedClips(
            batch["latents"].float(),
            self._weights(batch["masks"]),
            batch["reference_latents"].float(),
            None if tokens is None else tokens.float(),
            target=batch[f"{aim}_latents"].float(),
            target_weights=self._weights(batch[f"{aim}_masks"]),
            poses=batch["poses"].float() if "poses" in batch else None,
            conditioned=self.conditioned,
            regions=self._regions(batch),
            regions_of_pose=settings.regions == "pose",
            start_frames=self.start_frames,
        )

    def _regions(self, batch: Any) -> Regions | None:
        """Where the person is: by the mask, enlarged as in the loss, or by the pose's hull, as in generation."""
        if self.settings.regions == "none":
            return None
        if self.settings.regions == "pose":
            return Regions(batch["hulls"].float(), tuple(batch["named"]))
        return Regions(dilated(batch["masks"].float(), self.settings.dilate_mask), tuple(batch["named"]))

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The dual-guidance loss; in a share of the steps, of all processes alike, that of the prior."""
        drawn = torch.rand((), generator=torch_generator(self.context.seed, step, "prior"))
        settings, prompts = self.settings, self.prompts
        of_prior = bool(drawn < settings.prior)
        batch = batch if of_prior else prompts.in_other_places(batch, generator)
        clips = self.encoded(batch)
        draws = self.draws(clips, step, generator)
        if of_prior:
            of_class = moved(prompts.of_class(len(clips.latents), generator), clips.latents.device)
            losses, metrics = prior_step(self.transformer, clips, draws, of_class)
            return settings.prior_weight * losses, metrics
        losses, metrics = dual_guidance_step(self.transformer, settings, clips, draws, self.texts(batch, draws))
        if not settings.prior_beside:
            return losses, metrics
        beside, terms = self._prior_beside(batch, (clips, draws), generator)
        return losses + settings.prior_weight * beside.mean(), metrics | terms

    def _prior_beside(
        self, batch: Any, drawn: tuple[EncodedClips, Draws], generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """The prior of the first samples: the same noisy clips under the same prompts without the name."""
        clips, draws = drawn
        count = math.ceil(self.settings.prior_beside * len(clips.latents))
        texts = moved(self.prompts.beside(batch, count, generator), clips.latents.device)
        return prior_step(self.transformer, clips.first(count), draws.first(count), texts)

    def lora_strength(self) -> float:
        """Of a personal model, its preset's."""
        return 1.0 if self.settings.personal is None else self.settings.personal.strength

    def lora_header(self) -> dict[str, str]:
        """A personal file's header, where the run states whose it is."""
        person, start = self.settings.personal, self.context.init_from
        return {} if person is None or start is None else person.described(file_sha256(start)).metadata()

    def texts(self, batch: Any, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """The cached embeddings; where the text is dropped, the empty prompt's."""
        video_text = batch["video_text"].float()
        keep = moved(torch.tensor(draws.keep_text), video_text.device)[:, None, None]
        video_text = torch.where(keep, video_text, self.empty_text)
        return video_text, batch["first_text"].float() if draws.reference else None

    def _weights(self, mask: Tensor) -> Tensor:
        background = self.settings.background_weight
        return background + (1.0 - background) * dilated(mask.float(), self.settings.dilate_mask)

    def sample(self, step: int, folder: Path) -> None:
        """For the first rows of the manifest: references, generated clip, and the clip itself, side by side.

        In place of a row that can no longer be read, the next of its bucket: processes that share the network make
        equally many passes, whoever cannot read it.
        """
        file, device = self.settings.data.encoders / "vae.safetensors", self.context.device
        vae = VideoVAE(load_vae(file, card_dtype(device), device), tiled=True)  # a card that trains has little room
        for number, row in enumerate(self.data.rows[: self.settings.sample_clips]):
            batch = self.data.batch([number], self.config.text_len)
            reference, truth = cast(Tensor, batch["reference_latents"]), cast(Tensor, batch["latents"])
            with lora_at(self.transformer, self.lora_strength()):
                latents = self._generate(batch, row.bucket)
            length = row.bucket.num_frames
            shown = [vae.decode(item.float()) for item in (*torch.split(reference, 1, dim=2), latents, truth)]
            views = [view.expand(-1, -1, length, -1, -1) if view.shape[2] == 1 else view for view in shown]
            frames = images_to_frames(torch.cat([view.cpu() for view in views], dim=-1))
            if length > 1:
                write_clip(folder / f"{number:03d}.mp4", frames, {"id": batch["ids"][0], "step": step})
            else:
                write_png(folder / f"{number:03d}.png", frames[0])

    def _generate(self, batch: dict[str, Any], bucket: Bucket) -> Tensor:
        sampler = LatentSampler(self.transformer)
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        on_device = {name: tensor.to(sampler.device, sampler.dtype) for name, tensor in tensors.items()}
        tokens = [on_device["image_embeds"]] if "image_embeds" in on_device else []
        pictures = list(torch.split(on_device["reference_latents"], 1, dim=2))
        references = ReferenceInputs(pictures, on_device["first_text"], tokens)
        pose = on_device["poses"] if self.conditioned and "poses" in on_device else None
        regions = self._regions(self._named(batch, self.prompts.named))
        regions = None if regions is None else regions.to(sampler.device, sampler.dtype)
        video = None if pose is None and regions is None else VideoCondition(pose, None, regions)
        empty = self.empty_text.to(sampler.device, sampler.dtype)
        settings = GenerationSettings(
            num_frames=bucket.num_frames, width=bucket.width, height=bucket.height, steps=self.settings.sample_steps
        )
        with torch.compiler.set_stance("force_eager"):  # other shapes than in training: not worth a compilation
            anchored = references if self.settings.anchor == "reference" else None
            conditions = Conditions(on_device["video_text"], empty, anchored, video)
            return sampler.sample_latents(conditions, settings, sampler.noise([0], settings))
