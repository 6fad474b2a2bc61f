"""The people of the comparison: test characters, one clip of each, and what is asked of their models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.media.video_io import write_clip
from contextanyone_core.pose.pose_file import pose_file_bytes
from training.data.world_poses import world_poses
from training.files import write_png
from training.world import (
    LIGHTS,
    PLACES,
    TEST_SEED_START,
    Character,
    Clip,
    Scene,
    Shot,
    draw_character,
    draw_scene,
    draw_shot,
    free_motion,
    neutral_prompts,
    render_clip,
)

NAME, CLASS = "zuv", "person"
SIDE, FRAMES = 128, 17
_OWN_FRAMES = 65  # of the clip that a model is trained on: four seconds
_SEEDS = TEST_SEED_START * 7  # of the first person; an evaluation's own are below
_IN_OWN_PLACE = 4  # one prompt in so many asks for the clip's own place in another light


@dataclass(frozen=True)
class Asked:
    """One prompt, and how the person is to move.

    Attributes:
        scene: its place and light. own_place: whether the place is the training clip's.
        joints: (T, 14, 2), where the person's joints must be. seed: of the noise.
        rendering: (T, H, W, 3), how the world draws it.
    """

    scene: Scene
    own_place: bool
    joints: NDArray[np.float32]
    seed: int
    rendering: NDArray[np.uint8]

    def prompt(self, who: str) -> str:
        """The prompt about `who`, which names no attribute and no action."""
        rest = neutral_prompts(self.scene, action_named=False)[1].removeprefix("The same person ")
        return f"{who} {rest}"


@dataclass(frozen=True)
class Person:
    """A test character with one clip."""

    number: int

    @cached_property
    def _drawn(self) -> tuple[Character, Shot]:
        rng = np.random.default_rng([_SEEDS + self.number, 0])
        character = draw_character(rng, test=True)
        return character, draw_shot(draw_scene(rng), rng)

    @property
    def character(self) -> Character:
        """Who it is."""
        return self._drawn[0]

    @property
    def shot(self) -> Shot:
        """The clip's scene, motion and backdrop."""
        return self._drawn[1]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Indices of the eight attributes."""
        return np.asarray(self.character.labels(), np.int64)

    @cached_property
    def clip(self) -> Clip:
        """The clip that a model is trained on."""
        return render_clip(self.character, self.shot, np.arange(_OWN_FRAMES, dtype=np.float64), (SIDE, SIDE))

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write the clip, its masks and its poses: the renderer's own, so that no detector's error is measured."""
        folder.mkdir(parents=True, exist_ok=True)
        video, masks, poses = folder / "clip.mp4", folder / "masks", folder / "pose.safetensors"
        write_clip(video, self.clip.video, {})
        masks.mkdir(exist_ok=True)
        for index, mask in enumerate(self.clip.masks):
            write_png(masks / f"{index:03d}.png", mask)
        poses.write_bytes(pose_file_bytes(world_poses(self.clip.keypoints, (SIDE, SIDE))))
        return video, masks, poses

    def asked(self, count: int) -> list[Asked]:
        """The prompts, each with a free motion of this person's body that no word names."""
        own, found = self.shot.scene, []
        places = [place for place in PLACES if place != own.place]
        lights = [light for light in LIGHTS if light != own.light]
        for index in range(count):
            rng = np.random.default_rng([_SEEDS + self.number, 1, index])
            at_home = index % _IN_OWN_PLACE == _IN_OWN_PLACE - 1
            place = own.place if at_home else places[index % len(places)]
            scene = Scene(own.action, place, lights[(index // len(places)) % len(lights)])
            shot = replace(draw_shot(scene, rng), free=free_motion(rng))
            drawn = render_clip(self.character, shot, np.arange(FRAMES, dtype=np.float64), (SIDE, SIDE))
            found.append(Asked(scene, at_home, drawn.keypoints, int(rng.integers(1 << 31)), drawn.video))
        return found
