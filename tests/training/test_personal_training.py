"""The settings of a personal model: two stages, the prior, no anchor, a dilated mask, plain backbones, the header."""

import json

import numpy as np
import pytest
import torch
from cached_world import build, change_rows, settings_for, write_small_world
from plain_files import write_backbone, write_encoders
from pydantic import ValidationError
from safetensors.torch import load_file

from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.lora import load_lora
from contextanyone_core.weights.personal_file import read_personal_file
from training.config import OptimSettings, load_config
from training.data.batches import CachedData
from training.data.cache import data_hash, read_index
from training.data.frames import dilated
from training.files import file_sha256
from training.loop import _warn_of_stages
from training.optim import learning_rate
from training.parts.manifest import Settings
from training.personal.presets import PRESETS
from training.planning.plan import plan_run
from training.train import main
from training.trainer import build_trainer

LORA = {"rank": 2, "alpha": 2, "targets": ["blocks.*.cross_attn.q", "blocks.*.cross_attn.v"], "full": []}
ZUV = {"name": "zuv", "class": "woman", "caption": "A zuv woman", "consent": "her own", "license": "CC0"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tiny_folder):
    return write_encoders(tmp_path_factory.mktemp("encoders"), tiny_folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory, encoders):
    manifest = write_small_world(tmp_path_factory.mktemp("personal") / "world", 5)
    change_rows(manifest, lambda row: row | ({"num_frames": 1} if row["id"] in ("00000007", "00000009") else {}))
    settings = settings_for(manifest, encoders, poses="full", prior_class="woman")
    assert build(settings)
    return settings


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {
        name: write_backbone(folder / f"{name}.safetensors", control=name == "Wan2.1-Fun-Control")
        for name in ("Wan2.1-T2V", "Wan2.1-Fun-Control")
    }


@pytest.fixture
def config(data, backbones, tmp_path):
    def write(backbone="Wan2.1-Fun-Control", **changes):
        part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1, "anchor": "none"}
        part |= {"train": {"lora": LORA | {"merged": False}}, "personal": ZUV} | changes
        run = {"name": "zuv", "out": str(tmp_path / "run"), "steps": 4, "save_every": 2, "workers": 0, "trackers": []}
        optim = {"lr": 0.05, "warmup_steps": 0, "schedule": "constant"}
        path = tmp_path / "c.yaml"
        init = {"from": str(backbones[backbone])}
        path.write_text(json.dumps({"run": run, "part": part, "optim": optim, "init": init}))
        return path

    return write


def trainer_of(path, *changes):
    return build_trainer(load_config(path, changes), None)


def frames_of(trainer, step):
    return trainer.part.batch(step)["latents"].shape[2]


def test_pictures_come_before_a_step_and_clips_from_it_on(config):
    trainer = trainer_of(config(stills_steps=3))
    assert [frames_of(trainer, step) for step in range(7)] == [1, 1, 1, 2, 2, 2, 2]
    clips = {name for step in range(3, 6) for name in trainer.part.batch(step)["ids"]}
    assert clips == {"00000008", "00000010", "00000011"}  # every row of the second stage from its first epoch on


def test_a_stage_is_counted_in_steps_where_a_step_takes_several_batches(config):
    trainer = trainer_of(config(stills_steps=2), "optim.accumulate=3")
    assert [frames_of(trainer, number) for number in range(9)] == [1, 1, 1, 1, 1, 1, 2, 2, 2]


def test_a_stage_without_rows_is_one_line(config, data, capsys, tmp_path):
    rows = [line for line in data.manifest.read_text().splitlines() if '"num_frames":1' in line]
    manifest = data.manifest.with_name("stills.jsonl")
    manifest.write_text("\n".join(rows) + "\n")
    assert build(data.model_copy(update={"manifest": manifest}))
    assert main(["--config", str(config(stills_steps=2)), "--set", f"part.data.manifest={manifest}"]) == 2
    said = capsys.readouterr().err
    assert "no row of more than one frame can be used" in said
    assert "Traceback" not in said


