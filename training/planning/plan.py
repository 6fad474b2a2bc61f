"""The plan of a run: its buckets, the cost of a step, memory by part, time on named cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import ValidationError

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import mini_image_config
from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.memory import CLIP_TOKENS
from contextanyone_core.weights.checkpoint import transformer_config
from contextanyone_core.weights.naming import TRANSFORMER
from contextanyone_core.weights.safetensors_file import read_header
from contextanyone_core.weights.source import open_source
from training.config import TrainConfig
from training.data.buckets import Bucket, BucketPlan, bucket_flops, bucket_tokens, plan_buckets
from training.data.cache import index_path, read_index
from training.flops import forward_flops
from training.parts import manifest, transformer
from training.planning.density import Levels
from training.planning.trace import StepCost, StepShape, trace_step
from training.planning.worlds import Share, ways_to_share
from training.recompute import Recompute
from training.trainable import choose_trained, frozen_names


class Disk(NamedTuple):
    """Bytes on disk: checkpoints while one more is being written, the exported files, the cached rows of the plan."""

    checkpoints: int
    export: int
    cache: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class RunPlan:
    """What a configuration costs.

    Attributes:
        config: the run. model: its network. world: processes.
        buckets: what a step takes of each; rows are 0 where the data are not there yet.
        from_data: whether the buckets are those of cached rows; else those that the configuration allows.
        shape: one process's part of the costliest batch, by FLOPs. widest: of the batch with the most tokens, text and
            CLIP tokens among them.
        costs: FLOPs of the first and memory of the one that needs more, by kind of activation checkpointing; kinds
            that the configuration excludes are left out.
    """

    config: TrainConfig
    model: ContextAnyoneConfig
    world: int
    buckets: BucketPlan
    from_data: bool
    shape: StepShape
    widest: StepShape
    costs: Mapping[Recompute, StepCost]

    @property
    def settings(self) -> manifest.Settings | transformer.Settings:
        """The part's settings."""
        return _settings(self.config)

    @property
    def levels(self) -> Levels:
        """How noise levels are drawn."""
        return Levels(self.settings.shift, self.settings.uniform, self.settings.sigmas)

    def trained(self) -> dict[int, int]:
        """How many parameters are trained from which step on, as `part.train.thaw` has it."""
        network, train = ContextAnyoneTransformer(self.model, device="meta"), self.settings.train
        choose_trained(network, train)
        sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
        steps = [0, *sorted(set(train.thaw.values()))]
        return {step: sum(sizes.values()) - sum(sizes[n] for n in frozen_names(sizes, train, step)) for step in steps}

    @property
    def parameters(self) -> int:
        """How many parameters the network has, a LoRA's among them."""
        network = ContextAnyoneTransformer(self.model, device="meta")
        choose_trained(network, self.settings.train)
        return sum(parameter.numel() for parameter in network.parameters())

    @property
    def cost(self) -> StepCost:
        """Of the step as the configuration has it."""
        return self.costs[self.settings.recompute]

    @property
    def batches(self) -> int:
        """Batches of a step, one after the other."""
        return self.config.optim.accumulate

    def ways(self) -> list[Share]:
        """How the processes can share the work."""
        ways = ways_to_share(self.cost, self.model, self.world, self.batches, bf16=self.config.precision != "fp32")
        lora = self.settings.train.lora
        whole = self.config.optim.optimizer != "adamw" or (
            lora is not None and (lora.offload or lora.base != "float32")
        )
        return ways[:1] if whole else ways

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights (of a LoRA those that are trained), their average, the optimizer's state."""
        weights = self.cost.weights if self.settings.train.lora is None else self.cost.ema
        return weights + self.cost.ema + self.cost.optimizer

    def entry_bytes(self, bucket: Bucket) -> int:
        """At most, of one cached row: latents, text without padding and CLIP tokens in float16, masks as bytes."""
        model, (frames, height, width) = self.model, bucket.latents(self.model)
        pictures = frames + 2 * bucket.references  # what the reference stream reconstructs has latents of its own
        image = 0 if model.image_dim is None else self.shape.clip_tokens * bucket.references * model.image_dim
        return 2 * (pictures * height * width * (model.in_dim + 1) + 2 * model.text_len * model.text_dim + image)

    def disk_bytes(self) -> Disk:
        """What the run's folder and the cache need at their fullest."""
        checkpoints = (self.config.run.keep_last + 1) * self.checkpoint_bytes()
        cache = sum(count * self.entry_bytes(bucket) for bucket, count in self.buckets.rows.items())
        lora = self.settings.train.lora
        network = 0 if lora is not None and not lora.merged else 2 * self.parameters
        exported = network + (0 if lora is None else self.cost.ema // 2)
        return Disk(checkpoints, exported, cache)

    def step_seconds(self, rate: float) -> float:
        """Of a step of the costliest batches at a rate in FLOP/s; data and communication not counted."""
        return self.batches * (self.cost.forward_flops + self.cost.backward_flops) / rate

    def gpu_hours(self, rate: float) -> float:
        """Of the whole run, every step counted as the costliest: cheaper buckets are filled up to no more."""
        return self.step_seconds(rate) * self.config.run.steps * self.world / 3600


def plan_run(config: TrainConfig, world: int = 1) -> RunPlan:
    """Plan a run of the parts `transformer` and `manifest`.

    Neither data nor weights need to be there: where they are, their buckets and sizes are taken.

    Raises:
        InputError: another part, a pattern of part.train that matches nothing, or a cache that does not fit.
    """
    settings = _settings(config)
    model = model_config(config)
    tokens = 0 if settings.anchor == "none" else clip_tokens(model)
    buckets, from_data = _buckets(settings, model, tokens, world)
    work = {bucket: (flops * buckets.batch[bucket], bucket) for bucket, flops in buckets.flops.items()}
    shape = _shape(max(work, key=work.__getitem__), buckets, tokens, world)
    beside = 2 * model.text_len + tokens  # of either stream's text, and of CLIP
    room = {b: ((bucket_tokens(model, b) + beside) * buckets.batch[b], *work[b]) for b in work}
    widest = _shape(max(room, key=room.__getitem__), buckets, tokens, world)
    costs = {}
    for kind in RECOMPUTE:
        if (kept := _recomputing(settings, kind)) is not None:
            bf16 = config.precision != "fp32"  # auto is bf16 on every card
            steps = [
                trace_step(model, kept, which, config.optim, bf16=bf16) for which in dict.fromkeys((shape, widest))
            ]
            most = max(steps, key=lambda cost: cost.peak)
            flops = {"forward_flops": steps[0].forward_flops, "backward_flops": steps[0].backward_flops}
            costs[kind] = replace(most, **flops)
    return RunPlan(config, model, world, buckets, from_data, shape, widest, costs)


def _shape(bucket: Bucket, buckets: BucketPlan, clip_tokens: int, world: int) -> StepShape:
    return StepShape(bucket, buckets.batch[bucket] // world, clip_tokens)


def model_config(config: TrainConfig) -> ContextAnyoneConfig:
    """The network's sizes: those of `init.from` where that file is there, else of the part's preset."""
    return _settings(config).network_config(_whole_config(config))


def _whole_config(config: TrainConfig) -> ContextAnyoneConfig:
    start, settings = config.init.from_, _settings(config)
    if start is not None and start.is_file():
        if settings.anchor == "none":
            return transformer_config(open_source(start), plain=True)
        header = read_header(start)
        if header.kind != TRANSFORMER:
            raise InputError(
                f"init.from is {start}, which is no transformer of this project; contextanyone init makes one."
            )
        return ContextAnyoneConfig.from_dict(header.config)
    name = settings.model if isinstance(settings, manifest.Settings) else "miniature"
    return manifest.CONFIGS[name]()


def clip_tokens(model: ContextAnyoneConfig) -> int:
    """CLIP tokens of a reference by their width: 257 of ViT-H/14, else the miniature tower's; none without CLIP."""
    if model.image_dim is None:
        return 0
    if model.image_dim == ContextAnyoneConfig.wan_1_3b().image_dim:
        return CLIP_TOKENS
    tower = mini_image_config()
    return 1 + int(tower["image_size"] // tower["patch_size"]) ** 2


def _settings(config: TrainConfig) -> manifest.Settings | transformer.Settings:
    if not isinstance(config.part, manifest.Settings | transformer.Settings):
        raise InputError(f"part.name is {config.part.name}; plans are made for the parts manifest and transformer.")
    return config.part


def _recomputing(
    settings: manifest.Settings | transformer.Settings, kind: Recompute
) -> manifest.Settings | transformer.Settings | None:
    """The settings with a kind of activation checkpointing; None where they exclude it."""
    try:
        return type(settings).model_validate(settings.model_dump(by_alias=True) | {"recompute": kind})
    except ValidationError:
        return None


def _buckets(
    settings: manifest.Settings | transformer.Settings, model: ContextAnyoneConfig, tokens: int, world: int
) -> tuple[BucketPlan, bool]:
    """The buckets of the cached rows, where there are any, else all that the settings allow."""
    if isinstance(settings, transformer.Settings):
        bucket = Bucket(settings.num_frames, settings.size, settings.size)
        flops = bucket_flops(model, bucket, tokens)
        if settings.anchor == "none":
            flops = bucket_flops(model, bucket._replace(references=0), 0)
        if settings.one_stream:  # the reference is a frame of it
            flops = forward_flops(model, bucket_tokens(model, bucket))
        return BucketPlan({bucket: settings.pairs}, {bucket: settings.batch * world}, {bucket: flops}), False
    data = settings.data
    from_data = index_path(data).is_file() if data.manifest.is_file() else False
    shapes = data.buckets.shapes()
    possible = [Bucket(count, *shape) for count in data.buckets.frames for shape in shapes]
    found = [row.bucket for row in read_index(data).rows] if from_data else possible
    if settings.anchor == "none":
        found = [bucket._replace(references=0) for bucket in found]
    plan = plan_buckets(found, model, data.buckets, tokens, world)
    return (plan, True) if from_data else (replace(plan, rows=dict.fromkeys(plan.rows, 0)), False)
