"""From a folder of clips to a manifest: names, tables, windows, references of the clip itself, splits."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import read_picture
from contextanyone_core.media.video_io import write_clip
from training.data.buckets import BucketSettings
from training.data.check import check_files
from training.data.collect import _table_rows, collect
from training.data.from_folder import ManifestSettings, make_manifest
from training.data.manifest import read_manifest
from training.data.video_windows import cut_windows
from training.data.work import Share
from training.make_manifest import main

SMALL = BucketSettings(sizes=("32x32", "48x32"), frames=(1, 5, 9))


def write_video(path: Path, count: int = 24) -> None:
    """Frames that are brighter one by one, 48 x 32, 16 a second; a white square walks from left to right."""
    frames = np.stack([np.full((32, 48, 3), 4 * index, np.uint8) for index in range(count)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames, {})


def write_picture(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 99, np.uint8))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path)
    return path


@pytest.fixture
def folder(video: Path, tmp_path: Path) -> Path:
    """Clips a and b with captions; a has two references, b its folder's."""
    for name in ("clips/a.mp4", "clips/walk/b.mp4", "clips/walk/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "clips/a.txt").write_text("\ufeffA woman\nin red.\n\nShe waves.\n", encoding="utf-8")
    (tmp_path / "clips/walk/b.json").write_text(json.dumps({"caption": "He walks.", "license": "CC0"}))
    write_picture(tmp_path / "clips/a.png")
    write_picture(tmp_path / "clips/a_ref_2.jpg", (40, 24))
    write_picture(tmp_path / "clips/a_ref_2_mask.png", (40, 24))
    write_picture(tmp_path / "clips/walk/reference.png")
    return tmp_path


def settings(folder: Path, **changes: object) -> ManifestSettings:
    given = {"own_reference": False, "license": "unknown", "buckets": SMALL, "validation": 0.0} | changes
    return ManifestSettings(folder=folder / "clips", out=folder / "m.jsonl", **given)


def made(folder: Path, **changes: object) -> list[dict]:
    make_manifest(settings(folder, **changes), Share())
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


def test_what_belongs_to_a_clip_is_found_by_name(folder: Path) -> None:
    account = make_manifest(settings(folder), Share())
    rows = {row["id"]: row for row in map(json.loads, (folder / "m.jsonl").read_text().splitlines())}
    assert list(rows) == ["clips/a-0001", "clips/a-0002", "clips/a-0003", *(f"clips/walk/b-000{n}" for n in (1, 2, 3))]
    first = rows["clips/a-0001"]
    assert (first["prompt_first"], first["prompt_later"]) == ("A woman in red.", "She waves.")
    assert first["references"] == [
        {"picture": "clips/a.png"},
        {"picture": "clips/a_ref_2.jpg", "mask": "clips/a_ref_2_mask.png"},
    ]
    walk = rows["clips/walk/b-0001"]
    assert (walk["prompt_later"], walk["license"]) == ("He walks.", "CC0")
    assert walk["reference"] == "clips/walk/reference.png"
    assert (walk["source"], first["license"]) == ("clips/walk/b.mp4", "unknown")
    assert "1 left out, no caption beside it, and no line in the table: walk/c.mp4." in account
    assert "3 rows have the license unknown" in account
    checked = check_files(read_manifest(folder / "m.jsonl"), SMALL, decode=True)
    assert checked.dropped == []
    assert {clip.bucket.references for clip in checked.clips} == {1, 2}


def test_long_clips_are_cut_into_windows_that_fill_their_buckets(folder: Path) -> None:
    rows = made(folder)[:3]
    assert [(row.get("start_frame", 0), row["num_frames"]) for row in rows] == [(0, 9), (9, 9), (18, 5)]
    clips = check_files(read_manifest(folder / "m.jsonl"), SMALL, decode=False).clips[:3]
    assert [(clip.bucket.num_frames, clip.unused) for clip in clips] == [(9, 0), (9, 0), (5, 0)]


@pytest.mark.parametrize("fps", [16, 24, 25, 30000 / 1001, 50, 60])
def test_windows_at_any_rate_lose_nothing_but_the_end(fps: float) -> None:
    times = [index / fps for index in range(round(12 * fps))]
    windows = cut_windows(times, SMALL.frames)
    assert all(count is not None and start + count <= len(times) for start, count in windows.parts)
    assert windows.available - 5 < windows.used <= windows.available
    for (start, count), (following, _) in zip(windows.parts, windows.parts[1:], strict=False):
        assert count is not None
        assert 0 < times[following] - times[start + count - 1] < 2.1 / 16
    assert cut_windows(times[:2], SMALL.frames).parts == [(0, None)]


def test_a_table_gives_columns_and_windows(folder: Path) -> None:
    table = "file_name,caption,prompt_first,start_frame,num_frames,license\n"
    table += "a.mp4,Waving.,A woman.,,,CC0\nwalk/c.mp4,Sitting.,,3,6,\nwalk/none.mp4,Gone.,,,,\n"
    (folder / "clips/captions.csv").write_text(table)
    account = make_manifest(settings(folder), Share())
    rows = {row.row.id: row.row for row in read_manifest(folder / "m.jsonl").lines}
    assert (rows["clips/a-0001"].prompt_first, rows["clips/a-0001"].license) == ("A woman.", "CC0")
    assert (rows["clips/walk/c"].start_frame, rows["clips/walk/c"].num_frames) == (3, 5)
    assert "there is no such video: walk/none.mp4." in account


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_line_of_a_table_ends_at_a_line_feed_alone(folder: Path, form: str, sign: str) -> None:
    caption, rows = f"A woman.{sign}She waves.", [["video", "caption", "license"]]
    rows += [["a.mp4", caption, "CC0"], ["walk/b.mp4", "He walks.", "own"]]
    with (folder / f"clips/captions.{form}").open("w", encoding="utf-8", newline="") as file:
        if form == "jsonl":
            lines = [json.dumps(dict(zip(rows[0], row, strict=True)), ensure_ascii=False) for row in rows[1:]]
            file.write("\r\n".join(lines))
        else:
            csv.writer(file, delimiter="\t" if form == "tsv" else ",").writerows(rows)
    found = collect(folder / "clips", folder / "none")
    assert [clip.columns for clip in found.clips[:2]] == [
        {"prompt_later": caption, "license": "CC0"},
        {"prompt_later": "He walks.", "license": "own"},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "video,caption\na.mp4,Red, smiling\n", "in line 2 has 3 cells, the header 2; put .* commas"),
        ("captions.tsv", 'video\tcaption\na.mp4\t"x\ny"\tz\n', "in line 3 has 3 cells, the header 2; put .* tabs"),
        ("captions.csv", "video,captoin\na.mp4,x\n", "'captoin', which is not a column"),
        ("captions.jsonl", '{"caption": "x"}\n', "a row without a video"),
        ("captions.json", "[" * 100_000, "is not JSON"),
        ("a.json", '["x"]', "holds str; it needs an object"),
    ],
)
def test_a_bad_table_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / "clips" / name).write_text(text)
    with pytest.raises(InputError, match=message):
        collect(folder / "clips", folder / "none")


