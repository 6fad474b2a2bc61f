"""The user study: the analysis of answers with a known truth, its trials and its set."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from evaluation.clip_set import read_folders, read_set
from evaluation.study import analyse as analyse_script
from evaluation.study import analysis, build
from evaluation.study.analysis import Answer, analyse
from evaluation.study.protocol import make_trials
from evaluation.videos import read_frames


def answer(rater: str, item: str, first: str, second: str, score: int, reference: str = "") -> Answer:
    """An answer to an item with a reference of its own, if none is given."""
    return Answer(rater, item, reference or item, first, second, score)


def simulated(count: int, preference: float, seed: int = 0) -> list[Answer]:
    """Answers of raters to 30 items of `ours` and `theirs`; `preference` is the mean score, 0 is a tie."""
    rng = np.random.default_rng(seed)
    return [
        answer(f"r{rater}", f"i{item}", "ours", "theirs", int(np.clip(np.round(rng.normal(preference, 1.0)), -2, 2)))
        for rater in range(count)
        for item in range(30)
    ]


def test_a_planted_preference_is_found_and_a_planted_tie_is_not():
    found = analyse(simulated(8, 0.8))["pairs"][0]
    assert found["preferred"] == "ours"
    assert found["inclusive_win"]["mean"] > 0.6
    assert analyse(simulated(8, -0.8))["pairs"][0]["preferred"] == "theirs"
    ties = [analyse(simulated(8, 0.0, seed))["pairs"][0]["preferred"] for seed in range(10)]
    assert ties.count(None) >= 8


def test_no_preference_is_named_from_fewer_than_five_raters():
    found = analyse(simulated(4, 1.5))
    assert found["pairs"][0]["preferred"] is None
    text = analyse_script.table({**found, "excluded": {}})
    assert "| too few raters |" in text
    assert "No preference is named from fewer than 5 raters." in text
    assert analyse(simulated(5, 1.5))["pairs"][0]["preferred"] == "ours"


def test_tastes_of_raters_and_luck_of_references_are_no_preference(monkeypatch):
    """Equal systems, five raters who lean, references that lean: about 5 % of the studies may name a preference."""
    monkeypatch.setattr(analysis, "_RESAMPLES", 200)

    def preferred(seed: int, preference: float, raters: int = 5) -> str | None:
        rng = np.random.default_rng(seed)
        mean = preference + rng.normal(0, 0.7, (raters, 1)) + rng.normal(0, 0.2, 20)
        scores = np.clip(np.round(rng.normal(mean, 0.8)), -2, 2).astype(int)
        given = np.ndenumerate(scores)
        answers = [answer(f"r{rater}", f"i{item}", "x", "y", int(score)) for (rater, item), score in given]
        return analysis._preferences(answers)[0]["preferred"]

    assert sum(preferred(seed, 0.0) is not None for seed in range(100)) <= 8
    assert [preferred(seed, 1.7) for seed in range(10)].count("x") >= 9


def test_two_references_decide_nothing_however_many_raters_agree():
    """Every draw of the two is in favour; a t test over them knows that they are two."""
    agreed = [answer(f"r{r}", f"i{i}", "x", "y", 2 - i) for r in range(12) for i in range(2)]
    row = analysis._preferences(agreed)[0]
    assert row["signed_mean"]["ci95"][0] == 1
    assert row["p"] == pytest.approx(0.205, abs=0.001)
    assert row["preferred"] is None


def test_pairs_are_corrected_together(monkeypatch):
    """Three pairs whose p lies between 0.05 / 3 and 0.05: none is named; alone each is."""
    monkeypatch.setattr(analysis, "_RESAMPLES", 400)
    lean = np.asarray([1, 1, 1, 1, 0, 0, 0])
    answers = {
        second: [answer(f"r{r}", f"i{i}", "x", second, int(lean[r])) for r in range(7) for i in range(8)]
        for second in ("u", "v", "w")
    }
    alone = analysis._preferences(answers["u"])[0]
    assert 0.05 / 3 < alone["p"] < 0.05
    assert alone["preferred"] == "x"
    together = analysis._preferences([one for each in answers.values() for one in each])
    assert [row["preferred"] for row in together] == [None] * 3


def test_items_of_one_reference_are_no_more_persons():
    """Two equal systems, each better on half of the references: eight seeds of each decide nothing."""

    def alike(seed: int) -> list[Answer]:
        rng = np.random.default_rng(seed)
        liking = rng.normal(0, 1.2, 12)
        return [
            answer(
                f"r{rater}", f"{shown}-{take}", "x", "y", int(np.clip(round(rng.normal(mean, 0.5)), -2, 2)), f"p{shown}"
            )
            for shown, mean in enumerate(liking)
            for take in range(8)
            for rater in range(6)
        ]

    found = [analyse(alike(seed)) for seed in range(20)]
    assert [one["pairs"][0]["preferred"] for one in found].count(None) >= 17
    assert (found[0]["items"], found[0]["references"]) == (96, 12)
    metric = {"x": {f"{shown}-{take}": float(shown) for shown in range(12) for take in range(8)}, "y": {}}
    metric["y"] = dict.fromkeys(metric["x"], 0.0)
    wide = analyse(alike(0), {"m": metric})["spearman"]["m"]["ci95"]
    assert wide[1] - wide[0] > 0.5  # twelve persons, not 96


def test_names_of_systems_do_not_break_the_table():
    found = analyse([answer(f"r{r}", f"i{i}", "a|b", "<c>", 2) for r in range(5) for i in range(9)])
    text = analyse_script.table({**found, "excluded": {}})
    assert r"| a\|b | \<c> | 2.00 (2.00 to 2.00) |" in text
    assert r"| a\|b |" in text.splitlines()[2][-8:]
    assert r"| \<c> | -" in text


def test_numbers_by_hand():
    scores = [2, 1, 0, -1]
    answers = [answer("a", f"i{index}", "x", "y", score) for index, score in enumerate(scores)]
    row = analyse(answers)["pairs"][0]
    assert row["signed_mean"]["mean"] == 0.5
    assert row["strict_win"]["mean"] == 0.5
    assert row["inclusive_win"]["mean"] == 0.625


def test_bradley_terry_orders_three_systems():
    rng = np.random.default_rng(0)
    strength = {"weak": 0.0, "middle": 1.0, "strong": 2.0}
    answers = []
    for rater in range(6):
        for item in range(20):
            for first, second in (("weak", "middle"), ("strong", "weak"), ("middle", "strong")):
                wins = rng.random() < 1 / (1 + np.exp(strength[second] - strength[first]))
                answers.append(answer(f"r{rater}", f"i{item}", first, second, 1 if wins else -1))
    found = analyse(answers)["bradley_terry"]
    order = sorted(found, key=lambda name: found[name]["strength"])
    assert order == ["weak", "middle", "strong"]
    assert found["strong"]["strength"] - found["weak"]["strength"] == pytest.approx(2.0, abs=0.7)
    assert all(row["ci95"][0] < row["strength"] < row["ci95"][1] for row in found.values())


def test_strengths_that_only_the_prior_bounds_are_said_to_be():
    wins = [answer(f"r{r}", f"i{i}", "x", "y", 1) for r in range(2) for i in range(6)]
    found = analyse(wins)
    assert found["bradley_terry_separated"]
    said = "set by the model's prior"
    assert said in analyse_script.table({**found, "excluded": {}})
    once = analyse([*wins, answer("r2", "i0", "x", "y", 0)])
    assert not once["bradley_terry_separated"]
    assert said not in analyse_script.table({**once, "excluded": {}})
    third = [answer("r0", f"i{i}", "z", "x", 1) for i in range(6)]
    assert analyse([*wins, answer("r2", "i0", "x", "y", -1), *third])["bradley_terry_separated"]


def test_ties_are_half_a_win_of_each():
    found = analyse([answer(f"r{r}", f"i{i}", "x", "y", 0) for r in range(3) for i in range(6)])
    assert [row["strength"] for row in found["bradley_terry"].values()] == pytest.approx([0, 0])
    assert not found["bradley_terry_separated"]


def test_agreement_is_one_for_equal_raters_and_near_nothing_for_random_ones():
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, 30)
    alike = [answer(f"r{r}", f"i{i}", "x", "y", int(scores[i])) for r in range(4) for i in range(30)]
    apart = [answer(f"r{r}", f"i{i}", "x", "y", int(rng.integers(-2, 3))) for r in range(4) for i in range(30)]
    assert analyse(alike)["krippendorff_alpha"] == pytest.approx(1.0)
    assert abs(analyse(apart)["krippendorff_alpha"]) < 0.2


def test_a_metric_that_agrees_correlates():
    answers = [answer(f"r{r}", f"i{i}", "x", "y", i % 5 - 2) for r in range(3) for i in range(20)]
    metric = {"x": {f"i{i}": float(i % 5) for i in range(20)}, "y": {f"i{i}": 0.0 for i in range(20)}}
    found = analyse(answers, {"good": metric, "absent": {}})["spearman"]
    assert found["good"]["rho"] == pytest.approx(1.0)
    assert found["absent"]["rho"] is None
    assert "0 comparisons have this metric" in found["absent"]["reason"]


def test_the_table_has_correlations_with_their_direction_and_reasons_of_exclusion():
    answers = [answer(f"r{r}", f"i{i}", "x", "y", i % 5 - 2) for r in range(3) for i in range(20)]
    grows = {"x": {f"i{i}": float(i % 5) for i in range(20)}, "y": {f"i{i}": 0.0 for i in range(20)}}
    falls = {"x": {item: -value for item, value in grows["x"].items()}, "y": grows["y"]}
    metrics = {"dino_i": grows, "face_dlib_all": grows, "copy_frame": falls, "motion": grows, "clip_i": {}}
    found = analyse(answers, metrics)
    text = analyse_script.table({**found, "excluded": {"hasty": "median time 0.5 s"}})
    assert "- hasty is left out: median time 0.5 s." in text
    assert "| dino_i | 1.00 (1.00 to 1.00) | 20 | above 0 |" in text
    assert "| face_dlib_all | 1.00 (1.00 to 1.00) | 20 | above 0 |" in text
    assert "| copy_frame | -1.00 (-1.00 to -1.00) | 20 | below 0: lower is better |" in text
    assert "| motion | 1.00 (1.00 to 1.00) | 20 | neither way is better |" in text
    assert "| clip_i | 0 comparisons have this metric" in text


def test_what_is_constant_correlates_with_nothing_and_the_reason_is_a_sentence():
    systems = ("x", "y")
    varied = [answer(f"r{r}", f"i{i}", *systems, i % 5 - 2) for r in range(3) for i in range(20)]
    equal = [answer(f"r{r}", f"i{i}", *systems, 1) for r in range(3) for i in range(20)]
    constant = {name: {f"i{i}": 0.5 for i in range(20)} for name in systems}
    growing = {name: {f"i{i}": float(i) * (name == "x") for i in range(20)} for name in systems}
    found = analyse(varied, {"constant": constant})["spearman"]["constant"]
    assert found["rho"] is None
    assert "does not differ between the systems" in found["reason"]
    found = analyse(equal, {"growing": growing})["spearman"]["growing"]
    assert found["rho"] is None
    assert "raters gave every comparison the same score" in found["reason"]
    once = {"x": {f"i{i}": float(i == 0) for i in range(20)}, "y": {f"i{i}": 0.0 for i in range(20)}}
    found = analyse(varied, {"once": once})["spearman"]["once"]  # many resamples are constant
    json.dumps(found, allow_nan=False)


def test_another_studys_answers_are_refused_where_only_the_clips_differ(clips, tmp_path):
    assert build.main([*clips, "--out", str(tmp_path / "one")]) == 0
    swapped = [*clips[:3], f"good={tmp_path / 'bad'}", f"bad={tmp_path / 'good'}"]
    assert build.main([*swapped, "--out", str(tmp_path / "two")]) == 0
    keys = [json.loads((tmp_path / name / "key.json").read_text()) for name in ("one", "two")]
    assert keys[0]["trials"] == keys[1]["trials"]
    assert keys[0]["id"] != keys[1]["id"]


def test_copies_of_a_picture_are_one_reference(clips, tmp_path, capsys):
    for name in ("1.png", "2.png"):
        shutil.copy(tmp_path / "0.png", tmp_path / name)
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 2
    assert "All items have one reference" in capsys.readouterr().err


def test_the_page_tells_nothing_of_whose_clip_is_whose_and_clips_are_alike(clips, tmp_path):
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    page = tmp_path / "study" / "page"
    text = "".join(path.read_text() for path in page.glob("*.js")) + " ".join(p.name for p in page.rglob("*"))
    assert "good" not in text.replace("goodness", "")
    assert "bad" not in text
    for trial in json.loads((page / "study-data.js").read_text().removeprefix("window.STUDY = ").rstrip(";\n"))[
        "trials"
    ]:
        assert read_frames(page / trial["first"]).shape == read_frames(page / trial["second"]).shape
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 2


def test_trials_are_fixed_by_the_seed_and_checks_show_another_person(clips, tmp_path):
    items = read_set(tmp_path / "set.jsonl")
    trials = make_trials(items, ["good", "bad"], None, 3)
    assert trials == make_trials(items, ["good", "bad"], None, 3)
    assert trials != make_trials(items, ["good", "bad"], None, 4)
    assert len({trial.id for trial in trials}) == len(trials) == 6
    for trial in trials:
        assert (trial.second[1] != trial.item) is trial.check
    with pytest.raises(InputError, match="two"):
        make_trials(items, ["good"], None, 0)
    with pytest.raises(InputError, match="--against"):
        make_trials(items, ["good", "bad"], "ugly", 0)


def test_a_study_has_as_many_references_as_are_asked_for_drawn_by_the_seed(clips, tmp_path):
    """With every item of each."""
    row = json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0])
    with (tmp_path / "set.jsonl").open("a") as file:
        file.write(json.dumps({**row, "id": "again", "file": "again.mp4"}) + "\n")
    for system in ("good", "bad"):
        shutil.copy(tmp_path / system / "0.mp4", tmp_path / system / "again.mp4")
    drawn = set()
    for seed in range(4):
        words = [*clips, "--references", "2", "--seed", str(seed), "--out", str(tmp_path / f"study{seed}")]
        assert build.main(words) == 0
        trials = json.loads((tmp_path / f"study{seed}" / "key.json").read_text())["trials"]
        assert len({trial["reference"] for trial in trials}) == 2
        drawn.add(frozenset(trial["item"] for trial in trials if not trial["check"]))
    assert drawn <= {frozenset({"0", "again", "1"}), frozenset({"0", "again", "2"}), frozenset({"1", "2"})}
    assert len(drawn) > 1


def test_the_right_clip_of_a_check_shows_the_person_and_is_of_no_system_under_test(clips, tmp_path):
    """Of `bad`, as of a base without references, no clip does."""
    items = read_set(tmp_path / "set.jsonl")
    for systems, wanted in ((["good", "bad"], "(reference)"), (["good", "bad", "truth"], "truth")):
        checks = [trial for trial in make_trials(items, systems, None, 3) if trial.check]
        assert {name for trial in checks for name, _ in (trial.first, trial.second)} == {wanted}
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    page = tmp_path / "study" / "page"
    data = (page / "study-data.js").read_text().removeprefix("window.STUDY = ").rstrip(";\n")
    shown = {trial["id"]: trial for trial in json.loads(data)["trials"]}
    for trial in key["trials"]:
        if trial["check"]:
            right, wrong = (read_frames(page / shown[trial["id"]][side]) for side in ("first", "second"))
            assert right.shape == wrong.shape == (33, 32, 32, 3)
            picture = np.asarray(Image.open(page / shown[trial["id"]]["picture"]))
            assert np.abs(right.astype(int) - picture).mean() < 10 < np.abs(wrong.astype(int) - picture).mean()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"id": "1"}', "reference"),
        ('{"id":"1","reference":"0.png","later":"x","seed":"3","file":"0.mp4"}', "seed"),
        ('{"id":"1","reference":"no.png","later":"x","seed":3,"file":"0.mp4"}', "no.png"),
        ('{"id":"1","reference":"0.png","later":"x","seed":3,"file":"0.mp4","refrence":"a"}', "refrence"),
        ('{"id":"1","reference":"/etc/0.png","later":"x","seed":3,"file":"0.mp4"}', "below the set's folder"),
        ('{"id":"1","reference":"../0.png","later":"x","seed":3,"file":"0.mp4"}', "below the set's folder"),
        ('{"id":"1","reference":"0.png","later":"x","seed":3,"file":"../0.mp4"}', "below each system's folder"),
    ],
)
def test_a_wrong_set_is_one_line(clips, tmp_path, line, said):
    (tmp_path / "wrong.jsonl").write_text(line)
    with pytest.raises(InputError, match=said):
        read_set(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize(("column", "ending"), [("id", ""), ("file", ".mp4")])
def test_two_lines_of_one_clip_are_refused(clips, tmp_path, column, ending):
    lines = (tmp_path / "set.jsonl").read_text()
    (tmp_path / "set.jsonl").write_text(lines.replace(f'"{column}": "1{ending}"', f'"{column}": "0{ending}"'))
    with pytest.raises(InputError, match=f"the {column} 0{ending} occurs twice"):
        read_set(tmp_path / "set.jsonl")


def test_a_prompt_may_hold_any_character(clips, tmp_path):
    row = json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0]) | {
        "later": "She waves.\u2028At the\u0085sea."
    }
    (tmp_path / "set.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read_set(tmp_path / "set.jsonl")[0].later == row["later"]


def test_a_missing_clip_is_named(clips, tmp_path):
    items = read_set(tmp_path / "set.jsonl")
    (tmp_path / "bad" / "1.mp4").unlink()
    with pytest.raises(InputError, match=r"--videos bad=.* no 1\.mp4 in it; every system needs a clip for each"):
        read_folders([f"bad={tmp_path / 'bad'}"], items)
    (tmp_path / "bad" / "2.mp4").unlink()
    with pytest.raises(InputError, match=r"no 1\.mp4 and 1 more in it"):
        read_folders([f"bad={tmp_path / 'bad'}"], items)
    with pytest.raises(InputError, match=r"--videos bad=nowhere: there is no folder nowhere\."):
        read_folders(["bad=nowhere"], items)
