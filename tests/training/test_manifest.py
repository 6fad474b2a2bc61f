"""The manifest, the files it names, and the honest account of what is not used."""

import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import write_clip
from training.data.buckets import Bucket, BucketSettings
from training.data.check import check_files
from training.data.manifest import REASONS, ManifestRow, drop_table, read_manifest, write_manifest
from training.data.media import MediaError, content_hash, probe, read_frames, read_masks
from training.data.world import WorldSettings, write_world
from training.validate_data import main as validate_main
from training.world import sample
from training.write_world import main as write_main

SMALL = BucketSettings(sizes=("32x32", "48x32"), frames=(1, 5))
ROW = {"id": "a", "video": "a.mp4", "reference": "a.png", "prompt_first": "A.", "source": "s", "license": "l"}


def several(references):
    return {key: value for key, value in ROW.items() if key != "reference"} | {"id": "c", "references": references}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    write_world(folder, WorldSettings(4, 6, (32, 48), 7))
    return folder


@pytest.fixture
def world(written, tmp_path):
    return shutil.copytree(written, tmp_path / "world")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def rewrite(folder, rows):
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(folder, settings=SMALL, decode=False):
    return check_files(read_manifest(folder / "manifest.jsonl"), settings, decode=decode)


def dropped(folder, settings=SMALL, decode=False):
    return [(drop.id, drop.reason) for drop in check(folder, settings, decode).dropped]


def test_the_world_is_a_source_of_the_contract(world):
    checked = check(world, decode=True)
    assert checked.dropped == []
    assert [clip.line.row.id for clip in checked.clips] == ["00000007", "00000008", "00000009", "00000010"]
    clip, pair = checked.clips[0], sample(7, 6, (32, 48))
    assert (clip.bucket, clip.indexes, clip.unused) == (Bucket(5, 32, 48), (0, 1, 2, 3, 4), 1)
    row = clip.line.row
    frames = read_frames(world / row.video, [0, 5, 5])
    assert torch.equal(frames[1], frames[2])
    assert (frames[0].permute(1, 2, 0).numpy().astype(int) - pair.video[0]).mean() == pytest.approx(0, abs=3)
    assert np.array_equal(read_masks(world / row.mask, [3])[0, 0], pair.masks[3])
    assert torch.equal(load_file(world / row.pose)["keypoints"][..., :2], torch.from_numpy(pair.keypoints))
    assert (row.prompt_first, row.prompt_later) == (pair.first_prompt, pair.later_prompt)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    rows = [
        ManifestRow(**ROW, crop=(1, 2, 30, 40), scores={"dino": 0.5}, edit={"model": "m", "instruction": "i"}),
        ManifestRow(**ROW | {"id": "b"}, fps=29.97, split="val", target_frame_index=3),
    ]
    write_manifest(tmp_path / "m.jsonl", rows)
    manifest = read_manifest(tmp_path / "m.jsonl")
    assert [line.row for line in manifest.lines] == rows
    assert [line.row.id for line in manifest.of_split("val").lines] == ["b"]
    with pytest.raises(InputError, match="no row of the split test, but 1 of train, 1 of val"):
        manifest.of_split("test")


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{", "not_json", "Expecting"),
        ("[1]", "not_json", "list"),
        (json.dumps({**ROW, "promt_later": "x"}), "bad_row", "Did you mean prompt_later?"),
        (json.dumps({key: value for key, value in ROW.items() if key != "license"}), "bad_row", "license is missing"),
        (json.dumps({**ROW, "video": "../a.mp4"}), "bad_row", "below the manifest's folder"),
        (json.dumps({**ROW, "video": "C:/a.mp4"}), "bad_row", "below the manifest's folder"),
        (json.dumps({**ROW, "video": "/a.mp4"}), "bad_row", "below the manifest's folder"),
        (json.dumps({**ROW, "prompt_first": " "}), "bad_row", "both empty"),
        (json.dumps({**ROW, "crop": [4, 0, 4, 9]}), "bad_row", "x0 < x1"),
        (json.dumps({**ROW, "target_frame": "t.png", "target_frame_index": 1}), "bad_row", "both given"),
        (json.dumps({**ROW, "fps": 0}), "bad_row", "fps is 0"),
        (json.dumps({**ROW, "sha256": {"video": "beef"}}), "bad_row", "sha256.video"),
        (json.dumps(ROW), "duplicate_id", "line 1"),
        (json.dumps({**ROW, "references": [{"picture": "b.png"}]}), "bad_row", "references is given beside reference"),
        (json.dumps(several([{"picture": "b.png", "rolle": "face"}])), "bad_row", "references.0.rolle is not a column"),
        (json.dumps(several([{"picture": "b.png", "character": "X"}])), "bad_row", "which characters lacks"),
        (json.dumps(several([])), "bad_row", "reference is missing"),
        (json.dumps({**ROW, "id": "b\ud800"}), "not_json", "half of a surrogate pair"),
        (json.dumps({**ROW, "\udc00": "b"}), "not_json", "half of a surrogate pair"),
        ("[" * 100_000, "not_json", "nested too deeply"),
        ('{"id":' * 100_000, "not_json", "nested too deeply"),
        (json.dumps({**ROW, "video": "a\0.mp4"}), "bad_row", "below the manifest's folder"),
    ],
)
def test_every_bad_line_is_dropped_with_its_reason(tmp_path, line, reason, detail):
    (tmp_path / "m.jsonl").write_text(f"{json.dumps(ROW)}\n\n{line}\n")
    manifest = read_manifest(tmp_path / "m.jsonl")
    (found,) = manifest.dropped
    assert len(manifest.lines) == 1
    assert (found.line, found.reason) == (3, reason)
    assert detail in found.detail
    table = drop_table(1, manifest.dropped)
    assert f"1    {reason}: {REASONS[reason]}" in table


