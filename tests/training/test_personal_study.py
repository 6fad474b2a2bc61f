"""The comparison of personal models: its arms, what is asked, the leak's rank, intervals, cells that are made once."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from training.config import load_config
from training.evaluate_personal import main
from training.evaluation.accuracy import chance
from training.evaluation.pose_reader import load_pose_reader
from training.evaluation.probe import load_probe
from training.personal.presets import PRESETS
from training.personal_study.arms import ARMS, PAIRS
from training.personal_study.measures import (
    BY_ATTRIBUTE,
    MEASURES,
    _backdrop,
    improvable,
    leak_rank,
    mean_of,
    measure,
    paired,
    summary,
)
from training.personal_study.people import FRAMES, SIDE, Person
from training.personal_study.study import Cost, Study, _seconds_of, table
from training.settings import MINIATURE
from training.world import ATTRIBUTES, draw_shot, render_clip


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_valid_training(name):
    changes = ARMS[name].changes
    part = load_config(PRESETS["miniature"].config, changes or ()).part
    assert part.anchor == "none"
    assert part.stills_steps == (None if name == "one_stage" else 170)
    assert part.personal.strength == 0.7, "all files are measured at the same strength of the training"
    assert {first for pair in PAIRS for first in pair} <= set(ARMS)


def test_the_arms_differ_as_they_are_named():
    parts = {name: load_config(PRESETS["miniature"].config, arm.changes or ()).part for name, arm in ARMS.items()}
    cumulative = ("one_stage", "two_stages", "weakening", "masked_attention", "prior", "regions_pose")
    found = [
        (p.stills_steps, p.background_weight, p.regions, p.prior_beside) for p in (parts[name] for name in cumulative)
    ]
    assert found == [
        (None, 1.0, "none", 0.0),
        (170, 1.0, "none", 0.0),
        (170, 1e-6, "none", 0.0),
        (170, 1e-6, "mask", 0.0),
        (170, 1e-6, "mask", 0.4),
        (170, 1e-6, "pose", 0.4),
    ]
    assert parts["one_stage"].data.buckets.frames == (17,)
    # Without these a name calls nobody; the paper has neither.
    assert all(parts[name].elsewhere == 0.9 for name in cumulative)
    assert all("text_embedding.*" in parts[name].train.lora.targets for name in cumulative)
    assert (parts["paper"].elsewhere, parts["paper"].regions, parts["paper"].prior_beside) == (0.0, "mask", 0.4)
    assert {target.split(".")[2] for target in parts["paper"].train.lora.targets} == {"cross_attn"}
    # The paper's masks are the clip's; a generated one has none.
    assert [name for name, arm in ARMS.items() if arm.regions] == ["regions_pose", "unfolded", "reference_lora"]
    assert {name: arm.strength for name, arm in ARMS.items() if arm.strength != 1} == {
        "unfolded": pytest.approx(1 / 0.7)
    }


def test_what_is_asked_names_the_person_and_no_attribute():
    person = Person(3)
    asked = person.asked(8)
    assert [one.own_place for one in asked] == [False, False, False, True] * 2
    assert all((one.scene.place == person.shot.scene.place) == one.own_place for one in asked)
    assert all(one.scene.light != person.shot.scene.light for one in asked)
    words = {value for values in ATTRIBUTES.values() for value in values} - {"none", "plain"}
    for one in asked:
        prompt = one.prompt("A zuv person")
        assert prompt.startswith("A zuv person ")
        assert not words & set(prompt.rstrip(".").split())
    assert len({one.joints.tobytes() for one in asked}) == 8
    again = Person(3).asked(8)
    assert all(np.array_equal(one.joints, other.joints) for one, other in zip(asked, again, strict=True))


def test_the_rank_is_first_for_the_clips_own_backdrop_alone():
    person = Person(1)
    asked = next(one for one in person.asked(4) if one.own_place)
    own = _backdrop(asked.scene, person.shot.background_seed)
    dim = np.stack([0.5 * own + 10] * 3).astype(np.uint8)  # neither light nor contrast counts
    assert leak_rank(person, asked, dim) == 1
    shown = (np.stack([_backdrop(asked.scene, seed)] * 3).astype(np.uint8) for seed in range(8))
    ranks = [leak_rank(person, asked, clip) for clip in shown]
    assert min(ranks) > 1


@pytest.fixture(scope="module")
def readers():
    return load_probe(MINIATURE / "probe.safetensors"), load_pose_reader(MINIATURE / "pose_reader.safetensors")


@pytest.fixture(scope="module")
def requests():
    """A person and four prompts, of which the last asks for the clip's own place."""
    person = Person(1)
    return person, person.asked(4)


