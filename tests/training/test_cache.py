"""The cache: what inference encodes, unpadded, resumable, shared out, and encoded anew where something changed."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from cached_world import build, change_rows, settings_for, write_small_world
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from contextanyone_core.encoders.reference import pad_picture
from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline
from contextanyone_core.media.image_io import picture_to_images, read_picture
from contextanyone_core.prompts import TwoStagePrompt
from training import files
from training.cache import build_cache, main
from training.data import build as build_module
from training.data import facts
from training.data.batches import CachedData
from training.data.build import CacheBuilder
from training.data.cache import index_path, read_index
from training.data.frames import latent_masks, to_images
from training.data.media import read_frames, read_masks, read_pose
from training.data.shards import ShardStore
from training.data.work import Share, Stopped


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("cached")
    manifest = write_small_world(folder / "world")
    settings = settings_for(manifest, tiny_folder)
    assert build(settings)
    return folder


@pytest.fixture
def settings(written, tmp_path, tiny_folder):
    shutil.copytree(written, tmp_path / "copy")
    return settings_for(tmp_path / "copy" / "world" / "manifest.jsonl", tiny_folder)


def entries(settings, kind):
    store = ShardStore(settings.cache / kind)
    return {key: store.read(key) for key in store}


def of_a_batch(vae, images):
    """Latents (16, t, h, w) as of a clip among others: kernels round differently for a batch of one."""
    return vae.encode(torch.cat([images, torch.zeros_like(images)]))[0]


def counts(settings):
    return {kind: len(ShardStore(settings.cache / kind)) for kind in ("clip", "reference", "target", "text")}


def test_entries_are_what_inference_prepares(settings, tiny_folder):
    pipeline = ContextAnyonePipeline.from_folder(tiny_folder)
    row = read_index(settings).rows[1]
    place = settings.manifest.parent / row.id
    images = picture_to_images(read_picture(place / "reference.png"))
    encoded = pipeline.dual_encoder.encode(images, (32, 48))
    reference = ShardStore(settings.cache / "reference").read(row.keys.reference)
    padded = pad_picture(images, (32, 48))[:, :, None]
    assert torch.equal(reference["latents"], of_a_batch(pipeline.vae, padded).half())
    torch.testing.assert_close(of_a_batch(pipeline.vae, padded), encoded.latents[0], atol=2e-6, rtol=0)
    assert torch.equal(reference["image_embeds"], encoded.image_embeds[0].half())
    assert reference["mask"].shape == (1, 1, 4, 6)

    texts = ShardStore(settings.cache / "text")
    prompt = TwoStagePrompt(f"A {row.id}.", "Waving.")
    for key, text in ((row.keys.first, prompt.reference_text), (row.keys.video, prompt.video_text)):
        embeds = texts.read(key)["text_embeds"]
        assert len(embeds) == pipeline.text_encoder.count_tokens(text)
        expected = pipeline.text_encoder.encode([text])[0]
        torch.testing.assert_close(embeds, expected[: len(embeds)].half())
        assert not expected[len(embeds) :].any()

    clip = ShardStore(settings.cache / "clip").read(row.keys.clip)
    frames = to_images(read_frames(place / "video.mp4", range(5)))
    assert torch.equal(clip["latents"], of_a_batch(pipeline.vae, frames).half())
    torch.testing.assert_close(of_a_batch(pipeline.vae, frames), pipeline.vae.encode(frames)[0], atol=2e-6, rtol=0)
    assert torch.equal(clip["mask"], latent_masks(read_masks(place / "mask", range(5))[:, 0]).half())
    assert torch.equal(clip["pose"], torch.from_numpy(read_pose(place / "pose.safetensors")[:5]))
    assert clip["pose"].shape == (5, 14, 3)


def test_a_second_run_encodes_nothing_and_the_index_is_the_same(settings, monkeypatch):
    before, index = counts(settings), index_path(settings).read_bytes()
    monkeypatch.setattr(build_module, "prepare_clip", pytest.fail)
    assert build(settings)
    assert counts(settings) == before
    assert before == {"clip": 4, "reference": 4, "target": 0, "text": 9}
    assert index_path(settings).read_bytes() == index


def test_only_what_changed_is_encoded_again(settings):
    before = {kind: set(entries(settings, kind)) for kind in ("clip", "reference", "text")}
    folder = settings.manifest.parent
    shutil.copy(folder / "00000008/reference.png", folder / "00000007/reference.png")
    change_rows(settings.manifest, lambda row: row | ({"prompt_later": "Dancing."} if row["id"] == "00000009" else {}))
    with pytest.raises(InputError, match=r"is not cached .* run training/cache.py"):
        read_index(settings)
    assert build(settings)
    after = {kind: set(entries(settings, kind)) for kind in before}
    assert {kind: len(after[kind] - before[kind]) for kind in before} == {"clip": 0, "reference": 1, "text": 1}


def test_another_encoder_makes_other_entries(settings, tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tensors = load_file(other / "text_encoder.safetensors")
    with safe_open(other / "text_encoder.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors["encoder.final_layer_norm.weight"] = tensors["encoder.final_layer_norm.weight"] * 2
    save_file(tensors, other / "text_encoder.safetensors", metadata=metadata)
    changed = settings.model_copy(update={"encoders": other})
    with pytest.raises(InputError, match="another text_encoder"):
        read_index(changed)
    assert build(changed)
    assert counts(changed) == {"clip": 4, "reference": 4, "target": 0, "text": 18}
    (other / "text_encoder.safetensors").unlink()
    assert len(read_index(changed).rows) == 4


def test_processes_share_the_work_and_the_last_one_writes_the_index(settings):
    expected = {kind: entries(settings, kind) for kind in ("clip", "reference", "text")}
    shutil.rmtree(settings.cache)
    assert not build(settings, rank=1, world=2)
    assert not index_path(settings).exists()
    shared = counts(settings)
    assert build(settings, rank=0, world=2)
    assert 0 < shared["clip"] < 4
    for kind, found in expected.items():
        again = entries(settings, kind)
        assert again.keys() == found.keys()
        assert all(torch.equal(again[key][name], tensor) for key in found for name, tensor in found[key].items())


def test_a_stop_keeps_what_is_done_and_the_next_run_goes_on(settings, monkeypatch):
    shutil.rmtree(settings.cache)
    made, encode = [], build_module.encode_prepared

    def counted(batch, encoders):
        made.extend(batch)
        return encode(batch, encoders)

    monkeypatch.setattr(build_module, "encode_prepared", counted)
    monkeypatch.setattr(build_module.Encoders, "batch_size", lambda *_: 2)
    builder = CacheBuilder(settings, torch.device("cpu"), Share(asked=lambda: len(made) >= 4))
    with pytest.raises(Stopped):
        builder.build()
    assert counts(settings) == {"clip": 4, "reference": 0, "target": 0, "text": 0}
    assert build(settings)
    assert len(made) == 8
    assert counts(settings) == {"clip": 4, "reference": 4, "target": 0, "text": 9}


def test_a_damaged_shard_is_encoded_again(settings, caplog):
    (shard,) = (settings.cache / "clip").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    assert build(settings)
    assert "damaged" in caplog.text
    assert counts(settings)["clip"] == 4


def test_a_damaged_entry_is_found_named_and_encoded_again_alone(settings, monkeypatch, caplog):
    (shard,) = (settings.cache / "clip").glob("*.safetensors")
    row, before = read_index(settings).rows[2], entries(settings, "clip")
    content = bytearray(shard.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[f"{row.keys.clip}/latents"]["data_offsets"][0]] ^= 1
    shard.write_bytes(content)
    made, encode = [], build_module.encode_prepared
    monkeypatch.setattr(
        build_module, "encode_prepared", lambda batch, *rest: made.extend(batch) or encode(batch, *rest)
    )
    assert build(settings)
    assert len(made) == 1
    assert f"Damaged entries (clip) are encoded again, of the rows {row.id}." in caplog.text
    after = entries(settings, "clip")
    assert all(torch.equal(after[key]["latents"], entry["latents"]) for key, entry in before.items())


def test_sigterm_cuts_an_encoding_and_keeps_the_ones_before(settings, monkeypatch):
    shutil.rmtree(settings.cache)
    calls, encode = [], build_module.encode_prepared

    def told_to_end(batch, encoders):
        calls.append(len(batch))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return encode(batch, encoders)

    monkeypatch.setattr(build_module, "encode_prepared", told_to_end)
    monkeypatch.setattr(build_module.Encoders, "batch_size", lambda *_: 2)
    began = time.monotonic()
    assert build_cache(settings) == signal.SIGTERM
    assert time.monotonic() - began < 40
    assert counts(settings)["clip"] == 2


def test_the_empty_prompt_does_not_hang_on_its_shard(settings):
    data = CachedData(settings)
    expected = ShardStore(settings.cache / "text").read(data.index.empty)["text_embeds"]
    for shard in (settings.cache / "text").glob("*.safetensors"):
        shard.unlink()
    assert torch.equal(CachedData(settings).empty_text, expected)
    assert CachedData(settings).longest_text() == 0


def test_eight_processes_encode_an_eighth_each_and_read_no_file_twice(tmp_path, tiny_folder, monkeypatch):
    settings = settings_for(write_small_world(tmp_path / "world", 8), tiny_folder)
    change_rows(settings.manifest, lambda row: row | {"num_frames": 1})
    made, hashed, encode, look = [], [], build_module.encode_prepared, facts.content_hash
    monkeypatch.setattr(
        build_module, "encode_prepared", lambda batch, *rest: made.extend(batch) or encode(batch, *rest)
    )
    monkeypatch.setattr(facts, "content_hash", lambda path, *rest: hashed.append(path) or look(path, *rest))
    for rank in (5, 0, 1, 2, 3, 4, 6, 7):
        assert build(settings, rank, 8) == (rank == 7)
        assert len(made) == 2  # a clip and a reference
        made.clear()
    assert len(hashed) == len(set(hashed)) == 8 * 5
    assert len(read_index(settings).rows) == 8


def test_what_cannot_be_encoded_is_counted_and_tried_again(settings):
    video = settings.manifest.parent / "00000008" / "video.mp4"
    whole = video.read_bytes()
    start = whole.index(b"mdat")
    video.write_bytes(whole[: start + 40] + b"\0" * (len(whole) - start - 40))  # times can be read, frames cannot
    long = {"prompt_later": "very " * 80}
    change_rows(settings.manifest, lambda row: row | (long if row["id"] == "00000010" else {}))
    assert build(settings)
    index = read_index(settings)
    assert [(drop.id, drop.reason) for drop in index.dropped] == [
        ("00000008", "decode_error"),
        ("00000010", "prompt_too_long"),
    ]
    assert [row.id for row in index.rows] == ["00000007", "00000009"]
    video.write_bytes(whole)
    assert build(settings)
    assert [drop.id for drop in read_index(settings).dropped] == ["00000010"]


def test_a_mask_that_shows_nobody_is_counted(settings):
    folder = settings.manifest.parent
    (folder / "black").mkdir()
    for number in range(6):
        Image.new("L", (48, 32)).save(folder / f"black/{number}.png")
    with Image.open(folder / "00000009/reference.png") as picture:
        Image.new("L", picture.size).save(folder / "black.png")
    changes = {"00000008": {"mask": "black"}, "00000009": {"reference_mask": "black.png"}}
    change_rows(settings.manifest, lambda row: row | changes.get(row["id"], {}))
    assert build(settings)
    index = read_index(settings)
    assert [(drop.id, drop.reason) for drop in index.dropped] == [(name, "empty_mask") for name in changes]
    assert index.dropped[1].detail.startswith("reference_mask shows nobody in the frames")
    assert [row.id for row in index.rows] == ["00000007", "00000010"]


def test_a_target_frame_is_prepared_as_the_reference_is(settings, tiny_folder):
    changes = {
        "00000007": {"target_frame_index": 5},
        "00000008": {"target_frame": "00000008/reference.png"},
    }
    change_rows(settings.manifest, lambda row: row | changes.get(row["id"], {}))
    assert build(settings)
    by_id = {row.id: row.keys for row in read_index(settings).rows}
    targets, references = entries(settings, "target"), entries(settings, "reference")
    assert by_id["00000009"].target is None
    same = by_id["00000008"]
    assert torch.equal(targets[same.target]["latents"], references[same.reference]["latents"])
    frame = targets[by_id["00000007"].target]
    pipeline = ContextAnyonePipeline.from_folder(tiny_folder)
    place = settings.manifest.parent / "00000007"
    expected = pipeline.vae.encode(to_images(read_frames(place / "video.mp4", [5])))
    assert torch.equal(frame["latents"], expected[0].half())
    assert torch.equal(frame["mask"], latent_masks(read_masks(place / "mask", [5])[:, 0]).half())


def test_masks_and_poses_may_begin_with_the_clip(settings):
    """The data pipeline has those of a shot alone, however long the video around it is."""
    place, used = settings.manifest.parent / "00000008", {"start_frame": 1, "target_frame_index": 3}
    change_rows(settings.manifest, lambda row: row | (used if row["id"] == "00000008" else {}))
    assert build(settings)
    whole = next(row.keys for row in read_index(settings).rows if row.id == "00000008")
    points = load_file(place / "pose.safetensors")["keypoints"]
    with safe_open(place / "pose.safetensors", "pt") as file:
        save_file({"keypoints": points[1:].contiguous()}, place / "short.safetensors", file.metadata())
    shutil.copytree(place / "mask", place / "short")
    sorted((place / "short").iterdir())[0].unlink()
    short = {"mask": "00000008/short", "pose": "00000008/short.safetensors", "companions_start": 1}
    change_rows(settings.manifest, lambda row: row | (short if row["id"] == "00000008" else {}))
    assert build(settings)
    found = next(row.keys for row in read_index(settings).rows if row.id == "00000008")
    for kind, keys in (("clip", (whole.clip, found.clip)), ("target", (whole.target, found.target))):
        before, after = (ShardStore(settings.cache / kind).read(key) for key in keys)
        assert keys[0] != keys[1]
        assert all(torch.equal(after[name], before[name]) for name in before)
    change_rows(settings.manifest, lambda row: row | ({"start_frame": 0} if row["id"] == "00000008" else {}))
    assert build(settings)
    assert [drop.detail for drop in read_index(settings).dropped] == ["companions_start is 1; the frame 0 is used too"]


def test_the_command(settings, tmp_path, capsys, tiny_folder, monkeypatch):
    config = tmp_path / "c.yaml"
    data = {"manifest": str(settings.manifest), "cache": str(settings.cache), "encoders": str(tiny_folder)}
    data["buckets"] = settings.buckets.model_dump(mode="json")
    run = {"run": {"name": "small", "steps": 1}, "part": {"name": "manifest", "data": data}}
    config.write_text(json.dumps(run))
    assert main(["--config", str(config)]) == 0
    assert "4  kept" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--config", str(config), "--set", f"part.data.cache={tmp_path / 'other'}"]) == 0
    assert "others are still encoding" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["--config", str(config), "--set", "part.data.buckets.frames=[9]"]) == 2
    said = capsys.readouterr()
    assert "too_short" in said.out
    assert "No row of" in said.err
    assert main(["--config", str(config), "--set", f"part.data.encoders={tmp_path}"]) == 2
    assert "vae.safetensors does not exist" in capsys.readouterr().err


def test_a_cache_without_a_usable_row_is_refused(settings):
    change_rows(settings.manifest, lambda row: row | {"prompt_later": "very " * 80})
    assert build(settings)
    with pytest.raises(InputError, match=r"No row of the split train of .* can be used: run training/cache.py"):
        CachedData(settings)
    held_out = settings.model_copy(update={"split": "val"})
    with pytest.raises(InputError, match="no row of the split val, but 4 of train"):
        build(held_out)


def test_how_many_clips_a_step_takes_is_no_part_of_the_index(settings):
    buckets = settings.buckets.model_copy(update={"budget": 9.0, "max_tokens": 100})
    assert index_path(settings.model_copy(update={"buckets": buckets})) == index_path(settings)


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    store = ShardStore(tmp_path)
    store.write({"a": {"x": torch.ones(2)}})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        store.write({"b": {"x": torch.ones(2)}})
    assert len(list(tmp_path.iterdir())) == 1
    assert list(ShardStore(tmp_path)) == ["a"]


@pytest.mark.parametrize("change", [{"crop": [0, 0, 40, 32]}, {"start_frame": 1}, {"mask": None}, {"fps": 24.0}])
def test_another_use_of_a_video_is_another_entry(settings, change):
    before = {row.id: row.keys for row in read_index(settings).rows}
    change_rows(settings.manifest, lambda row: row | (change if row["id"] == "00000008" else {}))
    builder = CacheBuilder(settings, torch.device("cpu"))
    after = {clip.line.row.id: keys for clip, keys in zip(builder.checked.clips, builder.keys, strict=True)}
    assert {name for name in before if before[name].clip != after[name].clip} == {"00000008"}
    assert before["00000008"].video == after["00000008"].video


def test_an_absent_entry_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="has no entry"):
        ShardStore(tmp_path).read("0" * 32)
