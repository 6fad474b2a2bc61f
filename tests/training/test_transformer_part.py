"""The transformer's part, on the tiny stack."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import assert_worker_has_all_but_networks
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import frames_to_images, picture_to_images
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.model.transformer import ContextAnyoneTransformer, InContextReferences
from contextanyone_core.model_specs import MODELS
from contextanyone_core.pose.drawing import MINIATURE, draw_poses
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from training.data import pool as pool_module
from training.data.frames import on_white
from training.data.pool import PoolKey
from training.data.world_poses import world_poses
from training.parts.base import PartContext
from training.parts.objective import draw, dual_guidance_step, fixed_draws
from training.parts.transformer import Settings, TransformerPart
from training.parts.transformer_base import compile_for_buckets, explicit_attention, starting_network
from training.world import TEST_SEED_START, posed_sample, sample


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pool_module, "_SHARD", 2)


@pytest.fixture
def part(tiny_folder, tmp_path):
    torch.manual_seed(0)
    small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1}
    settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small)
    init = tiny_folder / "transformer.safetensors"
    return TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))


def _short(batch):
    """The batch with captions that fit the tiny text encoder."""
    count = len(batch["first"])
    later = ["The same person is waving."] * count
    return batch | {"first": ["A woman."] * count, "later": later, "later_posed": later}


def test_a_run_knows_its_encoders_and_pairs_by_their_content(part, tiny_folder, tmp_path):
    before = part.data_hash()
    folder = tmp_path / "encoders"
    shutil.copytree(tiny_folder, folder)
    init = folder / "transformer.safetensors"

    def found(**changes):
        settings = part.settings.model_copy(update={"weights": folder, **changes})
        return TransformerPart(settings, PartContext(5, torch.device("cpu"), init)).data_hash()

    assert found(pairs=9) == before
    assert found(pool_seed=1) != before
    text = folder / "text_encoder.safetensors"
    tensors = load_file(text)
    with safe_open(text, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, text, metadata | {"note": "another file"})
    assert found() != before


def test_batches_repeat_with_captions_drawn_anew(part):
    other, clip = part.batch(1), part.batch(2)
    assert clip["latents"].shape == (2, 16, 2, 4, 4)
    assert other["first"] + other["later"] != clip["first"] + clip["later"]
    assert part.batch(2)["first"] == clip["first"]
    assert torch.equal(part.batch(2)["latents"], clip["latents"])
    assert all(caption.startswith(("A ", "An ")) for caption in clip["first"])


def test_workers_get_the_pool_and_no_network(part):
    assert_worker_has_all_but_networks(part)


def test_the_pool_is_made_for_training_and_not_for_an_export(part, tmp_path):
    part.export(tmp_path, {"steps": 0})
    assert (tmp_path / "transformer.safetensors").is_file()
    assert not (tmp_path / "pools").exists()
    part.open_data()
    assert len(list((tmp_path / "pools").rglob("*.safetensors"))) == 2


def test_validation_on_another_pool(part, monkeypatch):
    monkeypatch.setattr(part, "settings", part.settings.model_copy(update={"validation_pairs": 3}))
    first, last = list(part.validation_batches())
    assert (len(first["latents"]), len(last["latents"])) == (2, 1)
    assert not torch.equal(first["latents"], part.pool.latents[:2])
    assert [batch["first"] for batch in part.validation_batches()] == [first["first"], last["first"]]
    assert len(list(part.settings.pools.glob("*-seed1-5x32-apart-from-seed0x4"))) == 1
    terms = [part.validation_loss(_short(first), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(terms[0]["video"], terms[1]["video"])
    assert not torch.equal(terms[0]["video"], terms[2]["video"])
    assert terms[0]["reference"].shape == (2,)


def test_the_loss_is_per_sample_and_reaches_every_part(part, monkeypatch):
    settings = part.settings.model_copy(update={"drop_reference": 0.0, "drop_text": 0.0})
    monkeypatch.setattr(part, "settings", settings)
    part.transformer.zero_grad()
    loss, metrics = part.loss(_short(part.batch(2)), 2, torch.Generator().manual_seed(1))
    assert loss.shape == (2,)
    assert {"video", "reference"} <= set(metrics)
    loss.mean().backward()
    silent = [name for name, p in part.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_what_moves_weighs_more(part, monkeypatch):
    clip = torch.zeros(1, 16, 3, 2, 2)
    clip[:, :, 1:, 0, 0] = 2.0
    batch = part.batch(2) | {"latents": clip, "masks": torch.zeros(1, 1, 3, 2, 2)}
    assert torch.equal(part.encoded(batch).weights, torch.ones(1, 1, 3, 2, 2))
    monkeypatch.setattr(part, "settings", part.settings.model_copy(update={"motion_weight": 3.0}))
    expected = torch.ones(1, 1, 3, 2, 2)
    expected[..., :2, 0, 0] = 1.0 + 3.0 * 2.0
    assert torch.equal(part.encoded(batch).weights, expected)
    still = batch | {"latents": clip[:, :, :1], "masks": torch.zeros(1, 1, 1, 2, 2)}
    assert torch.equal(part.encoded(still).weights, torch.ones(1, 1, 1, 2, 2))


def test_explicit_attention_is_attention():
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(explicit_attention(q, k, v, 3), torch_attention(q, k, v, 3))


def test_a_block_is_compiled_for_every_bucket(monkeypatch):
    """Also beyond dynamo's own limit of shapes, after which it would run the block as it is, without a word."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    torch._dynamo.reset()
    config = ContextAnyoneConfig.tiny()
    network = ContextAnyoneTransformer(config)
    compile_for_buckets(network)
    compiled, text = [], torch.zeros(1, config.text_len, config.text_dim)
    for frames in range(1, 5):
        network(torch.zeros(1, 16, frames, 4, 4), torch.zeros(1), text)
        compiled.append(counter.frame_count)
    assert all(later > before for before, later in pairwise(compiled))


