"""The character world: a procedural renderer of little people."""

from training.world.actions import FRAMES_PER_SECOND
from training.world.attributes import ATTRIBUTES, TEST_SEED_START, Character, draw_character
from training.world.captions import first_caption, later_caption, neutral_prompts
from training.world.figure import KEYPOINTS
from training.world.render import Clip, Shot, WorldSample, draw_shot, random_frame, render_clip, sample
from training.world.scene import ACTIONS, LIGHTS, PLACES, Scene, draw_scene

__all__ = [
    "ACTIONS",
    "ATTRIBUTES",
    "FRAMES_PER_SECOND",
    "KEYPOINTS",
    "LIGHTS",
    "PLACES",
    "TEST_SEED_START",
    "Character",
    "Clip",
    "Scene",
    "Shot",
    "WorldSample",
    "draw_character",
    "draw_scene",
    "draw_shot",
    "first_caption",
    "later_caption",
    "neutral_prompts",
    "random_frame",
    "render_clip",
    "sample",
]
