"""Frames, clips and training pairs of the character world, deterministic from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.world.actions import Motion, Pose, base_rate, pose_at
from training.world.attributes import TEST_SEED_START, Character, draw_character
from training.world.canvas import Canvas
from training.world.captions import draw_named, first_caption, later_caption
from training.world.figure import USUAL_LIMBS, Limbs, Skeleton, Stance, draw_figure, draw_limbs
from training.world.motion import FreeMotion, free_motion
from training.world.places import GROUND, draw_place
from training.world.scene import Scene, draw_scene

VERSION = 1
"""Counts changes of what is drawn or captioned for a seed; data on disk is kept apart by it."""

_LIGHT_ON_PLACE = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.80, 0.66), "night": (0.46, 0.50, 0.74)}
_LIGHT_ON_PERSON = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.92, 0.84), "night": (0.74, 0.77, 0.94)}


@dataclass(frozen=True)
class Shot:
    """Everything that fixes a clip besides the character: the scene, its variety, the motion and the stance.

    ``x``, ``height`` are shares of the picture's width and of its shorter side. With ``free`` the person moves as that
    says and not as the scene's action.
    """

    scene: Scene
    background_seed: int
    motion: Motion
    x: float
    height: float
    limbs: Limbs = USUAL_LIMBS
    free: FreeMotion | None = None

    def pose_at(self, frame: float) -> Pose:
        """The pose at a frame number (16 frames a second)."""
        return self.free.pose_at(frame) if self.free is not None else pose_at(self.scene.action, frame, self.motion)


@dataclass(frozen=True)
class Clip:
    """A clip: ``video`` (T, H, W, 3) and ``masks`` (T, H, W) uint8, ``keypoints`` (T, 14, 2) float32 pixels."""

    video: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    keypoints: NDArray[np.float32]


@dataclass(frozen=True)
class WorldSample:
    """A training pair: a clip of a character, and a reference picture of the same one elsewhere.

    ``video`` (T, H, W, 3), ``masks`` (T, H, W), ``reference`` (H, W, 3) and ``reference_mask`` (H, W) are uint8,
    ``keypoints`` (T, 14, 2) float32 pixels. The prompts name 0 to 8 of the attributes.
    """

    video: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    reference: NDArray[np.uint8]
    reference_mask: NDArray[np.uint8]
    first_prompt: str
    later_prompt: str
    character: Character
    scene: Scene
    reference_scene: Scene
    limbs: Limbs = USUAL_LIMBS
    free: bool = False


def draw_shot(scene: Scene, rng: np.random.Generator) -> Shot:
    """Random small varieties of a scene."""
    motion = Motion(
        phase=float(rng.random()),
        cycles_per_second=base_rate(scene.action) * float(rng.uniform(0.85, 1.15)),
        side=-1 if rng.random() < 0.5 else 1,
        amplitude=float(rng.uniform(0.85, 1.15)),
    )
    return Shot(
        scene, int(rng.integers(1 << 31)), motion, float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.70, 0.78))
    )


def render_clip(character: Character, shot: Shot, frames: NDArray[np.float64], size: tuple[int, int]) -> Clip:
    """Render frames (numbers at 16 a second) of a shot at ``size`` = (height, width) pixels."""
    height, width = size
    backdrop = Canvas(height, width)
    draw_place(backdrop, shot.scene.place, shot.scene.light, np.random.default_rng(shot.background_seed))
    stance = _stance(shot, size)
    pictures, masks, keypoints = [], [], []
    for frame in frames:
        canvas = backdrop.copy()
        keypoints.append(draw_figure(canvas, character, shot.pose_at(float(frame)), stance, shot.limbs))
        mask = canvas.mask()
        pictures.append(_lit(canvas.picture(), mask, shot.scene.light))
        masks.append(mask)
    return Clip(np.stack(pictures), np.stack(masks), np.stack(keypoints))


def _stance(shot: Shot, size: tuple[int, int]) -> Stance:
    height, width = size
    return Stance(shot.x * width, GROUND * height, shot.height * min(height, width))


def _lit(picture: NDArray[np.uint8], mask: NDArray[np.uint8], light: str) -> NDArray[np.uint8]:
    if light == "day":
        return picture
    share = mask.astype(np.float32)[..., None] / 255.0
    place, person = (np.asarray(table[light], np.float32) for table in (_LIGHT_ON_PLACE, _LIGHT_ON_PERSON))
    return np.round(picture * (place + (person - place) * share)).astype(np.uint8)


def _rng(seed: int, purpose: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more (from {TEST_SEED_START} on: test characters).")
    return np.random.default_rng([seed, purpose])


def sample(seed: int, num_frames: int = 17, size: tuple[int, int] = (128, 128)) -> WorldSample:
    """One training pair.

    The reference shows the same character in another action, place and light (Paper: the edited ground-truth frame).
    Seeds below 1,000,000 draw train characters, the others test characters; ``size`` is (height, width).

    Raises:
        ValueError: for a negative seed.
    """
    rng = _rng(seed, 0)
    character = draw_character(rng, test=seed >= TEST_SEED_START)
    scene = draw_scene(rng)
    shot = draw_shot(scene, rng)
    reference_scene = draw_scene(rng, other_than=scene)
    reference_shot = draw_shot(reference_scene, rng)
    clip = render_clip(character, shot, np.arange(num_frames, dtype=np.float64), size)
    still = render_clip(character, reference_shot, np.array([float(rng.uniform(0, 16))]), size)
    prompts = _captions(character, scene, (0.35, 0.6), rng)
    return _pair(clip, still, prompts, character, (scene, reference_scene))


def posed_sample(
    seed: int,
    num_frames: int = 17,
    size: tuple[int, int] = (128, 128),
    *,
    free: bool | None = None,
    held_out: bool = False,
) -> WorldSample:
    """A training pair for the pose: as :func:`sample`, with limbs of any length and, for half of them, a free motion.

    The reference has the clip's limbs. The captions of a free motion name no action.

    Args:
        free: whether the person moves freely; None draws it.
        held_out: a motion of the family that no training pair has.

    Raises:
        ValueError: for a negative seed.
    """
    drawn = _draw_posed(seed, num_frames, free, held_out=held_out)
    rng, (scene, reference_scene) = drawn.rng, drawn.scenes
    clip = render_clip(drawn.character, drawn.shot, np.arange(num_frames, dtype=np.float64), size)
    still = render_clip(drawn.character, drawn.reference_shot, np.array([float(rng.uniform(0, 16))]), size)
    moves_freely = drawn.shot.free is not None
    prompts = _captions(drawn.character, scene, (0.35, 0.6), rng, action_named=not moves_freely)
    pair = _pair(clip, still, prompts, drawn.character, (scene, reference_scene))
    return replace(pair, limbs=drawn.shot.limbs, free=moves_freely)


def posed_keypoints(seed: int, num_frames: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """The keypoints (T, 14, 2) of `posed_sample`'s clip, in pixels, without drawing it."""
    drawn = _draw_posed(seed, num_frames, None, held_out=False)
    stance, shot = _stance(drawn.shot, size), drawn.shot
    poses = (shot.pose_at(float(frame)) for frame in range(num_frames))
    return np.stack([Skeleton(drawn.character, pose, stance, shot.limbs).keypoints() for pose in poses])


