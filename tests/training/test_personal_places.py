"""A person in other places: prompts drawn anew for each sample, and regions in training as in generation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cached_world import build, change_rows, settings_for, write_small_world
from plain_files import write_backbone, write_encoders
from pydantic import ValidationError

from contextanyone_core.encoders.text import read_tokenizer
from contextanyone_core.model.regions import Regions
from contextanyone_core.pose.drawing import FULL_SIZE
from contextanyone_core.pose.hull import person_hull
from contextanyone_core.prompts import rows_naming
from training.config import load_config
from training.data.cache import data_hash, read_index
from training.data.named import hull_of, named_rows
from training.data.world_poses import world_poses
from training.parts.manifest import Settings
from training.parts.objective import loss_terms
from training.personal.presets import PRESETS
from training.trainer import build_trainer

ZUV = {"name": "zuv", "class": "woman", "caption": "A zuv woman"}
LORA = {"rank": 2, "alpha": 2, "targets": ["blocks.*.cross_attn.*"], "full": [], "merged": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_folder):
    encoders = write_encoders(tmp_path_factory.mktemp("encoders"), tiny_folder)
    manifest = write_small_world(tmp_path_factory.mktemp("places") / "world", 4)
    change_rows(manifest, lambda row: row | {"prompt_first": "A zuv woman.", "prompt_later": "She waves."})
    settings = settings_for(manifest, encoders, poses="full", prior_class="woman", elsewhere="A zuv woman")
    assert build(settings)
    return settings


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone") / "control.safetensors", control=True)


@pytest.fixture
def part_of(data, backbone, tmp_path):
    def make(**changes):
        part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "anchor": "none", "drop_text": 0.0}
        part |= {"train": {"lora": LORA}, "personal": ZUV, "drop_start": 1.0} | changes
        run = {"name": "zuv", "out": str(tmp_path / "run"), "steps": 4, "workers": 0, "trackers": []}
        path = tmp_path / "c.yaml"
        path.write_text(json.dumps({"run": run, "part": part, "init": {"from": str(backbone)}}))
        part = build_trainer(load_config(path), None).part
        with torch.no_grad():
            for name, parameter in part.transformer.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        return part

    return make


def generator():
    return torch.Generator().manual_seed(3)


def test_the_person_is_asked_for_in_the_places_of_the_class(data):
    class_prompts, named = data.prior_prompts(), data.elsewhere_prompts()
    assert len(named) == 50
    assert [prompt.replace("A zuv woman", "A woman") for prompt in named] == class_prompts
    assert len(read_index(data).elsewhere) == 50
    other = data.model_copy(update={"elsewhere": "A vok woman"})
    assert build(other)
    assert data_hash(read_index(other)) != data_hash(read_index(data))


def test_fewer_places_are_the_first_of_the_list(data):
    few = data.model_copy(update={"places": 25, "prior_captions": ("",)})
    assert few.elsewhere_prompts() == data.elsewhere_prompts()[:25]
    assert few.prior_prompts() == [*data.prior_prompts()[:25], ""]


def test_a_share_of_the_captions_is_replaced_and_nothing_else(part_of):
    part = part_of(elsewhere=0.5)
    batch = part.batch(0)
    many = batch | {name: torch.cat([batch[name]] * 400) for name in ("video_text", "latents")}
    many["named"] = batch["named"] * 400
    found = part.prompts.in_other_places(many, generator())
    changed = (found["video_text"] != many["video_text"].float()).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    texts = {row.numpy().tobytes() for row in part.prompts.elsewhere}
    drawn = {row.numpy().tobytes() for row in found["video_text"][changed]}
    assert drawn <= texts
    assert len(drawn) > 40
    assert found["latents"] is many["latents"]
    assert part_of().prompts.in_other_places(batch, generator()) is batch


@pytest.mark.parametrize("regions", ["none", "mask"])
def test_rows_of_somebody_else_keep_their_captions(part_of, regions):
    part = part_of(elsewhere=1.0, regions=regions)
    batch = part.batch(0)
    others = batch | {"named": [(), *batch["named"][1:]]}
    found = part.prompts.in_other_places(others, generator())
    assert torch.equal(found["video_text"][0], batch["video_text"][0].float())
    changed = (found["video_text"] != batch["video_text"].float()).flatten(1).any(1)
    assert changed.tolist() == [False] + [True] * (len(changed) - 1)
    assert found["places"][0] == -1


def test_the_prior_beside_asks_for_the_same_places_without_the_name(part_of):
    alone, beside = part_of(elsewhere=1.0), part_of(elsewhere=1.0, prior_beside=0.5, prior_weight=2.0)
    one, terms = alone.loss(alone.batch(0), 0, generator())
    both, more = beside.loss(beside.batch(0), 0, generator())
    assert set(more) - set(terms) == {"prior"}
    assert len(more["prior"]) == -(-len(one) // 2)
    torch.testing.assert_close(both, one + 2.0 * more["prior"].mean())
    batch = beside.prompts.in_other_places(beside.batch(0), generator())
    clips = beside.encoded(batch)
    drawn = clips, beside.draws(clips, 0, generator())
    there = beside._prior_beside(batch, drawn, generator())[0]
    other = beside._prior_beside(batch | {"places": batch["places"] - 1}, drawn, generator())[0]
    assert not torch.equal(there, other)


@pytest.mark.parametrize(("regions", "share"), [("mask", "masks"), ("pose", "hulls")])
def test_regions_say_where_the_person_is_and_which_tokens_name_them(part_of, data, regions, share):
    part = part_of(regions=regions)
    batch = part.batch(0)
    found = part.encoded(batch).regions
    torch.testing.assert_close(found.person, batch[share].float())
    tokenizer, _ = read_tokenizer(data.encoders / "text_encoder.safetensors")
    rows = rows_naming(tokenizer.split("A zuv woman. She waves."), "zuv", "woman")
    assert rows
    assert found.named == (rows,) * len(batch["ids"])


def test_prompts_of_other_places_bring_their_own_tokens(part_of, data):
    part = part_of(elsewhere=1.0, regions="mask")
    batch = part.batch(0)
    found = part.prompts.in_other_places(batch, generator())
    named = named_rows(data, "zuv", "woman")
    for text, rows in zip(found["video_text"], found["named"], strict=True):
        place = next(index for index, one in enumerate(part.prompts.elsewhere) if torch.equal(one, text))
        assert rows == named.elsewhere[place]


def test_the_hull_of_a_cached_pose_is_that_of_generation():
    rng = np.random.default_rng(1)
    keypoints = rng.uniform(8, 40, (5, 14, 2)).astype(np.float32)
    points = torch.from_numpy(np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1))
    wanted = person_hull(world_poses(keypoints, (48, 32)), FULL_SIZE)
    np.testing.assert_array_equal(hull_of(points, (48, 32), "full")[0].numpy(), wanted)


def test_the_background_does_not_read_the_name_and_without_its_pose_a_sample_reads_all(part_of):
    plain, guided = part_of(), part_of(regions="pose")

    def terms(part, keep_pose):
        clips = part.encoded(part.batch(0))
        draws = part.draws(clips, 0, generator())
        keep = torch.full_like(draws.condition.keep_pose, keep_pose)
        draws = replace(draws, condition=replace(draws.condition, keep_pose=keep))
        return loss_terms(part.transformer, part.settings, clips, draws, part.texts(part.batch(0), draws)).video

    torch.testing.assert_close(terms(plain, False), terms(guided, False))
    assert not torch.allclose(terms(plain, True), terms(guided, True))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_trains_with_regions_as_clips_are_generated(preset):
    assert load_config(preset.config, preset.changes).part.regions in ("mask", "pose")


@pytest.mark.parametrize("regions", ["mask", "pose"])
def test_samples_of_a_run_are_generated_as_it_conditions(part_of, regions):
    plain, guided = part_of(), part_of(regions=regions)
    rows = (guided.data.rows[0].bucket, guided.data.row(0, guided.config.text_len))
    seen, inner = [], guided.transformer.forward

    def note(*given, **named):
        seen.append(named["condition"].regions)
        return inner(*given, **named)

    guided.transformer.forward = note
    found = guided._generate(rows[1], rows[0])
    with_prompt = [one for one in seen if one is not None]
    assert len(with_prompt) == len(seen) / 2, "the negative prompt names nobody"
    wanted = guided.encoded(guided._named(rows[1], guided.prompts.named)).regions
    for one in with_prompt:
        torch.testing.assert_close(one.person.float(), wanted.person)
        assert one.named == wanted.named
    assert not torch.equal(found, plain._generate(rows[1], rows[0]))


def test_where_nothing_is_known_a_video_is_all_person():
    regions = Regions(torch.zeros(1, 1, 2, 3, 3), ((1,),)).keep_masks(torch.tensor([True, False]))
    assert regions.person.shape == (2, 1, 2, 3, 3)
    assert not regions.person[0].any()
    assert regions.person[1].eq(1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elsewhere": 0.5}, "part.elsewhere needs part.data.elsewhere"),
        ({"regions": "mask"}, "part.regions needs part.personal"),
        ({"regions": "pose", "personal": ZUV, "train": {"lora": LORA}}, "part.regions: pose needs part.data.poses"),
    ],
)
def test_what_is_missing_is_one_line(data, changes, message):
    plain = data.model_copy(update={"elsewhere": None, "poses": None})
    with pytest.raises(ValidationError, match=message):
        Settings(data=plain, **changes)
