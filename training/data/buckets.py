"""Buckets: the sizes and lengths that clips are brought to, and how many of each make a batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.shapes import VideoShape, frames_mistake, side_mistake
from training.data.frames import Box, Placement
from training.flops import forward_flops

_LOG = logging.getLogger(__name__)


def _possible_length(frames: int) -> int:
    if mistake := frames_mistake(frames):
        raise ValueError(mistake)
    return frames


FrameCount = Annotated[int, Field(ge=1), AfterValidator(_possible_length)]
"""A number of frames in a configuration: 4k + 1."""


class Bucket(NamedTuple):
    """A shape that clips share, in pixels as `VideoShape`, and how many references each of them has."""

    num_frames: int
    height: int
    width: int
    references: int = 1

    def __str__(self) -> str:
        several = f"+{self.references}" if self.references > 1 else ""
        return f"{self.shape}{several}"

    @property
    def shape(self) -> VideoShape:
        """The size of a clip."""
        return VideoShape(*self[:3])

    def latents(self, config: ContextAnyoneConfig) -> tuple[int, int, int]:
        """(t, h, w) of a clip's latents."""
        return self.shape.latents(config)

    def token_count(self, config: ContextAnyoneConfig) -> int:
        """How many tokens the transformer makes of a clip."""
        return self.shape.token_count(config)


class BucketSettings(BaseModel):
    """Which buckets there are, and how many clips one step takes.

    Attributes:
        sizes: `<width>x<height>`. A clip goes to the size that shows the most of it, the larger of two that show
            equally much.
        frames: lengths at 16 a second. A clip goes to the longest that it fills; what is beyond is not used.
        budget: work of one step, all processes together, in clips of the costliest bucket; one for each process at
            least. A cheaper bucket takes as many more as the same FLOPs allow.
        max_tokens: the most tokens, of clips and references, that one process has in a step; one clip is
            always allowed. Equal FLOPs are not equal memory: short clips have many tokens for theirs. None: no limit.
        max_upscale: how much a picture may be enlarged to fill a size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sizes: tuple[str, ...] = ("832x480", "480x832", "720x544", "544x720", "624x624")
    frames: tuple[FrameCount, ...] = (1, 33, 49, 81)
    budget: float = Field(default=1.0, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_upscale: float = Field(default=1.25, ge=1)

    @field_validator("sizes")
    @classmethod
    def _sizes_are_possible(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            width, _, height = size.partition("x")
            if not (width.isdecimal() and height.isdecimal() and int(width) * int(height)):
                raise ValueError(f"{size!r} is not of the form <width>x<height>, such as 832x480")
            for side in (int(width), int(height)):
                if mistake := side_mistake(side):
                    raise ValueError(f"{size} has a side of {side}; {mistake}")
        return _some(sizes)

    @field_validator("frames")
    @classmethod
    def _frames_are_some(cls, frames: tuple[int, ...]) -> tuple[int, ...]:
        return _some(frames)

    def shapes(self) -> list[tuple[int, int]]:
        """The sizes as (height, width)."""
        pairs = (size.split("x") for size in self.sizes)
        return [(int(height), int(width)) for width, height in pairs]


def _some(values: tuple[str, ...] | tuple[int, ...]) -> tuple:  # type: ignore[type-arg]
    if not values or len(set(values)) != len(values):
        raise ValueError("it needs at least one entry, and each only once")
    return values


def best_placement(settings: BucketSettings, box: Box) -> Placement | None:
    """The size that shows the most of `box` without enlarging it too much, None where every size would."""
    placements = [Placement(box, shape) for shape in settings.shapes()]
    allowed = [placement for placement in placements if placement.scale <= settings.max_upscale + 1e-6]
    return max(allowed, key=lambda p: (round(p.kept, 2), p.size[0] * p.size[1]), default=None)


def bucket_tokens(config: ContextAnyoneConfig, bucket: Bucket) -> int:
    """Tokens of one clip of a bucket and of its references, which have its size."""
    return bucket.token_count(config) + sum(_reference_tokens(config, bucket))


def bucket_flops(config: ContextAnyoneConfig, bucket: Bucket, clip_tokens: int) -> int:
    """FLOPs of one forward pass of one clip of a bucket with its references, of `clip_tokens` CLIP tokens each."""
    video = bucket.token_count(config)
    return forward_flops(config, video, _reference_tokens(config, bucket), clip_tokens * bucket.references)


def _reference_tokens(config: ContextAnyoneConfig, bucket: Bucket) -> list[int]:
    return [bucket.shape.picture.token_count(config)] * bucket.references


@dataclass(frozen=True)
class BucketPlan:
    """The buckets in use: `rows` in each, clips in a batch of all processes together, FLOPs of one clip."""

    rows: dict[Bucket, int]
    batch: dict[Bucket, int]
    flops: dict[Bucket, int]

    def table(self) -> str:
        """The plan in words, one line for each bucket, with each one's share of an epoch's FLOPs."""
        steps = {bucket: -(-count // self.batch[bucket]) for bucket, count in self.rows.items()}
        work = {bucket: steps[bucket] * self.batch[bucket] * self.flops[bucket] for bucket in self.rows}
        lines = [f"{'bucket':>14} {'rows':>8} {'batch':>6} {'steps':>7} {'repeated':>9} {'GFLOP':>10} {'share':>6}"]
        for bucket, count in self.rows.items():
            repeated = steps[bucket] * self.batch[bucket] - count
            share = work[bucket] / sum(work.values())
            cells = f"{bucket!s:>14} {count:>8} {self.batch[bucket]:>6} {steps[bucket]:>7} {repeated:>9}"
            lines.append(f"{cells} {self.flops[bucket] / 1e9:>10.1f} {share:>6.1%}")
        return "\n".join(lines) + "\n"


def plan_buckets(
    buckets: Iterable[Bucket],
    config: ContextAnyoneConfig,
    settings: BucketSettings,
    clip_tokens: int,
    world: int = 1,
    rank: int = 0,
) -> BucketPlan:
    """Count the rows of each bucket and give it a batch of equal cost.

    Args:
        buckets: the bucket of every row.
        config: the network whose FLOPs and tokens count. clip_tokens: of a reference.
        world: number of processes. Batches are multiples of it, so that every process has the same work. A smaller
            budget is raised to it, with a warning.
        rank: this process; the first one alone warns.
    """
    rows = dict(sorted(Counter(buckets).items()))
    flops = {bucket: bucket_flops(config, bucket, clip_tokens) for bucket in rows}
    costliest = max(flops.values(), default=0)
    budget = max(settings.budget, world)
    if budget > settings.budget and rank == 0:
        _LOG.warning(
            "buckets.budget is %g, of %d processes together, which take one clip each at least: a step takes %d clips "
            "of the costliest bucket.",
            settings.budget,
            world,
            world,
        )
    each = {bucket: int(budget * costliest / cost / world + 1e-9) for bucket, cost in flops.items()}
    if settings.max_tokens is not None:
        each = {b: min(count, settings.max_tokens // bucket_tokens(config, b)) for b, count in each.items()}
    return BucketPlan(rows, {bucket: max(1, count) * world for bucket, count in each.items()}, flops)