@dataclass(frozen=True)
class _Posed:
    """What `posed_sample` draws from its seed before it renders; ``rng`` goes on from there."""

    character: Character
    scenes: tuple[Scene, Scene]
    shot: Shot
    reference_shot: Shot
    rng: np.random.Generator


def _draw_posed(seed: int, num_frames: int, free: bool | None, *, held_out: bool) -> _Posed:
    rng = _rng(seed, 2)
    character = draw_character(rng, test=seed >= TEST_SEED_START)
    scene = draw_scene(rng)
    reference_scene = draw_scene(rng, other_than=scene)
    limbs = draw_limbs(rng)
    moves_freely = bool(rng.random() < 0.5) if free is None else free
    motion = free_motion(rng, held_out=held_out) if moves_freely else None
    shot = replace(draw_shot(scene, rng), limbs=limbs, free=motion)
    reference_shot = replace(draw_shot(reference_scene, rng), limbs=limbs)
    if num_frames == 1:  # as in `random_frame`
        shot, reference_shot = _wander(shot, rng), _wander(reference_shot, rng)
    return _Posed(character, (scene, reference_scene), shot, reference_shot, rng)


def random_frame(seed: int, size: tuple[int, int] = (128, 128)) -> WorldSample:
    """The cheap still form of :func:`sample`: a clip of one frame at a random moment, with its reference.

    Figures vary more in size and place than in clips, so that networks trained on stills see every part of them.
    """
    rng = _rng(seed, 1)
    character = draw_character(rng, test=seed >= TEST_SEED_START)
    scene = draw_scene(rng)
    reference_scene = draw_scene(rng, other_than=scene)
    moment = np.array([float(rng.uniform(0, 16))])
    clip = render_clip(character, _wander(draw_shot(scene, rng), rng), moment, size)
    still = render_clip(character, _wander(draw_shot(reference_scene, rng), rng), moment, size)
    prompts = _captions(character, scene, (0.2, 0.4), rng)
    return _pair(clip, still, prompts, character, (scene, reference_scene))


def _captions(
    character: Character,
    scene: Scene,
    silent: tuple[float, float],
    rng: np.random.Generator,
    *,
    action_named: bool = True,
) -> tuple[str, str]:
    """First and later caption; each names no attribute with its share of ``silent``."""
    first = first_caption(character, scene, draw_named(rng, silent_share=silent[0]), rng)
    named = draw_named(rng, silent_share=silent[1])
    return first, later_caption(character, scene, named, rng, action_named=action_named)


def _pair(
    clip: Clip, still: Clip, prompts: tuple[str, str], character: Character, scenes: tuple[Scene, Scene]
) -> WorldSample:
    return WorldSample(
        clip.video, clip.masks, clip.keypoints, still.video[0], still.masks[0], *prompts, character, *scenes
    )


def _wander(shot: Shot, rng: np.random.Generator) -> Shot:
    return replace(shot, x=float(rng.uniform(0.36, 0.64)), height=float(rng.uniform(0.68, 0.80)))