def test_a_dropped_reference_leaves_no_trace(part, monkeypatch):
    monkeypatch.setattr(part, "settings", part.settings.model_copy(update={"drop_reference": 0.999}))
    part.transformer.zero_grad()
    loss, metrics = part.loss(_short(part.batch(2)), 2, torch.Generator().manual_seed(1))
    loss.mean().backward()
    assert "reference" not in metrics
    assert all(
        p.grad is None for name, p in part.transformer.named_parameters() if "emphasize" in name or "_img" in name
    )


@pytest.fixture
def asked_part(tiny_folder, tmp_path):
    torch.manual_seed(0)
    small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1, "drop_text": 0.0}
    asked = {"attribute_weight": 0.5, "drop_reference": 0.0}
    settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small, **asked)
    init = tiny_folder / "transformer.safetensors"
    return TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))


def test_both_streams_are_asked_for_the_attributes(asked_part, part, monkeypatch):
    monkeypatch.setattr(part, "settings", asked_part.settings.model_copy(update={"attribute_weight": 0.0}))
    batch = _short(asked_part.batch(2))
    loss, metrics = asked_part.loss(batch, 2, torch.Generator().manual_seed(1))
    plain, _ = part.loss(batch, 2, torch.Generator().manual_seed(1))
    added = metrics["attributes_video"] + metrics["attributes_reference"]
    torch.testing.assert_close(loss.detach(), plain.detach() + 0.5 * added)
    assert all(0 <= value <= 1 for name in ("video", "reference") for value in metrics[f"told_{name}"])

    heads = asked_part.modules()["attribute_heads"]
    (loss - plain.detach()).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())


def test_attributes_can_be_learned_from_tokens_and_a_new_pass_is_asked_anew(asked_part):
    heads = asked_part.heads["video"]
    tokens = torch.randn(8, 6, heads.norm.normalized_shape[0])
    labels = asked_part.pool.labels[torch.arange(8) % 4, :8]
    optimizer = torch.optim.Adam(heads.parameters(), 0.05)
    for _ in range(60):
        entropy, right = heads(tokens, labels)
        optimizer.zero_grad()
        entropy.mean().backward()
        optimizer.step()
    assert right.mean() > 0.95

    asked_part.loss(_short(asked_part.batch(2)), 2, torch.Generator().manual_seed(1))
    assert asked_part._tap.take() == (None, None)


def test_without_a_reference_nobody_is_asked(asked_part, monkeypatch):
    monkeypatch.setattr(asked_part, "settings", asked_part.settings.model_copy(update={"drop_reference": 0.999}))
    batch = _short(asked_part.batch(2))
    asked_part.validation_loss(batch, 0.5, torch.Generator().manual_seed(1))  # has one, and leaves it behind
    _, metrics = asked_part.loss(batch, 2, torch.Generator().manual_seed(1))
    assert not [name for name in metrics if name.startswith(("attributes_", "told_"))]


def test_the_heads_are_not_exported(asked_part, tmp_path):
    with torch.no_grad():
        asked_part.export(tmp_path, {"steps": 2})
    loaded = load_transformer(tmp_path / "transformer.safetensors")
    assert loaded.state_dict().keys() == asked_part.transformer.state_dict().keys()