def test_the_rate_changes_at_its_step():
    settings = OptimSettings(lr=0.1, warmup_steps=2, schedule="constant", lr_factors={4: 0.3, 6: 0.1})
    assert [round(learning_rate(settings, step, 8), 4) for step in range(8)] == [
        0.05, 0.1, 0.1, 0.1, 0.03, 0.03, 0.01, 0.01,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("paper", [], ""),
        ("miniature", [], ""),
        ("paper", ["part.stills_steps=null"], ""),
        ("paper", ["part.stills_steps=300", "optim.lr_factors={300: 0.3}"], ""),
        (
            "paper",
            ["part.stills_steps=300"],
            "300 and optim.lr_factors {600: 0.3}: pictures end at 1 of optim.lr, clips",
        ),
        ("paper", ["part.stills_steps=700"], "700 and optim.lr_factors {600: 0.3}: pictures end at 0.3 of optim.lr, c"),
        ("miniature", ["part.stills_steps=50"], "50 and optim.lr_factors {}: pictures end at 0.9 of optim.lr, clips"),
        ("miniature", ["run.steps=400"], "170 and optim.lr_factors {}: pictures end at 0.66 of optim.lr, clips begin"),
    ],
)
def test_clips_that_begin_at_the_rate_of_pictures_are_a_warning(preset, changes, said, caplog):
    _warn_of_stages(load_config(PRESETS[preset].config, [*PRESETS[preset].changes, *changes]))
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


def test_a_mask_grows_on_all_sides_frame_by_frame():
    mask = torch.zeros(1, 1, 2, 7, 7)
    mask[0, 0, 0, 3, 3] = 1
    grown = dilated(mask, 2)
    assert grown[0, 0, 0].sum() == 25
    assert not grown[0, 0, 1].any()
    assert torch.equal(dilated(mask, 0), mask)


def test_the_weights_of_the_loss_are_alpha_squared_outside_the_grown_mask(config):
    part = trainer_of(config(background_weight=1e-6, dilate_mask=1)).part
    mask = torch.zeros(1, 1, 1, 4, 6)
    mask[..., 1, 1] = 1
    weights = part._weights(mask)
    assert weights[0, 0, 0, :3, :3].eq(1).all()
    torch.testing.assert_close(weights[0, 0, 0, 3], torch.full((6,), 1e-6))


def test_the_prior_is_zero_at_first_and_pulls_back_to_the_network_without_the_lora(config):
    part = trainer_of(config(prior=0.999)).part
    batch, generator = part.batch(0), lambda: torch.Generator().manual_seed(3)
    loss, metrics = part.loss(batch, 0, generator())
    assert set(metrics) == {"prior"}
    assert not loss.any()
    with torch.no_grad():
        for name, parameter in part.transformer.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = part.loss(batch, 0, generator())
    moved, _ = part.loss(batch, 0, generator())
    assert (moved > 0).all()
    torch.testing.assert_close(low, moved, rtol=0.1, atol=0)
    moved.mean().backward()
    having = {name for name, p in part.transformer.named_parameters() if p.grad is not None and p.grad.any()}
    assert having
    assert all(".lora_" in name for name in having)
    trained = {name for name, p in part.transformer.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in part.transformer.named_parameters() if ".lora_" in name}


def test_the_prior_takes_its_share_of_the_steps_and_the_classs_prompts(config, data):
    part = trainer_of(config(prior=0.25)).part
    drawn = [set(part.loss(part.batch(0), step, torch.Generator().manual_seed(step))[1]) for step in range(24)]
    share = sum(metrics == {"prior"} for metrics in drawn)
    assert 2 <= share <= 11
    assert part.prompts.prior.shape == (50, 512, 32)
    assert len({row.numpy().tobytes() for row in part.prompts.prior}) == 50
    assert data.prior_prompts()[0] == "A woman at the beach in daylight."


def test_the_priors_loss_has_its_weight(config):
    losses = []
    for weight in (1.0, 4.0):
        part = trainer_of(config(prior=0.999, prior_weight=weight)).part
        with torch.no_grad():
            for name, parameter in part.transformer.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.1)
        losses.append(part.loss(part.batch(0), 0, torch.Generator().manual_seed(3))[0])
    assert (losses[0] > 0).all()
    torch.testing.assert_close(losses[1], 4 * losses[0])


def test_half_of_the_prior_are_captions_without_the_name(config, data):
    settings = data.model_copy(update={"prior_captions": ("A woman.", "A woman waves.")})
    assert build(settings)
    part = trainer_of(config(prior=0.25, data=json.loads(settings.model_dump_json()))).part
    assert part.prompts.prior.shape[0] == 52
    drawn = part.prompts.of_class(400, torch.Generator().manual_seed(1))
    own = sum(any(torch.equal(row, caption) for caption in part.prompts.prior[50:]) for row in drawn)
    assert 150 < own < 250


