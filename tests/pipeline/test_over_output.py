"""What is done with a finished run: gallery and review, removal, export, card, the kinds of references."""

import json
import re
import shutil
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

import cv2
import numpy as np
import pytest
import yaml

from contextanyone_core.pose.pose_file import read_pose_file
from data_pipeline.chains import job_of, removed_from
from data_pipeline.commands import main
from data_pipeline.config import read_config
from data_pipeline.decisions.bias import ATTRIBUTES, drop_rates
from data_pipeline.decisions.outputs import account_of, read_decisions
from data_pipeline.decisions.removal import without_source
from data_pipeline.decisions.review import agreement, stored_review
from data_pipeline.decisions.rules import DEDUP, REVIEW, Decision, Rule, decide
from data_pipeline.gallery.build import _row_html
from data_pipeline.licences import allows_commercial_use
from data_pipeline.rows import Row
from data_pipeline.world_sources import FAULTS, read_truth
from training.data.manifest import read_manifest

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def account(root):
    settings = read_config(root / "settings.json")
    job = job_of(settings, root)
    return account_of(job, settings, job.sources.names())


def rows_of(root):
    return [line.row for line in read_manifest(root / "manifest.jsonl").lines]


def without_edits(run, folder, reference):
    """A run whose rows have everything but their references, and a configuration for another kind of them."""
    out = folder / "out"
    shutil.copytree(run, out)
    data = json.loads((run / "settings.json").read_text()) | {"reference": reference}
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(data))
    return path, out


def test_the_gallery_has_a_page_for_each_reason_nearest_to_the_threshold_first(copy):
    assert main(["gallery", "--out", str(copy), "--most", "3"]) == 0
    found = account(copy)
    reasons = {decision.reason or "kept" for decision in found.decisions}
    pages = {path.name for path in (copy / "gallery").glob("*.html")}
    assert pages == {f"{reason.replace('.', '_')}.html" for reason in reasons}
    kept = (copy / "gallery" / "kept.html").read_text()
    assert kept.count("<article") == 3
    for decision in found.decisions:
        name = f"{(decision.reason or 'kept').replace('.', '_')}.html"
        assert (
            f"<b>{sum(x.reason == decision.reason for x in found.decisions)}</b>"
            in (copy / "gallery" / name).read_text()
        )
    assert len(list((copy / "gallery" / "sheets").glob("*.jpg"))) == kept.count("<article") + sum(
        min(3, sum(x.reason == reason for x in found.decisions)) for reason in reasons - {"kept"}
    )


def test_pictures_of_any_source_are_found_from_the_page():
    path = "files/take #1 100%? <ü> 'a' & b.mp4/000000-000020/target-0/target.png"
    row = Row(source="x", sha256="0" * 64, video="v", stop=20, paths={"target": path})
    sources = re.findall(r'<img [^>]*src="([^"]*)"', _row_html(Decision(row, "", ()), [], {}, set()))
    (found,) = (urlsplit(urljoin("file:///out/gallery/kept.html", unescape(source))) for source in sources)
    assert (unquote(found.path), found.query, found.fragment) == (f"/out/{path}", "", "")


def test_a_sheet_shows_the_box_and_the_mask(copy):
    assert main(["gallery", "--out", str(copy)]) == 0
    sheet = next((copy / "gallery" / "sheets").glob("*.jpg"))
    picture = cv2.cvtColor(cv2.imread(str(sheet)), cv2.COLOR_BGR2RGB).astype(int)
    assert picture.shape[0] == 64
    assert picture.shape[1] % 64 == 0
    box = np.abs(picture - [255, 196, 0]).sum(axis=-1) < 150
    outline = np.abs(picture - [0, 220, 255]).sum(axis=-1) < 150
    assert box.any() or outline.any()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_buttons_of_the_gallery_are_read_back(copy, tmp_path):
    from playwright.sync_api import sync_playwright

    assert main(["gallery", "--out", str(copy)]) == 0
    before = rows_of(copy)
    dropped = next(x.row.id for x in account(copy).decisions if x.reason == "dark.min_brightness")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((copy / "gallery" / "kept.html").as_uri())
        assert page.locator("img.sheet").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 64
        assert page.locator("figure img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
        mine = f'article[data-id="{before[0].id}"]'
        page.click(f"{mine} button.drop")
        assert page.get_attribute(f"{mine} button.drop", "aria-pressed") == "true"
        other = f'article[data-id="{before[1].id}"]'
        page.click(f"{other} button.drop")
        page.click(f"{other} button.drop")  # taken back
        assert page.get_attribute(f"{other} button.drop", "aria-pressed") == "false"
        page.click("nav a:has-text('dark.min_brightness')")
        page.click(f'article[data-id="{dropped}"] button.keep')
        assert page.text_content("#count") == "2 decided in this browser"
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "review.jsonl")
        browser.close()
        assert errors == []
    assert main(["filter", "--out", str(copy), "--review", str(tmp_path / "review.jsonl")]) == 0
    after = {row.id for row in rows_of(copy)}
    assert after == {row.id for row in before} - {before[0].id} | {dropped}
    assert json.loads((copy / "funnel.json").read_text())["dropped"]["review"] == 1


