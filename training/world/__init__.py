"""The character world: a procedural renderer of little people."""

from training.world.actions import FRAMES_PER_SECOND
from training.world.attributes import ATTRIBUTES, TEST_SEED_START, Character, draw_character
from training.world.captions import first_caption, later_caption, neutral_prompts
from training.world.figure import KEYPOINTS, USUAL_LIMBS, Limbs
from training.world.motion import FreeMotion, free_motion
from training.world.render import (
    VERSION,
    Clip,
    Shot,
    WorldSample,
    draw_shot,
    posed_keypoints,
    posed_sample,
    random_frame,
    render_clip,
    sample,
)
from training.world.scene import ACTIONS, LIGHTS, PLACES, Scene, draw_scene

__all__ = [
    "ACTIONS",
    "ATTRIBUTES",
    "FRAMES_PER_SECOND",
    "KEYPOINTS",
    "LIGHTS",
    "PLACES",
    "TEST_SEED_START",
    "USUAL_LIMBS",
    "VERSION",
    "Character",
    "Clip",
    "FreeMotion",
    "Limbs",
    "Scene",
    "Shot",
    "WorldSample",
    "draw_character",
    "draw_scene",
    "draw_shot",
    "first_caption",
    "free_motion",
    "later_caption",
    "neutral_prompts",
    "posed_keypoints",
    "posed_sample",
    "random_frame",
    "render_clip",
    "sample",
]