def test_samples_and_export(part, tmp_path):
    part.transformer.eval()
    with torch.no_grad():
        part.sample(2, tmp_path)
        part.export(tmp_path, {"steps": 2})
    assert (tmp_path / "000002.png").stat().st_size > 1000
    loaded = load_transformer(tmp_path / "transformer.safetensors", dtype=torch.float32)
    trained = part.transformer.state_dict()
    assert all(np.allclose(value, trained[name], atol=1e-3, rtol=1e-3) for name, value in loaded.state_dict().items())


@pytest.fixture(params=["phantom", "refalign", "bernini"])
def one_stream(request, tiny_folder, tmp_path):
    small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1, "drop_text": 0.0}
    settings = Settings(
        weights=tiny_folder, pools=tmp_path / "pools", reading=request.param, drop_reference=0.0, **small
    )
    init = tiny_folder / "transformer.safetensors"
    return TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))


def some_step(part):
    """A batch, draws of it at noise level 0.7 and a text, all fixed."""
    clips, config = part.encoded(part.batch(2)), part.transformer.config
    draws = fixed_draws(clips, 0.7, torch.Generator().manual_seed(1))
    text = torch.randn(2, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(2))
    return clips, draws, text


def loss_of(part, clips, draws, text):
    return dual_guidance_step(part.transformer, part.settings, clips, draws, (text, None))


def test_one_stream_starts_from_the_backbone_of_ours_and_joins_the_references(one_stream, part):
    theirs, ours = one_stream.transformer.state_dict(), part.transformer.state_dict()
    assert not [name for name in theirs if "emphasize" in name or "img" in name]
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)

    clips, draws, text = some_step(one_stream)
    loss, metrics = loss_of(one_stream, clips, draws, text)
    noisy, level = 0.3 * clips.latents + 0.7 * draws.noise, torch.full((2,), 700.0)
    if one_stream.settings.reading == "bernini":  # a grid of its own
        references = InContextReferences([clips.reference_latents])
        velocity = one_stream.transformer(noisy, level, text, references=references).velocity
    else:  # frames of the video
        frames = torch.cat([noisy, clips.reference_latents], dim=2)
        velocity = one_stream.transformer(frames, level, text).velocity[:, :, :2]
    error = (velocity - (draws.noise - clips.latents)) ** 2 * clips.weights
    expected = error.sum((1, 2, 3, 4)) / (clips.weights.sum((1, 2, 3, 4)) * 16)
    torch.testing.assert_close(loss, expected)
    assert "reference" not in metrics


def test_a_dropped_reference_is_what_the_mode_shows_without_one(one_stream):
    """Zeros of Phantom and RefAlign; Bernini's passes without the prompt have the references too."""
    clips, draws, text = some_step(one_stream)
    dropped = loss_of(one_stream, clips, replace(draws, reference=None), text)[0]
    always = one_stream.settings.reading == "bernini"
    shown = clips if always else replace(clips, reference_latents=torch.zeros_like(clips.reference_latents))
    assert torch.equal(dropped, loss_of(one_stream, shown, draws, text)[0])
    assert torch.equal(dropped, loss_of(one_stream, clips, draws, text)[0]) == always


def test_refaligns_references_are_all_cut_out_on_white(one_stream):
    cut_out = one_stream.settings.reading == "refalign"
    key = PoolKey(one_stream._key.encoders, 0, 5, 32, 4, cut_out=cut_out)
    assert one_stream._key == key
    pictures = [sample(key.world_seed(index), 5, (32, 32)) for index in range(4)]
    white = torch.stack([encoded_picture(one_stream, on_white(one.reference, one.reference_mask)) for one in pictures])
    assert torch.allclose(one_stream.pool.reference_latents.float(), white, atol=2e-2) == cut_out


def encoded_picture(part, picture):
    return part.vae.encode(frames_to_images(picture[None]))[0].float()