def test_what_is_shown_as_asked_has_the_best_of_every_measure(readers, requests):
    person, asked = requests
    clips = np.stack([one.rendering for one in asked])
    found = measure(person, asked, clips, clips, *readers)
    assert found["identity"] > 95
    assert found["identity"] == pytest.approx(np.mean([found[name] for name in BY_ATTRIBUTE]))
    assert found["pose"] < 1.5
    assert (found["context"], found["leak_class"]) == (100, 0)
    assert found["bleed"] == pytest.approx(found["identity"] - 100 * chance()["mean"])
    assert measure(person, asked, clips, None, *readers)["bleed"] is None


def test_the_clips_own_place_and_light_are_leaks_elsewhere_alone(readers, requests):
    person, asked = requests
    own = person.shot.scene

    def rendered(one, **scene):
        shot = draw_shot(replace(one.scene, **scene), np.random.default_rng(0))
        return render_clip(person.character, shot, np.arange(FRAMES, dtype=np.float64), (SIDE, SIDE)).video

    clips = [one.rendering for one in asked]
    clips[0] = rendered(asked[0], place=own.place)
    clips[1] = rendered(asked[1], light=own.light)
    clips[3] = rendered(asked[3], place=own.place, light=own.light)  # its place is asked for, so it says nothing
    found = measure(person, asked, np.stack(clips), None, *readers)
    assert found["context"] == pytest.approx(100 / 3)
    assert found["leak_class"] == pytest.approx(200 / 3)


def test_somebody_else_is_not_the_person(readers, requests):
    person, asked = requests
    stranger = next(one for one in map(Person, range(2, 40)) if not (one.labels == person.labels).any())
    clips = np.stack([one.rendering for one in stranger.asked(4)])
    found = measure(person, asked, clips, clips, *readers)
    assert found["identity"] < 15  # the probe errs
    assert found["bleed"] < 0
    assert found["pose"] > 5


def test_intervals_are_over_characters_and_pairs_share_them():
    found = summary([40.0, 60.0, 50.0, 70.0])
    assert found["mean"] == 55.0
    assert 40 < found["ci95"][0] < 50 < 60 < found["ci95"][1] < 70
    first = {who: {"identity": 50.0 + 10 * who} for who in range(5)}
    second = {who: {"identity": 45.0 + 10 * who, "pose": 1.0} for who in range(1, 6)}
    difference = paired(first, second)
    assert difference["identity"] == {"mean": 5.0, "ci95": [5.0, 5.0], "n": 4}
    assert "pose" not in difference


def test_attributes_far_from_their_ceiling_are_compared_alone():
    first, second = BY_ATTRIBUTE[:2]
    ceiling = {who: {first: 98.0, second: 98.0} for who in range(3)}
    alone = {who: {first: 94.0 + who, second: 90.0 + who} for who in range(3)}  # 3 and 7 below it
    assert improvable(alone, ceiling) == [second]
    assert improvable({0: {"identity": 90.0}}, ceiling) == []  # a cell without attributes
    assert mean_of(alone, [first, second])[1] == {"identity": 93.0}
    assert paired(mean_of(ceiling, [second]), mean_of(alone, [second]))["identity"]["mean"] == 7.0


