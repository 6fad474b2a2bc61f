"""The transformer trained on a cached manifest: clips of the character world, written out, encoded, learnt from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from cached_world import build, change_rows, settings_for, write_small_world
from processes import assert_worker_has_all_but_networks

from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.weights.checkpoint import load_transformer
from training.config import load_config
from training.data.batches import CachedData
from training.data.shards import ShardStore
from training.export import main as export_main
from training.parts.base import PartContext
from training.parts.manifest import ManifestPart, Settings
from training.train import main
from training.trainable import TrainSettings, trained_names
from training.trainer import build_trainer

NAMES = ["patch_embedding.weight", "blocks.0.cross_attn.q.weight", "blocks.1.cross_attn.k_img.weight", "blocks.1.ffn.0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_folder):
    manifest = write_small_world(tmp_path_factory.mktemp("part") / "world", 5)

    def vary(row):
        if row["id"] == "00000007":
            return row | {"num_frames": 1}
        if row["id"] == "00000008":
            return row | {"mask": None, "pose": None}
        return row | ({"target_frame_index": 5} if row["id"] == "00000009" else {})

    change_rows(manifest, vary)
    settings = settings_for(manifest, tiny_folder)
    assert build(settings)
    return settings


@pytest.fixture
def make(data, tiny_folder):
    def build_part(rank=0, world=1, **changes):
        torch.manual_seed(0)
        init = tiny_folder / "transformer.safetensors"
        return ManifestPart(Settings(data=data, **changes), PartContext(3, torch.device("cpu"), init, rank, world))

    return build_part


def steps_of(part):
    return range(part.sampler.steps_per_epoch)


def clip_batch(part):
    return next(b for step in steps_of(part) if (b := part.batch(step))["latents"].shape[2] == 2)


def loss_of(part, batch, seed=1):
    return part.loss(batch, 0, torch.Generator().manual_seed(seed))


def test_an_epoch_sees_every_row_and_every_batch_has_one_shape(make):
    part = make()
    batches = [part.batch(step) for step in steps_of(part)]
    assert {name for batch in batches for name in batch["ids"]} == {f"{n:08d}" for n in range(7, 12)}
    for batch in batches:
        count = len(batch["ids"])
        assert batch["latents"].shape[1:] in [(16, 2, 4, 6), (16, 1, 4, 6)]
        assert batch["video_text"].shape == (count, 64, 32)
        assert batch["image_embeds"].shape[0] == count
    stills = [batch for batch in batches if batch["latents"].shape[2] == 1]
    assert {name for batch in stills for name in batch["ids"]} == {"00000007"}
    assert len(stills[0]["ids"]) >= 2


def test_workers_get_the_cache_and_no_network(make):
    assert_worker_has_all_but_networks(make())


def test_the_masks_and_targets_of_rows_with_and_without(make):
    part = make()
    by_id = {row.id: number for number, row in enumerate(part.data.rows)}
    batch = part.data.batch([by_id[f"{n:08d}"] for n in (8, 9, 10)], 64)
    assert batch["masks"][0].eq(1).all()
    assert not batch["masks"][1].eq(1).all()
    first = batch["latents"][:, :, :1]
    assert torch.equal(batch["target_latents"][0], first[0])
    assert not torch.equal(batch["target_latents"][1], first[1])
    assert torch.equal(batch["target_latents"][2], first[2])


def test_two_processes_share_a_step(make):
    alone, ranks = make(), [make(rank, 2) for rank in range(2)]
    for step in steps_of(alone):
        parts = [rank.batch(step) for rank in ranks]
        assert len({part["latents"].shape for part in parts}) == 1
        assert sorted(parts[0]["ids"] + parts[1]["ids"]) == sorted(alone.batch(step)["ids"])


def test_the_loss_reaches_every_parameter(make):
    part = make(drop_reference=0.0, drop_text=0.0)
    loss, metrics = loss_of(part, clip_batch(part))
    assert loss.ndim == 1
    assert {"video", "reference"} <= set(metrics)
    loss.mean().backward()
    assert [name for name, p in part.transformer.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("background", "counts"), [(0.0, False), (0.001, True), (1.0, True)])
def test_the_loss_is_masked_frame_by_frame(make, background, counts):
    part = make(background_weight=background, drop_reference=0.999, drop_text=0.0)
    batch = clip_batch(part)
    batch["masks"] = torch.zeros_like(batch["masks"])
    batch["masks"][:, :, 1, 0, 0] = 1  # the person is in the second group of frames only
    with torch.no_grad():
        whole, _ = loss_of(part, batch)
        head = part.transformer.head.register_forward_hook(outside_of_the_person(batch["latents"].shape))
        moved, _ = loss_of(part, batch)
        head.remove()
    assert bool((whole != moved).any()) is counts


def outside_of_the_person(shape):
    """A hook that changes every patch of the head's output but the one that the person is in."""
    patches = shape[3] * shape[4] // 4

    def hook(module, inputs, output):
        changed = output + 1.0
        changed[:, patches] = output[:, patches]  # the first patch of the second latent frame
        return changed

    return hook