def test_a_review_overrules_the_rules_and_measures_them():
    rows = [Row(source=x, sha256="0" * 64, video="v", stop=1, scores={"x.y": x in "ad"}) for x in "abcd"]
    review = {rows[0].id: False, rows[1].id: True, rows[2].id: False}
    decisions = decide(rows, [Rule("x", "min_y", 0.5)], review)
    assert [found.reason for found in decisions] == ["review", "", "review", ""]
    assert (decisions.kept, decisions.reasons()) == (2, {"review": 2})
    assert decide(rows, decisions.rules).reasons() == {"x.min_y": 2}
    assert agreement(decisions, review) == {
        "kept": {"reviewed": 1, "precision": 0.0},
        "x.min_y": {"reviewed": 2, "precision": 0.5},
    }


@pytest.mark.parametrize(
    ("review", "reasons"),
    [
        ({}, ["", DEDUP, DEDUP, "x.min_y"]),
        ({"a": False}, [REVIEW, "", DEDUP, "x.min_y"]),  # its copy takes its place
        ({"a": False, "b": False}, [REVIEW, REVIEW, "", "x.min_y"]),
        ({"b": True}, ["", "", DEDUP, "x.min_y"]),
        ({"d": True}, [DEDUP, DEDUP, DEDUP, ""]),  # what a person keeps has no copy beside it
    ],
)
def test_duplicates_are_looked_for_after_the_review(review, reasons):
    """Three rows alike, and a fourth alike that breaks another rule; it comes first."""
    rows = [
        Row(source=x, sha256="0" * 64, video="v", labels={"hashes.frames": "0" * 192}, scores={"x.y": x != "d"})
        for x in "dabc"
    ]
    decisions = decide(rows, [Rule("x", "min_y", 0.5), Rule("dedup", "min_distance", 0.1)], by_id(rows, review))
    assert [found.reason for found in decisions] == [*reasons[3:], *reasons[:3]]


def test_a_person_who_drops_a_copy_agrees_with_the_rule():
    rows = [Row(source=x, sha256="0" * 64, video="v", labels={"hashes.frames": "0" * 192}) for x in "ab"]
    review = by_id(rows, {"b": False})
    decisions = decide(rows, [Rule("dedup", "min_distance", 0.1)], review)
    assert agreement(decisions, review) == {DEDUP: {"reviewed": 1, "precision": 1.0}}


def by_id(rows, review):
    return {row.id: review[row.source] for row in rows if row.source in review}


@pytest.mark.parametrize(
    "line", ["{", '{"id": 3, "keep": true}', '{"id": "a", "keep": 1}', '{"id": "a"}', "[]", "null"]
)
def test_a_review_of_another_form_or_run_is_a_mistake(line, copy, tmp_path, capsys):
    path = tmp_path / "review.jsonl"
    path.write_text(line + "\n")
    before = (copy / "manifest.jsonl").read_bytes()
    assert main(["filter", "--out", str(copy), "--review", str(path)]) == 2
    path.write_text('{"id": "nobody-000000-000025", "keep": true}\n')
    assert main(["filter", "--out", str(copy), "--review", str(path)]) == 2
    assert "nobody" in capsys.readouterr().err
    assert (copy / "manifest.jsonl").read_bytes() == before