def test_one_stream_learns_and_its_export_generates(one_stream, tmp_path):
    clips, draws, text = some_step(one_stream)
    optimizer = torch.optim.AdamW(one_stream.transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = loss_of(one_stream, clips, draws, text)[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        one_stream.sample(2, tmp_path)
        one_stream.export(tmp_path, {"steps": 2})
    loaded = load_transformer(tmp_path / "transformer.safetensors", dtype=torch.float32, plain=True)
    assert not loaded.config.emphasize
    pipeline = replace_network(one_stream, loaded)
    settings = GenerationSettings(num_frames=5, width=32, height=32, steps=1)
    picture = picture_to_images(sample(TEST_SEED_START, 1, (32, 32)).reference)
    made = pipeline.generate([picture], TwoStagePrompt("A woman.", "The same person is waving."), settings)
    assert made.images.shape == (1, 3, 5, 32, 32)


def replace_network(part, network):
    return ContextAnyonePipeline(network, part.vae, part.text_encoder, None, MODELS[part.settings.reading])


def test_gap_and_emphasize_are_settings(tiny_folder, tmp_path, part):
    """They stand in the exported file, and change what the network computes; not given, the file's own count."""
    init = tiny_folder / "transformer.safetensors"
    context = PartContext(seed=5, device=torch.device("cpu"), init_from=init)
    asked = Settings(weights=tiny_folder, pools=tmp_path / "pools", num_frames=5, size=32, gap=3.0, emphasize=False)
    other = TransformerPart(asked, context)
    config = part.transformer.config
    assert (config.gap, config.emphasize) == (10.0, True)
    assert other.transformer.config == replace(config, gap=3.0, emphasize=False)
    state, whole = other.transformer.state_dict(), part.transformer.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())
    assert sorted({name.split(".")[2] for name in whole.keys() - state.keys()}) == ["emphasize_attn", "norm_emphasize"]
    other.export(tmp_path, {})
    assert load_transformer(tmp_path / "transformer.safetensors").config == other.transformer.config
    fresh = PartContext(seed=5, device=torch.device("cpu"))
    assert starting_network(asked, fresh, lambda: config).config == other.transformer.config


def test_settings_that_a_file_cannot_meet_are_refused(tiny_folder, tmp_path):
    init = tiny_folder / "transformer.safetensors"
    network = starting_network(
        Settings(weights=tiny_folder, emphasize=False), PartContext(0, torch.device("cpu"), init), pytest.fail
    )
    save_transformer(tmp_path / "plain.safetensors", network, dtype=torch.float32)
    context = PartContext(0, torch.device("cpu"), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"has no Emphasize-Attention; contextanyone init adds it"):
        starting_network(Settings(weights=tiny_folder, emphasize=True), context, pytest.fail)
    for given in ({"gap": 3.0}, {"emphasize": False}, {"condition": True}):
        with pytest.raises(ValidationError, match=r"part\.emphasize and part\.condition need a reference stream"):
            Settings(weights=tiny_folder, reading="phantom", **given)


@pytest.fixture
def posed_part(tiny_folder, tmp_path):
    torch.manual_seed(0)
    small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1, "condition": True}
    settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small)
    init = tiny_folder / "transformer.safetensors"
    return TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))