def test_a_weight_of_one_is_the_plain_loss(make):
    plain, weighted = make(background_weight=1.0), make(background_weight=1.0)
    batch = clip_batch(plain)
    other = batch | {"masks": torch.zeros_like(batch["masks"]), "target_masks": torch.zeros_like(batch["target_masks"])}
    assert torch.equal(loss_of(plain, batch)[0], loss_of(weighted, other)[0])


def test_dropped_text_reads_the_empty_prompt(make):
    part = make(drop_text=0.999, drop_reference=0.999)
    batch = clip_batch(part)
    empty = part.empty_text.half().expand_as(batch["video_text"])
    assert not torch.equal(batch["video_text"], empty)
    other = make(drop_text=0.0, drop_reference=0.999)
    assert torch.equal(loss_of(part, batch)[0], loss_of(other, batch | {"video_text": empty})[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, NAMES),
        ({"only": ["blocks.*"]}, NAMES[1:]),
        ({"only": ["blocks.*.cross_attn.*"]}, NAMES[1:3]),
        ({"only": ["blocks.*"], "freeze": ["blocks.0.*"]}, NAMES[2:]),
        ({"freeze": ["*_img.*", "*.ffn.*"]}, NAMES[:2]),
    ],
)
def test_patterns_choose_what_is_trained(settings, expected):
    assert trained_names(NAMES, TrainSettings(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"only": ["blocks.*.cros_attn.*"]},
            r"part.train.only has the pattern blocks.\*.cros_attn.\*, .* one is blocks",
        ),
        ({"freeze": ["head"]}, "part.train.freeze has the pattern head"),
        ({"only": ["blocks.*"], "freeze": ["*"]}, "leaves nothing to train"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        trained_names(NAMES, TrainSettings(**settings))


def config_of(data, folder, tiny_folder, **part):
    settings = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1} | part
    run = {"name": "small", "out": str(folder / "run"), "steps": 4, "save_every": 2, "sample_every": 4, "workers": 1}
    init = {"from": str(tiny_folder / "transformer.safetensors")}
    path = folder / "c.yaml"
    path.write_text(json.dumps({"run": run, "part": settings, "init": init, "optim": {"warmup_steps": 0}}))
    return path


def test_a_run_trains_what_it_should_and_nothing_else(data, tmp_path, tiny_folder):
    train = {"only": ["blocks.*.cross_attn.*"], "freeze": ["*_img.*"]}
    config = config_of(data, tmp_path, tiny_folder, train=train, background_weight=0.001)
    assert main(["--config", str(config)]) == 0
    run = tmp_path / "run"
    assert len((run / "log.jsonl").read_text().splitlines()) == 4
    samples = sorted(path.name for path in (run / "samples" / "step-00000004").iterdir())
    assert samples == ["000.png", "001.mp4"]
    before = load_transformer(tiny_folder / "transformer.safetensors", dtype=torch.float32).state_dict()
    after = load_transformer(run / "export" / "transformer.safetensors", dtype=torch.float32).state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].half().float())}
    assert moved
    assert all(".cross_attn." in name and "_img." not in name for name in moved)
    assert export_main([str(run), "--out", str(tmp_path / "out")]) == 0