def test_a_removed_source_leaves_nothing_and_does_not_come_back(copy, tmp_path):
    name = rows_of(copy)[-1].id.rsplit("-", 2)[0]  # no frame has its number
    main(["card", "--out", str(copy)])
    assert main(["remove", "--source", name, "--out", str(copy)]) == 0
    assert removed_from(copy) == {name}
    left = [path for path in copy.rglob("*") if name in {part.split(".")[0] for part in path.relative_to(copy).parts}]
    assert left == []
    for path in copy.glob("*.json*"):
        assert f'"{name}"' not in path.read_text(), path
        assert f"{name}-0" not in path.read_text(), path
    (tmp_path / "again.yaml").write_text((copy / "settings.json").read_text())
    assert main([str(tmp_path / "again.yaml"), "--out", str(copy)]) == 0
    assert not (copy / "sources" / name).exists()
    assert main(["remove", "--source", name, "--out", str(copy)]) == 2


def test_names_and_words_may_hold_the_line_separators_of_unicode(tmp_path):
    """A browser writes U+2028 into review.jsonl as it is, and so do we; in JSON only a line feed ends a line."""
    name, words = "take\u2028one.mp4", "a\u2028b\x85c"
    (tmp_path / "review.jsonl").write_text(
        json.dumps({"id": f"{name}{words}", "keep": False}, ensure_ascii=False) + "\n"
    )
    assert stored_review(tmp_path) == {f"{name}{words}": False}
    (tmp_path / "removed.txt").write_text(f"{name}\nb.mp4\n")
    assert removed_from(tmp_path) == {name, "b.mp4"}
    lines = [{"source": name, "labels": {"captions.first": words}}, {"source": "b.mp4"}]
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert read_decisions(tmp_path) == lines
    assert without_source(tmp_path, "b.mp4") == 1
    assert read_decisions(tmp_path) == lines[:1]


def test_an_export_stands_alone(copy, tmp_path, capsys):
    to = tmp_path / "export"
    assert main(["export", "--out", str(copy), "--to", str(to)]) == 0
    assert main(["export", "--out", str(copy), "--to", str(to)]) == 2
    shutil.rmtree(copy)
    rows = rows_of(to)
    assert len(rows) > 0
    assert all((to / path).exists() for row in rows for path in row.paths().values())
    assert not any(path.is_symlink() for path in to.rglob("*"))
    assert (to / "README.md").is_file()
    assert {path.name for path in (to / "sources").iterdir()} == {row.id.rsplit("-", 2)[0] for row in rows}


def test_an_unknown_licence_is_not_exported(copy, tmp_path, capsys):
    data = json.loads((copy / "settings.json").read_text()) | {"license": " Not known"}
    (copy / "settings.json").write_text(json.dumps(data))
    assert main(["filter", "--out", str(copy)]) == 0
    assert main(["export", "--out", str(copy), "--to", str(tmp_path / "export")]) == 2
    assert "licence" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_the_card_tells_whom_the_filters_drop(copy):
    assert main(["card", "--out", str(copy)]) == 0
    card = (copy / "README.md").read_text()
    for words in (
        "| world | 1 |",
        "## Consent",
        "remove --source",
        "| skin |",
        "| body_shape |",
        "| person.min_area |",
    ):
        assert words in card
    sound = [x for x in account(copy).decisions if read_truth(copy / "sources" / x.row.source)["fault"] in (
        "none", "cut", "dissolve")]  # fmt: skip
    rates = drop_rates(copy, account(copy).decisions)
    for attribute in ATTRIBUTES:
        assert sum(rate.rows for rate in rates if rate.attribute == attribute) == len(sound)
        assert sum(rate.dropped for rate in rates if rate.attribute == attribute) == sum(bool(x.broken) for x in sound)
    assert all(rate.low <= rate.dropped / rate.rows <= rate.high for rate in rates)


def test_poses_are_files_that_training_reads(run):
    row = rows_of(run)[0]
    poses = read_pose_file(run / row.pose)
    assert (poses.width, poses.height) == (row.width, row.height)
    seen = poses.body[row.start_frame : row.start_frame + row.num_frames]
    assert (seen[:, :14, 2] > 0).all()
    assert 0 <= np.median(seen[:, :14, 0]) <= row.width


