"""Names of sources: whatever a video is called, it can be named in files, paths and ids, and is found again."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from contextanyone_core.media.video_io import write_clip
from data_pipeline.commands import main
from data_pipeline.sources import FolderSources
from training.data.manifest import ManifestRow
from training.data.video import VIDEO_ENDINGS

PLAIN = ["a.mp4", "x" * 176 + ".mp4", "take #1 100%? ünï.mkv", "a_/b.mp4", "_/_c.mp4", "d__/e__f_.mp4"]
KANA = "ロ" * 82 + ".mp4"  # 250 bytes
ODD = [KANA, "x" * 200 + ".mp4", "y" * 120 + "/" + "z" * 120 + ".mp4", "back\\slash.mp4", "two\nlines.mp4", "\x85.mp4"]
NO_UTF8 = os.fsdecode(b"caf\xe9.mp4")


def folder_of(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(name))
    return FolderSources(root)


def test_every_file_has_a_name_of_its_own_and_is_found_by_it(tmp_path):
    files = [*PLAIN, *ODD, NO_UTF8, "x" * 199 + "y.mp4"]
    sources = folder_of(tmp_path / "in", files)
    names = sources.names()
    assert len(names) == len(files)
    shown = [json.loads((tmp_path / sources.row(name, tmp_path).video).read_text()) for name in names]
    assert sorted(shown) == sorted(files)
    assert names == folder_of(tmp_path / "other", files).names()  # wherever the folder is
    assert {name.replace("/", "__") for name in PLAIN} <= set(names)


def test_a_name_fits_in_every_file_name_path_and_id(tmp_path):
    sources = folder_of(tmp_path / "in", [*PLAIN, *ODD, NO_UTF8])
    for name in sources.names():
        row = sources.row(name, tmp_path).span(123456789, 987654321)
        assert len(f"{name}.jsonl".encode()) <= 255
        assert "\n" not in name
        words = {"prompt_first": "a", "prompt_later": "b", "source": "s", "license": "l"}
        ManifestRow(id=row.id, video=row.video, reference=f"{row.files}/reference.png", **words)


def test_a_file_that_is_gone_is_named(tmp_path):
    sources = folder_of(tmp_path / "in", ODD)
    (gone,) = (name for name in sources.names() if name.startswith("ロ"))
    (tmp_path / "in" / KANA).unlink()
    with pytest.raises(FileNotFoundError, match=gone):
        sources.row(gone, tmp_path)


def test_a_hidden_file_is_not_taken_for_one_of_a_hidden_folder(tmp_path):
    sources = folder_of(tmp_path / "in", [".a/b.mp4", ".a__b.mp4"])
    (name,) = sources.names()
    assert json.loads((tmp_path / sources.row(name, tmp_path).video).read_text()) == ".a/b.mp4"


def test_every_form_of_video_that_make_manifest_takes_is_a_source(tmp_path):
    names = [f"a{ending}" for ending in VIDEO_ENDINGS]
    assert folder_of(tmp_path, [*names, "B.MPG", "a.txt"]).names() == sorted([*names, "B.MPG"])


@pytest.mark.parametrize("hard", [True, False])
def test_where_there_can_be_no_links_the_video_is_there_nevertheless(tmp_path, monkeypatch, hard):
    """Windows, exFAT, some network shares; a hard link needs one disk for both."""

    def refuse(link, path):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(link))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    if not hard:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    sources = folder_of(tmp_path / "in", ["a.mp4"])
    for text in ("first", "another"):  # replaced, as by an editor: another file under the same name
        (tmp_path / "in" / "a.mp4").unlink()
        (tmp_path / "in" / "a.mp4").write_text(text)
        row = sources.row("a.mp4", tmp_path)
        assert (tmp_path / row.video).read_text() == text
        assert (tmp_path / row.video).samefile(tmp_path / "in" / "a.mp4") == hard
        assert row.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_long_name_stops_no_run(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("good.mp4", KANA, "back\\slash.mp4"):
        write_clip(folder / name, np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8), {})
    data = {"chain": "pixels", "source": "test", "license": "CC0-1.0", "sources": {"folder": str(folder)}}
    path = tmp_path / "pixels.yaml"
    path.write_text(yaml.safe_dump(data | {"engine": {"workers": 1}}))
    assert main([str(path), "--out", str(out)]) == 0
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["kept"], funnel["failed"]) == (3, 0)
    (long,) = (name for name in FolderSources(folder).names() if name.startswith("ロ"))
    assert main(["remove", "--source", long, "--out", str(out)]) == 0
    assert "2 rows kept" in capsys.readouterr().out