def test_a_byte_order_mark_costs_no_row_and_bytes_that_are_no_text_their_own(tmp_path, capsys):
    path, account = tmp_path / "m.jsonl", tmp_path / "dropped.jsonl"
    bad = json.dumps(ROW | {"id": "half \ud800"}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([json.dumps(ROW).encode(), bad, b"\xff\xfe", b"[" * 100_000]))
    manifest = read_manifest(path)
    assert [line.row.id for line in manifest.lines] == ["a"]
    assert [drop.line for drop in manifest.dropped] == [2, 3, 4]
    assert validate_main([str(path), "--dropped", str(account)]) == 2  # the row's files are missing
    reasons = [json.loads(line)["reason"] for line in account.read_text(encoding="utf-8").splitlines()]
    assert reasons == ["missing_file", "not_json", "not_json", "not_json"]
    assert "Traceback" not in capsys.readouterr().err
    path.write_bytes(json.dumps(ROW).encode("utf-16"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_manifest(path)


def test_references_of_a_row_whichever_column_gives_them():
    entries = [{"picture": "b.png", "role": "face", "prompt": "Red hair."}, {"picture": "c.png", "prompt": "A coat."}]
    row = ManifestRow.model_validate(several(entries) | {"prompt_first": ""})
    assert [reference.role for reference in row.pictures] == ["face", "person"]
    assert row.first_text == "Red hair. A coat."
    assert row.paths() == {"video": "a.mp4", "references.0.picture": "b.png", "references.1.picture": "c.png"}
    (only,) = ManifestRow(**ROW, reference_mask="m.png").pictures
    assert (only.picture, only.mask) == ("a.png", "m.png")


def test_an_empty_or_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_manifest(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"characters": [{"name": "x", "mask": "none"}]}, "missing_file"),
        ({"video": "none.mp4"}, "missing_file"),
        ({"mask": "none"}, "missing_file"),
        ({"width": 50}, "size_mismatch"),
        ({"crop": [0, 0, 49, 32]}, "size_mismatch"),
        ({"num_frames": 7}, "size_mismatch"),
        ({"target_frame_index": 6}, "size_mismatch"),
        ({"crop": [0, 0, 16, 16]}, "too_small"),
        ({"sha256": {"reference": "0" * 64}}, "hash_mismatch"),
        ({"reference": "00000008/video.mp4"}, "decode_error"),
        ({"mask": "00000008/reference_mask.png"}, "mask_mismatch"),
        ({"pose": "00000008/reference.png"}, "decode_error"),
    ],
)
def test_a_row_that_does_not_fit_its_files_is_dropped(world, change, reason):
    rows = rows_of(world)
    rows[1] |= change
    rewrite(world, rows)
    assert dropped(world) == [("00000008", reason)]