def test_the_class_is_part_of_the_datas_hash(data):
    index = read_index(data)
    other = data.model_copy(update={"prior_class": "ape"})
    assert other.prior_prompts()[0] == "An ape at the beach in daylight."
    assert build(other)
    assert data_hash(read_index(other)) != data_hash(index)
    plain = data.model_copy(update={"prior_class": None})
    assert build(plain)
    assert read_index(plain).prior == ()
    assert CachedData(plain).longest_text() <= CachedData(data).longest_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"prior": 0.2},
        {"prior": 0.2, "train": {"lora": {"rank": 2}}},
        {"personal": ZUV},
        {"personal": ZUV | {"strength": 0.7}, "train": {"lora": {"rank": 2}}},
    ],
)
def test_a_prior_needs_a_lora_alone_and_a_header_a_lora(data, changes):
    with pytest.raises(ValidationError, match="lora"):
        Settings(data=data, **changes)


@pytest.mark.parametrize("backbone", ["Wan2.1-T2V", "Wan2.1-Fun-Control"])
def test_published_backbones_train_as_they_are_and_give_a_personal_file(config, backbones, backbone, tmp_path):
    changes = {"stills_steps": 2, "prior": 0.25, "background_weight": 1e-6, "dilate_mask": 1, "drop_start": 1.0}
    data = json.loads(config().read_text())["part"]["data"]
    if backbone == "Wan2.1-T2V":
        changes["data"] = data | {"poses": None}
        assert build(Settings(data=changes["data"]).data)
    assert main(["--config", str(config(backbone, **changes)), "--set", "run.threads=1"]) == 0
    export = tmp_path / "run" / "export"
    assert sorted(path.name for path in export.iterdir()) == ["lora.safetensors", "record.json"]
    found = read_personal_file(export / "lora.safetensors")
    assert (found.trigger, found.consent, found.license) == ("zuv woman", "her own", "CC0")
    assert found.base_hash == file_sha256(backbones[backbone])
    assert found.body is None
    names = set(load_file(export / "lora.safetensors"))
    kinds = ("lora_A.weight", "lora_B.weight", "alpha")
    assert names == {
        f"diffusion_model.blocks.{n}.cross_attn.{layer}.{kind}" for n in (0, 1) for layer in "qv" for kind in kinds
    }
    lora = load_lora(export / "lora.safetensors", load_transformer(backbones[backbone], plain=True))
    assert lora.unknown == []
    assert all(update.up.abs().max() > 0 for update in lora.updates.values())


def test_no_reference_enters_without_an_anchor(config):
    part = trainer_of(config()).part
    batch = part.batch(0)
    losses = []
    for change in (0.0, 5.0):
        changed = batch | {name: batch[name] + change for name in ("reference_latents", "image_embeds", "first_text")}
        losses.append(part.loss(changed, 0, torch.Generator().manual_seed(2)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert "reference" not in losses[0][1]
    assert "video" in part.validation_loss(batch, 0.5, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("preset", PRESETS)
def test_beside_a_reference_the_person_is_without_it_in_three_of_ten_batches(preset):
    path, changes = PRESETS[preset].config, PRESETS[preset].changes
    shares = {
        anchor: load_config(path, [*changes, f"part.anchor={anchor}"]).part.drop_reference
        for anchor in ("none", "reference")
    }
    assert shares == {"none": 0.15, "reference": 0.3}  # without a reference the draws of a run stay as they were
    assert load_config(path, ["part.anchor=reference", "part.drop_reference=0.2"]).part.drop_reference == 0.2
    nobody = ["part.anchor=reference", "part.personal=null", "part.regions=none"]
    assert load_config(path, nobody).part.drop_reference == 0.15


def test_a_plan_counts_no_reference_without_an_anchor(config):
    path = config()
    alone = plan_run(load_config(path))
    assert alone.shape.clip_tokens == 0
    assert {bucket.references for bucket in alone.buckets.rows} == {0}
    assert sum(alone.trained().values()) == 2 * 2 * 2 * (128 + 128)
    assert np.isfinite(alone.cost.peak)