def test_held_out_rows_are_opened_before_the_first_step_and_kept(data, tmp_path, tiny_folder, capsys, monkeypatch):
    manifest = tmp_path / "data" / "world" / "manifest.jsonl"
    shutil.copytree(data.manifest.parent, manifest.parent)
    shutil.copytree(data.cache, manifest.parents[1] / "cache")
    change_rows(manifest, lambda row: row | ({"split": "val"} if row["id"] == "00000011" else {}))
    held_out = settings_for(manifest, tiny_folder, split="val")
    assert build(held_out.model_copy(update={"split": "train"}))
    config = str(config_of(held_out.model_copy(update={"split": "train"}), tmp_path, tiny_folder))
    asked = ["--config", config, "--set", "run.steps=2", "run.validate_every=1"]
    assert main(asked) == 2
    assert "and --set part.data.split=val." in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert build(held_out)
    whole = ManifestPart.validation_loss

    def edit(self, *given):
        manifest.write_text("{}")
        return whole(self, *given)

    monkeypatch.setattr(ManifestPart, "validation_loss", edit)
    assert main(asked) == 0
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 2


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path, tiny_folder):
    found = []
    for name, starts in (("straight", [[]]), ("halves", [["run.steps=2"], ["run.workers=0"]])):
        folder = tmp_path / name
        folder.mkdir()
        config = str(config_of(data, folder, tiny_folder))
        for changes in starts:
            assert main(["--config", config, "--set", "optim.schedule=constant", *changes]) == 0
        exported = load_transformer(folder / "run/export/transformer.safetensors", dtype=torch.float32)
        found.append(exported.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_run_does_not_go_on_with_other_data(data, tmp_path, tiny_folder, capsys):
    manifest = tmp_path / "data" / "world" / "manifest.jsonl"
    shutil.copytree(data.manifest.parent, manifest.parent)
    shutil.copytree(data.cache, manifest.parents[1] / "cache")
    moved = settings_for(manifest, tiny_folder)
    config = str(config_of(moved, tmp_path, tiny_folder))
    assert main(["--config", config, "--set", "run.steps=1"]) == 0
    record = json.loads((tmp_path / "run" / "export" / "record.json").read_text())
    assert (tmp_path / "run" / "data.sha256").read_text().strip() == record["data_hash"]
    change_rows(manifest, lambda row: row | {"prompt_later": "Dancing."})
    assert build(moved)
    described = (tmp_path / "run" / "config.yaml").read_text()
    assert main(["--config", config]) == 2
    assert "holds a run on other data" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == described


@pytest.mark.parametrize("kind", ["reference", "text"])
def test_rows_that_the_disk_does_not_give_are_skipped_and_named(make, monkeypatch, caplog, kind):
    part = make()
    step = next(step for step in steps_of(part) if part.batch(step)["latents"].shape[2] == 2)
    whole = part.batch(step)["ids"]
    keys = part.data.rows[part.sampler.rows(step)[0]].keys
    monkeypatch.delitem(part.data._stores[kind]._places, keys.reference if kind == "reference" else keys.first)
    batch = part.batch(step)
    assert batch["unreadable"] == whole[:1]
    assert batch["ids"] == whole[1:]
    assert f"The row {whole[0]} is skipped" in caplog.text
    assert len(loss_of(part, batch)[0]) == len(whole) - 1


def test_another_row_of_the_bucket_stands_in_where_nothing_of_a_batch_is_left(make, monkeypatch):
    part = make()
    clips = [number for number, row in enumerate(part.data.rows) if row.bucket.num_frames > 1]
    lost, next_lost, following = clips[-1], clips[0], clips[1]
    places = part.data._stores["clip"]._places
    for number in (lost, next_lost):
        monkeypatch.delitem(places, part.data.rows[number].keys.clip)
    batch = part.data.batch([lost], 64)
    assert batch["ids"] == [part.data.rows[following].id]
    assert batch["unreadable"] == [part.data.rows[lost].id]
    assert batch["latents"].shape[2] == 2
    monkeypatch.setattr(part.data._stores["clip"], "_places", {})
    with pytest.raises(CheckpointError, match=r"No row of the bucket 48x32x5 can be read .* run training/cache\.py"):
        part.data.batch([lost], 64)


def test_validation_leaves_out_and_samples_replace_what_the_disk_does_not_give(
    make, data, monkeypatch, tmp_path, caplog
):
    part = make(sample_steps=1, sample_clips=2)
    part.held_out = CachedData(data)
    whole = [batch["ids"] for batch in part.validation_batches()]
    for store, number in ((part.held_out, 0), (part.data, 1)):
        monkeypatch.delitem(store._stores["clip"]._places, store.rows[number].keys.clip)
    lost, *rest = part.validation_batches()
    assert lost is None  # so that every process sees as many, and the others keep their noise
    assert [batch["ids"] for batch in rest] == whole[1:]
    assert f"The row {whole[0][0]} is skipped" in caplog.text
    with torch.no_grad():
        part.sample(1, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "001.mp4"]
    assert read_metadata(tmp_path / "001.mp4")["id"] == part.data.rows[2].id
    monkeypatch.setattr(part.held_out._stores["clip"], "_places", {})
    assert list(part.validation_batches()) == [None] * 5


def test_a_run_starts_where_its_first_row_is_lost(make, monkeypatch):
    read = ShardStore.read
    lost = make().data.rows[0].keys.reference

    def without(store, key):
        if key == lost:
            raise CheckpointError("It is gone.")
        return read(store, key)

    monkeypatch.setattr(ShardStore, "read", without)
    assert make().data.image_embeds_shape() == (5, 24)


def test_the_log_counts_the_rows_that_could_not_be_read(data, tmp_path, tiny_folder):
    config = load_config(config_of(data, tmp_path, tiny_folder, train={"only": ["head.*"]}), ["optim.accumulate=3"])
    trainer = build_trainer(config, None)
    batch = trainer.part.batch(0)
    assert "unreadable" not in trainer.step(batch, batch, batch)
    assert trainer.step(batch | {"unreadable": ["a", "b"]}, batch, batch | {"unreadable": ["c"]})["unreadable"] == 3


def test_another_length_of_texts_and_prompts_beyond_it_are_refused_at_the_start(make):
    part = make()
    longest = part.data.longest_text()
    keys = {key for row in part.data.rows for key in (row.keys.first, row.keys.video)}
    assert longest == max(len(part.data._stores["text"].read(key)["text_embeds"]) for key in keys)
    part.config = replace(part.config, text_len=65)
    with pytest.raises(CheckpointError, match="text_len of the cache is 64, the transformer needs 65: put"):
        part._check_fit()
    part.data.index = replace(part.data.index, text_len=0)  # of an older version, which states none
    part.config = replace(part.config, text_len=longest - 1)
    with pytest.raises(CheckpointError, match=rf"has {longest} tokens, the transformer reads {longest - 1}: shorten"):
        part._check_fit()


def test_the_first_process_alone_shows_the_buckets(make, caplog):
    caplog.set_level("INFO")
    for rank, said in ((1, 0), (0, 2)):
        caplog.clear()
        make(rank, 4)
        assert sum("rows, 0 dropped" in text or "buckets.budget is" in text for text in caplog.messages) == said


def test_a_step_that_is_not_finite_names_its_samples(data, tmp_path, tiny_folder):
    train = {"only": ["head.*"]}
    config = config_of(data, tmp_path, tiny_folder, train=train)
    trainer = build_trainer(load_config(config), None)
    batch = trainer.part.batch(0)
    batch["latents"] = torch.full_like(batch["latents"], torch.inf)
    record = trainer.step(batch)
    assert record["skipped"]
    assert record["ids"] == batch["ids"]


def test_what_does_not_belong_together_is_refused(data, make, tmp_path):
    with pytest.raises(InputError, match="is not cached"):
        ManifestPart(Settings(data=data.model_copy(update={"cache": tmp_path})), PartContext(3, torch.device("cpu")))
    part = make()
    part.config = replace(part.config, latents_mean=(0.5,) * 16)
    with pytest.raises(CheckpointError, match="latents_mean of the cache's VAE"):
        part._check_fit()


def test_without_a_clip_tower_there_are_no_clip_tokens(data, tmp_path, tiny_folder):
    encoders = tmp_path / "encoders"
    encoders.mkdir()
    for name in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{name}.safetensors", encoders)
    plain = data.model_copy(update={"cache": tmp_path / "cache", "encoders": encoders})
    assert build(plain)
    fresh = PartContext(3, torch.device("cpu"))
    part = ManifestPart(Settings(data=plain, model="miniature", drop_reference=0.0), fresh)
    assert part.config.image_dim is None
    assert "image_embeds" not in part.batch(0)
    assert torch.isfinite(loss_of(part, part.batch(0))[0]).all()
    with pytest.raises(CheckpointError, match=r"None, .* needs 24: put the image_encoder\.safetensors .* into .*ders"):
        ManifestPart(Settings(data=plain), replace(fresh, init_from=tiny_folder / "transformer.safetensors"))


def test_a_fresh_network_takes_its_widths_from_the_cache(data):
    part = ManifestPart(Settings(data=data, model="miniature"), PartContext(3, torch.device("cpu")))
    assert (part.config.text_dim, part.config.text_len, part.config.image_dim) == (32, 64, 24)
    assert part.config.latents_mean == part.data.index.latents_mean