def test_references_of_another_shot_and_of_the_shot_itself(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path, out = without_edits(run, tmp_path / "a", "other_shot")
    assert main([str(path), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert {FAULTS[int(row.id[:6])] for row in rows} <= {"cut", "dissolve"}
    assert len(rows) >= 2
    for row in rows:
        shot = row.id.split("-", 1)[1]
        assert row.edit is None
        assert shot not in row.reference
        assert row.reference.split("/")[1] == row.id[:6]
    assert json.loads((out / "funnel.json").read_text())["stages"]["verify"]["dropped"]["no_other_shot"] > 0
    path, out = without_edits(run, tmp_path / "b", "edit")
    assert main([str(path), "--out", str(out), "--reference", "self"]) == 0
    assert all(row.reference.endswith("/target.png") for row in rows_of(out))
    assert len(rows_of(out)) > len(rows)


def test_commercial_use_is_refused_where_a_licence_does_not_allow_it(copy, tmp_path, capsys):
    path = tmp_path / "world.yaml"
    data = json.loads((copy / "settings.json").read_text())
    path.write_text(yaml.safe_dump(data | {"license": "CC-BY-NC-4.0"}))
    assert main([str(path), "--out", str(copy), "--commercial"]) == 2
    assert "CC-BY-NC-4.0" in capsys.readouterr().err
    models = {"mediapipe": "wheel", "server": "http://localhost:1/v1", "vlm": "Qwen/Qwen2.5-VL-3B-Instruct"}
    path.write_text(yaml.safe_dump(data | {"chain": "gpu", "gpu": models}))
    assert main([str(path), "--out", str(tmp_path / "new"), "--commercial", "--dry-run"]) == 2
    assert "Qwen Research License" in capsys.readouterr().err
    assert main([str(path), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    path.write_text(yaml.safe_dump(data))
    assert main([str(path), "--out", str(tmp_path / "new"), "--commercial", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("allowed", "licences"),
    [
        (
            False,
            ["CC-BY-NC-4.0", "CC BY NC 4.0", "cc_by_nc_sa", "CC BYNC", "Attribution-NonCommercial", "Non Commercial"],
        ),
        (False, ["research use only", "Academic", "for research purposes", "not for commercial use", "personal_use"]),
        (False, ["unknown", " unknown", "Not Known", "not_known", " ", "?"]),
        (True, ["CC0-1.0", "CC BY 4.0", "MIT", "my own videos", "Pexels", "research and commercial use", "Vince"]),
    ],
)
def test_a_licence_is_understood_however_it_is_written(allowed, licences):
    assert {licence: allows_commercial_use(licence) for licence in licences} == dict.fromkeys(licences, allowed)


def of_older_code(root):
    """The run as newer code sees it: the last stage has a version that none of its parts is of."""
    last = max(path for path in (root / "parts").glob("*"))
    last.rename(last.with_name(last.name[:-16] + "0" * 16))
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


@pytest.mark.parametrize("words", [["filter"], ["card"], ["measure"], ["gallery"], ["export", "--to", "NEW"]])
def test_rows_of_older_code_are_named_and_nothing_is_written(copy, tmp_path, capsys, words):
    before = of_older_code(copy)
    assert len(before["decisions.jsonl"]) > 1000
    words = [str(tmp_path / "new") if word == "NEW" else word for word in words]
    assert main([*words, "--out", str(copy)]) == 2
    told = capsys.readouterr().err
    assert f"{len(FAULTS)} sources of the stage" in told
    assert "older code" in told
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_source_is_removed_from_a_run_of_older_code(copy, capsys):
    of_older_code(copy)
    rows = rows_of(copy)
    source = rows[0].id.rsplit("-", 2)[0]
    assert main(["status", "--out", str(copy)]) == 0
    assert "by other settings or older code alone" in capsys.readouterr().out
    assert main(["remove", "--source", source, "--out", str(copy)]) == 0
    assert [row.id for row in rows_of(copy)] == [row.id for row in rows if row.id.rsplit("-", 2)[0] != source]
    assert f'"source": "{source}"' not in (copy / "decisions.jsonl").read_text()
    assert not [*copy.rglob(source), *copy.rglob(f"{source}.json*")]