def test_cells_that_are_there_are_not_made_again(tmp_path, capsys):
    arms = ("base", "prior", "reference", "reference_lora", "round_trip")
    study = Study(tmp_path, arms, 2, 4, 1)
    for name, identity in (("base", 20.0), ("prior", 80.0), ("reference", 70.0), ("reference_lora", 75.0)):
        for who in range(2):
            path = study._path(ARMS[name], Person(who))
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"values": dict.fromkeys((*MEASURES, *BY_ATTRIBUTE), identity + who)}))
            ceiling = study._path(ARMS["round_trip"], Person(who))
            ceiling.write_text(json.dumps({"values": dict.fromkeys(BY_ATTRIBUTE, 71.0) | {BY_ATTRIBUTE[3]: 99.0}}))
    options = ["--characters", "2", "--prompts", "4", "--steps", "1", "--arms", *arms]
    assert main(["--out", str(tmp_path), *options]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["arms"]["prior"]["identity"]["mean"] == 80.5
    assert set(found["arms"]["base"]) == {*MEASURES, *BY_ATTRIBUTE}
    compared = found["paired"]["reference_lora - reference, far from the ceiling"]
    assert compared["attributes"] == [BY_ATTRIBUTE[3]]
    assert compared["identity"]["mean"] == 5.0
    assert "80.5 [80, 81]" in table(found)
    assert "80.5 [80, 81]" in capsys.readouterr().out


def test_a_change_of_a_cell_is_another_cell(tmp_path):
    study = Study(tmp_path, ("prior",), 1, 4, 1)
    arm, person = ARMS["prior"], Person(0)
    others = [Study(tmp_path, ("prior",), 1, 4, 2), Study(tmp_path, ("prior",), 1, 5, 1)]
    others.append(Study(tmp_path, ("prior",), 1, 4, 1, ("run.steps=9",)))
    assert len({one._path(arm, person) for one in (study, *others)}) == 4
    assert study._lora(ARMS["regions_pose"], person) == study._lora(ARMS["reference_lora"], person)  # trained once
    assert study._lora(ARMS["regions_pose"], person) == study._lora(ARMS["unfolded"], person)
    assert len({study._path(shown, person) for shown in ARMS.values()}) == len(ARMS)
    base = ARMS["base"]
    assert len({one._path(base, person) for one in (study, others[2])}) == 1  # it trains nothing
    assert len({one._path(base, person) for one in (study, *others)}) == 3


def test_a_longer_training_has_the_share_of_stills_and_the_presets_length_its_cells(tmp_path):
    names = ("one_stage", "two_stages", "regions_pose")
    study = Study(tmp_path, names, 1, 4, 1)
    config = PRESETS["miniature"].config
    long = replace(study, train_steps=400)
    parts = {name: load_config(config, long._changes(ARMS[name])) for name in names}
    assert {name: (one.run.steps, one.part.stills_steps) for name, one in parts.items()} == {
        "one_stage": (400, None),
        "two_stages": (400, 340),
        "regions_pose": (400, 340),
    }
    person = Person(0)
    for name in names:
        assert replace(study, train_steps=200)._path(ARMS[name], person) == study._path(ARMS[name], person)
        assert long._path(ARMS[name], person) != study._path(ARMS[name], person)
    assert study.cost(study.missing()) == Cost(cells=3, trainings=3, steps=600, clips=15)
    assert "3 trainings of 600 steps together" in str(study.cost(study.missing()))


def test_the_seconds_of_a_training_are_kept_beside_its_lora_and_those_of_all_its_starts(tmp_path):
    study = Study(tmp_path, ("regions_pose",), 1, 4, 1, ("part.data.buckets.sizes=[2048x2048]",))
    arm, person = ARMS["regions_pose"], Person(0)
    lora = study._lora(arm, person)
    assert _seconds_of(lora) is None
    taken = [0.0]
    for _ in range(2):
        with pytest.raises(InputError, match=r"would be enlarged"):
            study._train(arm, person, lora)
        taken.append(_seconds_of(lora))
    assert 0 < taken[1] < taken[2]
    lora.touch()
    assert study._train(arm, person, lora) is None
    assert _seconds_of(lora) == taken[2]


def _fill(study, value):
    for arm, person in study.missing():
        path = study._path(arm, person)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"values": dict.fromkeys((*MEASURES, *BY_ATTRIBUTE), value + person.number)}))


def test_curves_are_the_metrics_of_each_length(tmp_path, capsys):
    arms = ("two_stages", "regions_pose")
    for length, value in ((50, 30.0), (200, 60.0)):
        _fill(Study(tmp_path, arms, 2, 4, 1, train_steps=length), value)
    options = ["--characters", "2", "--prompts", "4", "--steps", "1", "--arms", *arms, "--curves", "200", "50", "50"]
    assert main(["--out", str(tmp_path), *options]) == 0
    assert "curves.png" in capsys.readouterr().out
    found = json.loads((tmp_path / "curves.json").read_text())
    assert set(found) == set(arms)
    assert {steps: one["mean"] for steps, one in found["two_stages"]["identity"].items()} == {"50": 30.5, "200": 60.5}
    assert set(found["regions_pose"]) == set(MEASURES)
    picture = Image.open(tmp_path / "curves.png")
    assert picture.width > 3 * picture.height
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--curves", "50", "--arms", "base"], "base trains nothing"),
        (["--curves", "100", "4"], "4 steps are too few"),
        (["--arms", "prio"], "Did you mean prior?"),
        (["--prompts", "3"], "it must be at least 4"),
        (["--characters", "0"], "it must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, options, message):
    assert main(["--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.nightly
def test_a_small_study_runs_with_the_shipped_miniature(tmp_path):
    options = [
        "--characters",
        "1",
        "--prompts",
        "4",
        "--steps",
        "2",
        "--arms",
        "base",
        "regions_pose",
        "reference_lora",
        "round_trip",
    ]
    tiny = ["run.steps=2", "part.stills_steps=1", "run.workers=0", "run.trackers=[]", "run.save_every=1"]
    assert main(["--out", str(tmp_path), *options, "--set", *tiny]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found["arms"]) == {"base", "regions_pose", "reference_lora", "round_trip"}
    for name, values in found["arms"].items():
        lacking = {"bleed", "forgetting"} if name == "round_trip" else set()  # it has no network
        assert set(values) == {*MEASURES, *BY_ATTRIBUTE} - lacking
        assert all(np.isfinite(value["mean"]) for value in values.values())
    (lora,) = (tmp_path / "loras").glob("*.safetensors")
    trained = json.loads(lora.with_suffix(".json").read_text())["seconds"]
    assert all(found["arms"][name]["seconds"]["mean"] > trained > 0 for name in ("regions_pose", "reference_lora"))