def test_an_own_reference_is_another_moment_cut_to_the_person(folder: Path) -> None:
    for index in range(24):
        mask = np.zeros((32, 48), np.uint8)
        mask[4:24, 10:30] = 255 if index > 10 else 0  # nobody is there in the first part
        path = folder / "clips/a_mask" / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), mask)
    rows = {row["id"]: row for row in made(folder, own_reference=True)}
    first, third = rows["clips/a-0001"], rows["clips/walk/b-0003"]
    picture = read_picture(folder / first["reference"])
    assert picture.shape == (32, 36, 3)  # the person and 8 pixels around, where there are as many
    assert picture.mean() == pytest.approx(4 * 16, abs=6)  # frame 4 + 12
    assert read_picture(folder / first["reference_mask"]).shape == picture.shape
    assert first["target_frame"] == first["reference"]
    whole = read_picture(folder / third["reference"])
    assert whole.shape == (32, 48, 3)
    assert whole.mean() == pytest.approx(4 * 8, abs=6)  # frame (20 + 12) mod 24
    assert check_files(read_manifest(folder / "m.jsonl"), SMALL, decode=True).dropped == []


def test_an_own_reference_stays_in_the_part_that_its_row_names(folder: Path) -> None:
    parts = [{"num_frames": 9}, {"start_frame": 9, "num_frames": 5}, {"start_frame": 15}]
    rows = [{"video": "a.mp4", "caption": "Walking."} | part for part in parts]
    (folder / "clips/captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shades = [read_picture(folder / row["reference"]).mean() / 4 for row in made(folder, own_reference=True)[:3]]
    assert shades == pytest.approx([8, 13, 23], abs=1)  # the last frame of each


def test_rows_that_differ_have_references_of_their_own(folder: Path) -> None:
    """Two people of one video by their crops, and two parts with one start."""
    differing = [{"crop": [0, 0, 16, 32]}, {"crop": [16, 0, 48, 32]}, {"num_frames": 9}, {"num_frames": 13}]
    rows = [{"video": "a.mp4", "caption": "Walking."} | given for given in differing]
    (folder / "clips/captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [row for row in made(folder, own_reference=True) if row["video"] == "clips/a.mp4"]
    by_crop = {tuple(row.get("crop", ())): read_picture(folder / row["reference"]).shape[:2] for row in found}
    assert by_crop == {(0, 0, 16, 32): (32, 16), (16, 0, 48, 32): (32, 32), (): (32, 48)}
    whole = [row for row in found if "crop" not in row]
    assert [(row.get("start_frame", 0), row["num_frames"]) for row in whole] == [(0, 9), (0, 9)]
    shades = [read_picture(folder / row["reference"]).mean() / 4 for row in whole]
    assert shades == pytest.approx([8, 10], abs=1)


def test_numbers_of_a_table_are_numbers_where_no_bucket_is_filled(folder: Path) -> None:
    (folder / "clips/captions.csv").write_text("video,caption,start_frame,num_frames\na.mp4,Waving.,3,4\n")
    row = made(folder, own_reference=True)[0]
    assert (row["start_frame"], row["num_frames"]) == (3, 4)


def test_sources_are_split_and_never_share_a_picture(video: Path, tmp_path: Path) -> None:
    for person in ("x", "y", "z"):
        for name in ("1", "2"):
            path = tmp_path / "clips" / person / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, path)
            path.with_suffix(".txt").write_text("Walking.")
        write_picture(tmp_path / "clips" / person / "reference.jpg")
    splits = {(row["video"].split("/")[1], row.get("split", "train")) for row in made(tmp_path, validation=0.3)}
    assert sorted(split for _, split in splits) == ["train", "train", "val"]
    assert made(tmp_path, validation=0.3) == made(tmp_path, validation=0.3)


def test_the_command_ends_with_the_table_and_the_next_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(folder / "m.jsonl")
    assert main([str(folder / "clips"), "--out", out]) == 2  # nothing of 48 x 32 fits a bucket of full size
    said = capsys.readouterr()
    assert "too_small" in said.out
    assert "buckets.max_upscale is 1.25" in said.out
    assert main([str(folder / "clips"), "--out", str(folder / "clips/walk/m.jsonl")]) == 2
    assert "put it into" in capsys.readouterr().err
    config = folder / "c.yaml"
    data = {"manifest": out, "buckets": SMALL.model_dump(mode="json")}
    config.write_text(json.dumps({"run": {"name": "t", "steps": 1}, "part": {"name": "manifest", "data": data}}))
    assert main([str(folder / "clips"), "--out", out, "--config", str(config)]) == 0
    said = capsys.readouterr()
    assert "6  kept" in said.out
    assert said.out.endswith(f"Next: python training/cache.py --config {config} --set part.data.manifest={out}\n")
    (folder / "clips/a.txt").unlink()
    (folder / "clips/walk/b.json").unlink()
    assert main([str(folder / "clips"), "--out", out]) == 2
    assert "No clip of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_captions_may_hold_the_line_separators_of_unicode(tmp_path, name):
    words = "a\u2028b\x85c"
    line = json.dumps({"video": "a.mp4", "caption": words}, ensure_ascii=False)
    (tmp_path / name).write_text(f"{line}\n" if name.endswith("l") else f"video,caption\na.mp4,{words}\n")
    assert [dict(row) for row in _table_rows(tmp_path / name)] == [{"video": "a.mp4", "caption": words}]
