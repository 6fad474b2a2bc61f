"""Whom an evaluation is made on: test characters, their pictures, and the requests to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.prompts import TwoStagePrompt
from training.world import (
    ATTRIBUTES,
    TEST_SEED_START,
    Character,
    WorldSample,
    first_caption,
    neutral_prompts,
    posed_sample,
    sample,
)

Motion = Literal["asked", "free", "held_out"]
"""An action that the prompt names, a motion that no word names, and one of the family that training never had."""

CONTRADICTED = 2
"""How many attributes a contradicting prompt names, each with a value that the picture does not show."""


@dataclass(frozen=True)
class Subject:
    """One test character: its picture elsewhere, the requested scene, and the rendered truth."""

    seed: int
    size: int
    num_frames: int
    motion: Motion | None = None

    @cached_property
    def drawn(self) -> WorldSample:
        """The rendered clip with its reference picture; with a `motion`, of a body with limbs of any length."""
        size = (self.size, self.size)
        if self.motion is None:
            return sample(self.seed, self.num_frames, size)
        free, held_out = self.motion != "asked", self.motion == "held_out"
        return posed_sample(self.seed, self.num_frames, size, free=free, held_out=held_out)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Indices of the eight attributes."""
        return np.asarray(self.drawn.character.labels(), np.int64)

    @property
    def scene_labels(self) -> NDArray[np.int64]:
        """Indices of action, place and light."""
        return np.asarray(self.drawn.scene.labels(), np.int64)

    @property
    def neutral(self) -> TwoStagePrompt:
        """The plainest prompts for the scene, naming no attribute: only the reference shows who it is."""
        return TwoStagePrompt(*neutral_prompts(self.drawn.scene, action_named=not self.drawn.free))

    @property
    def captions(self) -> TwoStagePrompt:
        """The caption grammar's own prompts, as in training."""
        return TwoStagePrompt(self.drawn.first_prompt, self.drawn.later_prompt)

    @cached_property
    def contradiction(self) -> Contradiction:
        """A prompt that contradicts the picture in two attributes."""
        rng = np.random.default_rng([self.seed, 2])
        truth = self.drawn.character
        other = Character(**{name: _other_value(rng, name, getattr(truth, name)) for name in ATTRIBUTES})
        named = [str(name) for name in rng.choice(list(ATTRIBUTES), CONTRADICTED, replace=False)]
        first = first_caption(other, self.drawn.scene, named, rng)
        claimed = np.asarray(other.labels(), np.int64)
        return Contradiction(TwoStagePrompt(first, self.neutral.later), tuple(named), claimed)


@dataclass(frozen=True)
class Contradiction:
    """A prompt, the attributes that it names, and the values claimed for them (indices for all eight attributes)."""

    prompt: TwoStagePrompt
    named: tuple[str, ...]
    claimed: NDArray[np.int64]


def subjects(seed: int, count: int, size: int, num_frames: int, motion: Motion | None = None) -> list[Subject]:
    """The test characters of an evaluation; different seeds give different ones, and a larger count adds to them."""
    start = first_seed(seed)
    return [Subject(start + index, size, num_frames, motion) for index in range(count)]


def first_seed(seed: int) -> int:
    """The first test seed of an evaluation: a million for each, all of them test seeds."""
    return TEST_SEED_START * (seed + 1)


def neighbour(index: int, chosen: Sequence[Subject]) -> Subject:
    """Whose picture a shuffled reference shows: the next subject's."""
    return chosen[(index + 1) % len(chosen)]


def _other_value(rng: np.random.Generator, name: str, value: str) -> str:
    return str(rng.choice([other for other in ATTRIBUTES[name] if other != value]))