def test_files_that_do_not_fit_are_dropped(world):
    rows = rows_of(world)
    rows[1] |= {key: rows[0][key] for key in ("video", "mask", "pose", "reference", "reference_mask")}
    cv2.imwrite(str(world / "00000009" / "reference_mask.png"), np.zeros((16, 16), np.uint8))
    save_file({"keypoints": torch.zeros(3, 14, 2)}, world / "00000010" / "pose.safetensors")
    rewrite(world, rows)
    expected = [("00000008", "duplicate_content"), ("00000009", "mask_mismatch"), ("00000010", "mask_mismatch")]
    assert dropped(world) == expected
    assert dropped(world, BucketSettings(sizes=("32x32",), frames=(9,)))[0] == ("00000007", "too_short")


@pytest.mark.parametrize(
    ("points", "said", "reason"),
    [
        ((6, 18, 3), {"layout": "body18", "width": "48", "height": "32", "fps": "16"}, None),
        ((6, 18, 3), {}, "mask_mismatch"),
        ((5, 18, 3), {"layout": "body18", "width": "48", "height": "32", "fps": "16"}, "mask_mismatch"),
        ((6, 18, 3), {"layout": "body18", "width": "64", "height": "32", "fps": "16"}, "mask_mismatch"),
        ((6, 17, 3), {"layout": "body18", "width": "48", "height": "32", "fps": "16"}, "decode_error"),
        ((6, 18, 2), {"layout": "body18", "width": "48", "height": "32", "fps": "16"}, "decode_error"),
        ((6, 18, 3), {"layout": "body18", "width": "wide", "height": "32", "fps": "16"}, "decode_error"),
        ((6, 18, 3), {"layout": "body18", "width": "48", "fps": "16"}, "decode_error"),
    ],
)
def test_a_characters_pose_says_what_it_is(world, points, said, reason):
    save_file({"keypoints": torch.zeros(points)}, world / "left.safetensors", said)
    rows = rows_of(world)
    rows[1]["characters"] = [{"name": "left", "words": "the woman", "pose": "left.safetensors"}]
    rewrite(world, rows)
    assert dropped(world) == ([] if reason is None else [("00000008", reason)])


def test_the_masks_of_references_and_characters_are_checked(world):
    rows = rows_of(world)
    for row in rows[:3]:
        row["references"] = [{"picture": row.pop("reference"), "mask": row.pop("reference_mask")}]
    rows[1]["references"].append({"picture": "00000009/reference.png", "mask": "small.png"})
    rows[2]["characters"] = [{"name": "right", "mask": "small.png"}]
    cv2.imwrite(str(world / "small.png"), np.zeros((16, 16), np.uint8))
    rewrite(world, rows)
    assert dropped(world) == [("00000008", "mask_mismatch"), ("00000009", "mask_mismatch")]
    assert check(world).clips[0].hashes["references.0.picture"] == content_hash(world / "00000007" / "reference.png")


def test_frames_of_different_sizes_are_dropped_with_their_names(tmp_path):
    for index in range(6):
        (tmp_path / "clip").mkdir(exist_ok=True)
        size = (32, 40) if index == 3 else (32, 32)
        cv2.imwrite(str(tmp_path / "clip" / f"{index:03d}.png"), np.full((*size, 3), index, np.uint8))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    write_manifest(tmp_path / "manifest.jsonl", [ManifestRow(**ROW | {"video": "clip"})])
    (drop,) = check(tmp_path, decode=True).dropped
    assert drop.reason == "decode_error"
    assert "different sizes: 003.png is 40 x 32, 000.png 32 x 32" in drop.detail


def test_damage_costs_the_rows_that_it_is_in(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(12):
        cv2.imwrite(str(folder / f"{index:03d}.png"), np.full((32, 32, 3), index * 10, np.uint8))
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:-30])
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    rows = [ManifestRow(**ROW | {"id": str(n), "video": "clip"}, start_frame=n, num_frames=5) for n in (0, 3, 7)]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    assert dropped(tmp_path, decode=True) == [("3", "decode_error"), ("7", "decode_error")]
    cv2.imwrite(str(folder / "007.png"), np.full((32, 32, 3), 70, np.uint8))
    assert dropped(tmp_path, decode=True) == []


