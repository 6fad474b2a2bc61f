"""The files of raters: which are read, who is left out, and what each wrong one is told."""

import json
from pathlib import Path

import pytest

from contextanyone_core.errors import InputError
from evaluation.study import analyse as analyse_script
from evaluation.study import build
from evaluation.study.analysis import read_answers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"x": {"i0": NaN}}}', "a.x.i0"),
        ('{"a": {"x": {"i0": null}}}', "a.x.i0"),
        ('{"a": [1]}', "a"),
        ("[1]", "metrics.json"),
        ("{", "metrics.json"),
    ],
)
def test_numbers_that_are_none_are_refused_in_a_line(tmp_path, capsys, text, words):
    (tmp_path / "key.json").write_text('{"id": "s", "trials": [], "rules": {}}')
    (tmp_path / "metrics.json").write_text(text)
    arguments = ["--key", tmp_path / "key.json", "--answers", tmp_path, "--metrics", tmp_path / "metrics.json"]
    assert analyse_script.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    (tmp_path / "key.json").write_text("{}")
    assert analyse_script.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    assert "is not the key of a study" in capsys.readouterr().err


def answers_file(
    folder: Path, key: dict[str, object], rater: str, *, check_score: int = 2, seconds: float = 5.0
) -> Path:
    rows = [
        {"trial": trial["id"], "score": check_score if trial["check"] else 1, "left": "first", "seconds": seconds}
        for trial in key["trials"]
    ]
    path = folder / f"{rater}.json"
    path.write_text(json.dumps({"study": key["id"], "rater": rater, "trials": len(rows), "answers": rows}))
    return path


def test_raters_are_left_out_by_the_rules_and_wrong_files_refused(clips, tmp_path):
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    good = answers_file(tmp_path, key, "good")
    careless = answers_file(tmp_path, key, "careless", check_score=-1)
    hasty = answers_file(tmp_path, key, "hasty", seconds=0.5)
    unfinished = answers_file(tmp_path, key, "unfinished")
    data = json.loads(unfinished.read_text())
    unfinished.write_text(json.dumps({**data, "answers": data["answers"][:2]}))
    pause = json.loads(hasty.read_text())
    pause["answers"][0]["seconds"] = 600.0  # one break makes nobody careful
    hasty.write_text(json.dumps(pause))
    read = read_answers(key, [good, careless, hasty, unfinished])
    assert set(read.excluded) == {"careless", "hasty", "unfinished"}
    assert {answer.rater for answer in read.answers} == {"good"}
    assert len(read.answers) == 3
    with pytest.raises(InputError, match="another file"):
        read_answers(key, [good, good])
    whole = json.loads(good.read_text())
    first = whole["answers"][0]
    rows = [{**first, "score": [1]}, {**first, "score": 3}, {**first, "trial": ["t"]}, {**first, "seconds": 1e400}, 7]
    for wrong, words in (
        ({"study": "another"}, "another"),
        *(({"answers": [row]}, "no file of answers: answers.0") for row in rows),
        ({"answers": [{**first, "trial": "t0"}]}, "t0, which is no trial"),
        ({"answers": [first, first]}, "two answers to one trial"),
    ):
        good.write_text(json.dumps({**whole, **wrong}))
        with pytest.raises(InputError, match=words):
            read_answers(key, [good])
    good.write_text("[" * 100_000)
    with pytest.raises(InputError, match="no file of answers"):
        read_answers(key, [good])


def test_pairs_that_a_browser_could_not_show_are_left_out_and_counted(clips, tmp_path):
    """A clip of a codec that one browser does not have: its rater goes on, and the other answers count."""
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    pair = next(trial for trial in key["trials"] if not trial["check"])
    checks = [trial["id"] for trial in key["trials"] if trial["check"]]
    folder = tmp_path / "answers"
    folder.mkdir()
    for rater, missing in (("all", []), ("most", [pair["id"], checks[0]]), ("unchecked", checks)):
        path = answers_file(folder, key, rater)
        data = json.loads(path.read_text())
        for row in data["answers"]:
            if row["trial"] in missing:
                row |= {"score": None, "seconds": 0, "problem": "The video media/x.mp4 cannot be played"}
        path.write_text(json.dumps(data))
    words = ["--key", str(tmp_path / "study" / "key.json"), "--answers", str(folder), "--out", str(tmp_path / "out")]
    assert analyse_script.main(words) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["excluded"] == {"unchecked": "passed 0 of 0 attention checks"}
    assert found["pairs"][0]["answers"] == 3 + 2
    shown = {row["trial"]: row for row in found["not_shown"]}
    assert shown.keys() == {pair["id"], checks[0]}
    assert shown[pair["id"]] == {"trial": pair["id"], "raters": 1, "first": pair["first"], "second": pair["second"]}
    said = f"- good's clip of {pair['item']} and bad's clip of {pair['item']} could not be shown to 1 of the raters."
    assert said in (tmp_path / "out" / "table.md").read_text()


def test_where_nobody_is_left_each_reason_is_named(clips, tmp_path, capsys):
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    key, folder = json.loads((tmp_path / "study" / "key.json").read_text()), tmp_path / "answers"
    folder.mkdir()
    words = ["--key", str(tmp_path / "study" / "key.json"), "--answers", str(folder), "--out", str(tmp_path / "out")]
    assert analyse_script.main(words) == 2
    assert "answers has no .json file; put the files there" in capsys.readouterr().err
    answers_file(folder, key, "hasty", seconds=0.5)
    answers_file(folder, key, "careless", check_score=-1)
    assert analyse_script.main(words) == 2
    said = capsys.readouterr().err
    assert "is left: careless passed 0 of 3 attention checks; hasty median time 0.5 s." in said
    assert said.count("\n") == 1


def test_a_key_that_does_not_know_which_pictures_are_one_is_refused(clips, tmp_path, capsys):
    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    key = tmp_path / "study" / "key.json"
    older = json.loads(key.read_text())
    for trial in older["trials"]:
        del trial["reference"]
    key.write_text(json.dumps(older))
    words = ["--key", str(key), "--answers", str(tmp_path), "--out", str(tmp_path / "out")]
    assert analyse_script.main(words) == 2
    assert "build the study again" in capsys.readouterr().err