def test_a_narrow_network_is_widened_by_channels_that_change_nothing(posed_part, part):
    wide, narrow = posed_part.transformer, part.transformer
    assert (wide.config.condition_dim, wide.config.pose_style) == (32, "miniature")
    assert torch.equal(wide.patch_embedding.weight[:, :16], narrow.patch_embedding.weight)
    assert not wide.patch_embedding.weight[:, 16:].any()
    batch = _short(posed_part.batch(0))
    clips = posed_part.encoded(batch)
    draws = fixed_draws(clips, 0.5, torch.Generator().manual_seed(0))
    plain = replace(draws, condition=None)
    texts = posed_part.texts(batch, draws)
    ours, _ = dual_guidance_step(wide, posed_part.settings, clips, draws, texts)
    theirs, _ = dual_guidance_step(narrow, part.settings, replace(clips, conditioned=False), plain, texts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_posed_pool_holds_poses_and_free_motions_whose_captions_name_no_action(posed_part, part):
    pool = posed_part.pool
    assert pool.poses.shape == pool.latents.shape
    assert pool.free.tolist() == [posed_sample(posed_part._key.world_seed(i), 1, (32, 32)).free for i in range(4)]
    assert part.pool.poses is None
    assert posed_part._key.folder(Path()) != part._key.folder(Path())
    pair = posed_sample(posed_part._key.world_seed(0), 5, (32, 32))
    drawn = draw_poses(world_poses(pair.keypoints, (32, 32)), MINIATURE)
    expected = posed_part.vae.encode(frames_to_images(drawn))
    torch.testing.assert_close(pool.poses[:1].float(), expected, atol=0.05, rtol=0.05)
    batch = posed_part.batch(0)
    moving = {"walk", "wav", "jump", "danc", "sit", "seat"}
    said = [any(word in text for word in moving) for text in batch["later"]]
    rows = [int((pool.latents == latents).flatten(1).all(1).nonzero()[0]) for latents in batch["latents"]]
    assert [not pool.moves_freely(row) for row in rows] == said


def test_captions_leave_the_action_to_a_pose_that_is_shown(posed_part, monkeypatch):
    read = []
    monkeypatch.setattr(posed_part, "_encode", lambda texts: read.append(texts) or torch.zeros(len(texts), 1, 1))
    moving = ("walk", "wav", "jump", "leap", "danc", "sit")

    def named(drop_action, *, with_pose):
        posed_part.settings = posed_part.settings.model_copy(update={"drop_action": drop_action})
        read.clear()
        for step in range(60):
            batch = posed_part.batch(step) | {"first": ["A person."] * 2}
            draws = fixed_draws(posed_part.encoded(batch), 0.5, torch.Generator())
            condition = replace(draws.condition, with_pose=(with_pose,) * 2)
            posed_part.texts(batch, replace(draws, reference=None, condition=condition))
        return np.mean([any(word in text for word in moving) for texts in read for text in texts])

    everywhere = named(0.0, with_pose=True)  # free motions have no word for their action
    assert everywhere > 0.4
    assert named(1.0, with_pose=True) == 0
    assert named(1.0, with_pose=False) == pytest.approx(everywhere, abs=0.15)
    assert 0.4 < named(0.4, with_pose=True) / everywhere < 0.8


def test_poses_and_starts_are_dropped_by_sample_and_a_still_has_no_start(posed_part):
    clips = posed_part.encoded(posed_part.batch(0))
    many = replace(clips, latents=clips.latents.expand(2, -1, -1, -1, -1).repeat(500, 1, 1, 1, 1))
    generator = torch.Generator().manual_seed(3)
    shown = draw(posed_part.settings, many, generator).condition
    assert abs(shown.keep_pose.float().mean() - 0.85) < 0.04
    assert abs((shown.start_frames == 0).float().mean() - 0.5) < 0.05
    assert set(shown.start_frames.tolist()) == {0, 1}  # two latent frames at most one of which is given
    still = replace(many, latents=many.latents[:, :, :1])
    assert not draw(posed_part.settings, still, generator).condition.start_frames.any()


def test_the_random_numbers_of_a_step_are_the_same_with_and_without_channels(posed_part, part):
    clips = posed_part.encoded(posed_part.batch(0))
    both = [
        draw(posed_part.settings, replace(clips, conditioned=given), torch.Generator().manual_seed(9))
        for given in (True, False)
    ]
    assert torch.equal(both[0].sigma, both[1].sigma)
    assert torch.equal(both[0].noise, both[1].noise)
    assert both[0].keep_text == both[1].keep_text


def test_pose_and_start_reach_the_video_stream_and_train_their_channels(posed_part):
    batch = _short(posed_part.batch(0))
    loss, _ = posed_part.loss(batch, 0, torch.Generator().manual_seed(1))
    loss.mean().backward()
    gradient = posed_part.transformer.patch_embedding.weight.grad
    assert gradient[:, 16:32].abs().max() > 0
    assert gradient[:, 32:].abs().max() > 0


def test_the_learning_rate_of_a_pattern_is_scaled(tiny_folder, tmp_path):
    train = {"lr_scale": {"patch_embedding.*": 5.0, "*.bias": 2.0}}
    small = {"num_frames": 1, "size": 32, "batch": 2, "pairs": 2, "train": train}
    settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small)
    init = tiny_folder / "transformer.safetensors"
    part = TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))
    scale = {id(p): group["lr_scale"] for group in part.parameter_groups() for p in group["params"]}
    named = dict(part.transformer.named_parameters())
    assert len(scale) == len(named)
    assert scale[id(named["patch_embedding.weight"])] == 5.0
    assert scale[id(named["patch_embedding.bias"])] == 2.0
    assert scale[id(named["blocks.0.self_attn.q.weight"])] == 1.0
    decay = {id(p): group.get("weight_decay") for group in part.parameter_groups() for p in group["params"]}
    assert decay[id(named["patch_embedding.bias"])] == 0.0
    wrong = settings.model_copy(update={"train": settings.train.model_copy(update={"lr_scale": {"patches.*": 2}})})
    with pytest.raises(InputError, match=r"part\.train\.lr_scale has the pattern patches\.\*, which matches nothing"):
        TransformerPart(wrong, PartContext(seed=5, device=torch.device("cpu"), init_from=init))
