"""The character world: determinism, the split, geometry consistent with pixels, captions consistent with frames."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.world import (
    ACTIONS,
    ATTRIBUTES,
    KEYPOINTS,
    LIGHTS,
    PLACES,
    TEST_SEED_START,
    Character,
    Scene,
    draw_character,
    draw_shot,
    first_caption,
    later_caption,
    neutral_prompts,
    random_frame,
    render_clip,
    sample,
)
from training.world.attributes import COLORS, SKIN_TONES
from training.world.contact_sheet import main as contact_sheet

SEEDS = st.integers(0, 2 * TEST_SEED_START)
PLAIN = Character("light", "black", "short", "green", "plain", "yellow", "none", "average")


@pytest.mark.parametrize("draw", [lambda seed: sample(seed, 3, (40, 48)), lambda seed: random_frame(seed, (40, 48))])
def test_a_seed_always_gives_the_same_sample_and_another_seed_another(draw):
    one, again, other = draw(7), draw(7), draw(8)
    assert np.array_equal(one.video, again.video)
    assert np.array_equal(one.masks, again.masks)
    assert np.array_equal(one.keypoints, again.keypoints)
    assert np.array_equal(one.reference, again.reference)
    assert (one.first_prompt, one.later_prompt) == (again.first_prompt, again.later_prompt)
    assert (one.character, one.scene) == (again.character, again.scene)
    assert not np.array_equal(one.video, other.video)


def test_a_longer_clip_starts_with_the_shorter_one():
    short, long = sample(5, 5, (32, 32)), sample(5, 17, (32, 32))
    assert np.array_equal(short.video, long.video[:5])
    assert np.array_equal(short.reference, long.reference)
    assert short.later_prompt == long.later_prompt


def test_train_and_test_characters_share_no_combination_of_attributes():
    rng = np.random.default_rng(0)
    train = {draw_character(rng, test=False) for _ in range(500)}
    test = {draw_character(rng, test=True) for _ in range(500)}
    assert not train & test
    assert not any(character.is_test for character in train)
    assert not sample(TEST_SEED_START - 1, 1, (16, 16)).character.is_test
    assert sample(TEST_SEED_START, 1, (16, 16)).character.is_test


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        sample(-1)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("skin", 5),
        ("hair_color", 6),
        ("hair_style", 4),
        ("shirt_color", 10),
        ("trousers_color", 10),
        ("shirt_pattern", 3),
        ("accessory", 5),  # four, and none
        ("body_shape", 3),
    ],
)
def test_every_attribute_has_as_many_values_as_promised(name, least):
    assert len(ATTRIBUTES[name]) >= least
    assert len(set(ATTRIBUTES[name])) == len(ATTRIBUTES[name])


def test_there_are_enough_actions_places_and_lights():
    assert len(ACTIONS) >= 5
    assert len(PLACES) >= 5
    assert len(LIGHTS) >= 3


def test_a_character_with_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match="skin is 'green'"):
        Character("green", *(values[0] for name, values in ATTRIBUTES.items() if name != "skin"))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (200, 72), (37, 53), (128, 128)])
@pytest.mark.parametrize("num_frames", [1, 5, 20])
def test_any_size_and_length_can_be_rendered(size, num_frames):
    drawn = sample(3, num_frames, size)
    assert drawn.video.shape == (num_frames, *size, 3)
    assert drawn.masks.shape == (num_frames, *size)
    assert drawn.keypoints.shape == (num_frames, len(KEYPOINTS), 2)
    assert drawn.reference.shape == (*size, 3)
    assert drawn.reference_mask.shape == size
    assert {drawn.video.dtype, drawn.masks.dtype, drawn.reference.dtype} == {np.dtype(np.uint8)}
    assert drawn.masks.reshape(num_frames, -1).max(1).min() == 255


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_reference_shows_another_action_place_and_light(seed):
    for drawn in (sample(seed, 1, (8, 8)), random_frame(seed, (8, 8))):
        assert drawn.scene.action != drawn.reference_scene.action
        assert drawn.scene.place != drawn.reference_scene.place
        assert drawn.scene.light != drawn.reference_scene.light


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("light", LIGHTS)
def test_outside_the_mask_nothing_depends_on_the_person(action, light):
    other = Character("dark", "red", "afro", "pink", "striped", "white", "hat", "broad")
    shot = draw_shot(Scene(action, "park", light), np.random.default_rng(1))
    frames = np.arange(0, 17, 4, dtype=np.float64)
    one, two = (render_clip(character, shot, frames, (64, 64)) for character in (PLAIN, other))
    neither = (one.masks == 0) & (two.masks == 0)
    assert neither.mean() > 0.5
    assert np.array_equal(one.video[neither], two.video[neither])
    both = (one.masks == 255) & (two.masks == 255)
    assert (one.video[both] != two.video[both]).any(-1).mean() > 0.6


@pytest.mark.parametrize("action", ACTIONS)
def test_keypoints_lie_on_the_person(action):
    shot = draw_shot(Scene(action, "beach", "day"), np.random.default_rng(2))
    clip = render_clip(PLAIN, shot, np.arange(17, dtype=np.float64), (128, 128))
    columns, rows = np.floor(clip.keypoints).astype(int).transpose(2, 0, 1)
    assert clip.masks[np.arange(17)[:, None], rows, columns].min() > 200
    head = clip.video[np.arange(17), rows[:, 0], columns[:, 0]]
    assert np.abs(head.astype(int) - SKIN_TONES["light"]).max() <= 3


@pytest.mark.parametrize("action", ["waving", "jumping"])
def test_keypoints_carry_the_colours_of_the_clothes(action):
    shot = draw_shot(Scene(action, "snow", "day"), np.random.default_rng(4))
    clip = render_clip(PLAIN, shot, np.arange(9, dtype=np.float64), (128, 128))
    columns, rows = np.floor(clip.keypoints).astype(int).transpose(2, 0, 1)
    for name, color in (("left_knee", "yellow"), ("right_knee", "yellow")):
        index = KEYPOINTS.index(name)
        knees = clip.video[np.arange(9), rows[:, index], columns[:, index]].astype(int)
        assert np.abs(knees - COLORS[color]).max() <= 3
    neck, hip = (clip.keypoints[:, [KEYPOINTS.index(f"{side}_{part}") for side in ("left", "right")]].mean(1)
                 for part in ("shoulder", "hip"))  # fmt: skip
    chest = np.floor((neck + hip) / 2).astype(int)
    shirt = clip.video[np.arange(9), chest[:, 1], chest[:, 0]].astype(int)
    assert np.abs(shirt - COLORS["green"]).max() <= 3


@pytest.mark.parametrize("action", ACTIONS)
def test_the_person_moves_and_never_leaves_the_picture(action):
    for seed in range(6):
        shot = draw_shot(Scene(action, "room", "day"), np.random.default_rng(seed))
        clip = render_clip(PLAIN, shot, np.arange(81, dtype=np.float64), (32, 32))
        assert clip.keypoints.min() >= 0
        assert clip.keypoints.max() < 32
        assert np.abs(np.diff(clip.keypoints, axis=0)).max() > 0.1


def test_light_changes_the_whole_picture():
    means = []
    for light in ("night", "sunset", "day"):
        shot = draw_shot(Scene("waving", "room", light), np.random.default_rng(3))
        means.append(render_clip(PLAIN, shot, np.zeros(1), (48, 48)).video.mean())
    assert means == sorted(means)
    assert means[2] > 1.5 * means[0]


def _said(text: str) -> dict[str, str | None]:
    """Read the attributes that a caption names, independently of the grammar that wrote it."""
    body = {"slim": "slim", "thin": "slim", "average": "average", "average-sized": "average"}
    body |= {"broad": "broad", "heavyset": "broad"}
    style = next((word for word in ("afro", "pigtails") if word in text), None)
    hair = re.search(r"(?:(?:with|an?|and) )((?:\w+ ){0,3})(?:hair|afro|pigtails)\b", text)
    before_hair = hair.group(1).split() if hair else []
    shirt = re.search(r"\ban? ((?:\w+ ){1,2})shirt", text)
    before_shirt = shirt.group(1).split() if shirt else []
    trousers, skin = re.search(r"(\w+) trousers", text), re.search(r"(\w+) skin", text)
    worn = next((word for word in ("glasses", "hat", "scarf", "bag") if re.search(rf"\b{word}\b", text)), None)
    return {
        "skin": skin.group(1) if skin else None,
        "hair_color": next((w for w in before_hair if w in ATTRIBUTES["hair_color"]), None),
        "hair_style": style or next((w for w in before_hair if w in ("short", "long")), None),
        "shirt_color": next((w for w in before_shirt if w in COLORS), None),
        "shirt_pattern": next((w for w in before_shirt if w in ATTRIBUTES["shirt_pattern"]), None),
        "trousers_color": trousers.group(1) if trousers else None,
        "accessory": worn or ("none" if "no accessories" in text else None),
        "body_shape": next((body[w] for w in re.findall(r"[\w-]+", text) if w in body), None),
    }


@given(SEEDS, st.sets(st.sampled_from(list(ATTRIBUTES))))
@settings(max_examples=300, deadline=None)
def test_captions_name_the_chosen_attributes_only_and_truly(seed, named):
    rng = np.random.default_rng(seed)
    character = draw_character(rng, test=False)
    scene = Scene(str(rng.choice(ACTIONS)), str(rng.choice(PLACES)), str(rng.choice(LIGHTS)))
    expected = {name: getattr(character, name) if name in named else None for name in ATTRIBUTES}
    for caption in (first_caption, later_caption):
        text = caption(character, scene, named, rng)
        assert _said(text) == expected, text
        assert text.endswith(".")
        assert "  " not in text


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_later_captions_tell_action_place_and_light(seed):
    rng = np.random.default_rng(seed)
    scene = Scene(str(rng.choice(ACTIONS)), str(rng.choice(PLACES)), str(rng.choice(LIGHTS)))
    text = later_caption(PLAIN, scene, (), rng).lower()
    words = {
        "walking": "walk", "waving": "waving", "jumping": "jump|leap", "dancing": "dancing", "sitting": "sitting",
        "beach": "beach", "park": "park|trees", "city": "city|buildings", "room": "room", "snow": "snow",
        "day": r"\bday|daylight", "sunset": "sunset|evening", "night": "night",
    }  # fmt: skip
    for said in (scene.action, scene.place, scene.light):
        assert re.search(words[said], text), text
    for other in (set(ACTIONS) | set(PLACES) | set(LIGHTS)) - {scene.action, scene.place, scene.light}:
        assert not re.search(words[other], text), text


def test_sampled_captions_name_from_none_to_all_attributes():
    counts = {
        sum(value is not None for value in _said(text).values())
        for seed in range(150)
        for text in [sample(seed, 1, (8, 8)).first_prompt]
    }
    assert counts == set(range(9))


def test_neutral_prompts_name_no_attribute():
    for action in ACTIONS:
        for place in PLACES:
            for light in LIGHTS:
                first, later = neutral_prompts(Scene(action, place, light))
                assert not any(_said(first + " " + later).values())
                assert action in later


def test_the_contact_sheet_is_written(tmp_path):
    assert contact_sheet(["--out", str(tmp_path / "sheet.png"), "--count", "7"]) == 0
    picture = cv2.imread(str(tmp_path / "sheet.png"))
    assert picture is not None
    assert picture.shape[1] > 6 * 128


@pytest.mark.parametrize("out", ["missing/sheet.png", "sheet.gif"])
def test_a_contact_sheet_that_cannot_be_written_is_refused(tmp_path, capsys, out):
    assert contact_sheet(["--out", str(tmp_path / out)]) == 2
    assert "--out is" in capsys.readouterr().err