def test_damage_is_found_by_decoding(world):
    video = world / "00000008" / "video.mp4"
    video.write_bytes(video.read_bytes()[:200])
    picture = world / "00000009" / "reference.png"
    picture.write_bytes(picture.read_bytes()[:-200])
    assert dropped(world, decode=True) == [("00000008", "decode_error"), ("00000009", "decode_error")]


def test_a_part_of_a_video_at_its_own_rate(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(20):
        cv2.imwrite(str(folder / f"{index:03d}.png"), np.full((32, 32, 3), index * 10, np.uint8))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    row = ManifestRow(**ROW | {"video": "clip"}, fps=32, start_frame=4, num_frames=12)
    write_manifest(tmp_path / "manifest.jsonl", [row])
    (clip,) = check(tmp_path).clips
    assert clip.indexes == (4, 6, 8, 10, 12)
    assert clip.unused == 1
    assert read_frames(folder, clip.indexes)[:, 0, 0, 0].tolist() == [40, 60, 80, 100, 120]
    assert probe(folder).times[:2] == [0.0, 1 / 16]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_rotation_is_applied(tmp_path, degrees):
    import imageio_ffmpeg

    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[:, :16, :24] = [255, 0, 0]
    write_clip(tmp_path / "plain.mp4", frames, {})
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-display_rotation", str(degrees)]
    subprocess.run([*command, "-i", "plain.mp4", "-c", "copy", "turned.mp4"], cwd=tmp_path, check=True)
    upright = np.rot90(frames[0], degrees // 90)
    found = probe(tmp_path / "turned.mp4")
    assert (found.height, found.width) == upright.shape[:2]
    shown = read_frames(tmp_path / "turned.mp4", [2])[0].permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - upright).mean() < 20


def test_a_files_own_times_count(tmp_path):
    import imageio_ffmpeg

    frames = np.stack([np.full((32, 32, 3), 20 * index, np.uint8) for index in range(9)])
    write_clip(tmp_path / "plain.mp4", frames, {})
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-itsscale", "0.5"]  # 32 frames a second
    subprocess.run([*command, "-i", "plain.mp4", "-c", "copy", "quick.mp4"], cwd=tmp_path, check=True)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    row = ManifestRow(**ROW | {"video": "quick.mp4"})
    write_manifest(tmp_path / "manifest.jsonl", [row])
    (clip,) = check(tmp_path, decode=True).clips
    assert clip.indexes == (0, 2, 4, 6, 8)
    shown = read_frames(tmp_path / "quick.mp4", clip.indexes)[:, 0, 16, 16].int()
    assert shown.tolist() == pytest.approx([0, 40, 80, 120, 160], abs=4)


def test_missing_frames_are_named_and_hashes_are_of_the_content(world):
    video = world / "00000007" / "video.mp4"
    with pytest.raises(MediaError, match="has no frame 6"):
        read_frames(video, [0, 6])
    (world / "empty").mkdir()
    with pytest.raises(MediaError, match="without pictures"):
        probe(world / "empty")
    before = content_hash(world / "00000007" / "mask")
    (world / "00000007" / "mask" / "0003.png").write_bytes(b"other")
    assert content_hash(world / "00000007" / "mask") != before


def test_the_commands_say_what_is_kept(tmp_path, capsys):
    out = tmp_path / "world"
    assert write_main(["--out", str(out), "--count", "2", "--num-frames", "1", "--size", "64x64"]) == 0
    rows = rows_of(out)
    rewrite(out, [*rows, rows[0]])
    account = tmp_path / "dropped.jsonl"
    assert validate_main([str(out / "manifest.jsonl"), "--dropped", str(account)]) == 2
    said = capsys.readouterr()
    assert "duplicate_id" in said.out
    assert "too_small" in said.out
    assert "No row of" in said.err
    assert [json.loads(line)["reason"] for line in account.read_text().splitlines()] == [
        "too_small",
        "too_small",
        "duplicate_id",
    ]
    assert write_main(["--out", str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert validate_main([str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.endswith("none.jsonl does not exist.\n")


def test_the_kept_rows_are_shown_by_bucket(tmp_path, capsys):
    out = tmp_path / "world"
    write_world(out, WorldSettings(2, 1, (512, 512), 0))
    assert validate_main([str(out / "manifest.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "2  kept" in said
    assert "624x624x1" in said
