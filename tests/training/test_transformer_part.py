"""The transformer's part, on the tiny stack."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from processes import assert_worker_has_all_but_networks
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_transformer_part import context, short, tiny_transformer_part
from torch._dynamo.testing import CompileCounter

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from training.parts.base import PartContext
from training.parts.transformer import Settings, TransformerPart
from training.parts.transformer_base import compile_for_buckets, explicit_attention, starting_network

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def part(tiny_folder, tmp_path):
    return tiny_transformer_part(tiny_folder, tmp_path / "pools")


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
    terms = [part.validation_loss(short(first), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(terms[0]["video"], terms[1]["video"])
    assert not torch.equal(terms[0]["video"], terms[2]["video"])
    assert terms[0]["reference"].shape == (2,)


def test_the_loss_is_per_sample_and_reaches_every_part(part, monkeypatch):
    settings = part.settings.model_copy(update={"drop_reference": 0.0, "drop_text": 0.0})
    monkeypatch.setattr(part, "settings", settings)
    part.transformer.zero_grad()
    loss, metrics = part.loss(short(part.batch(2)), 2, torch.Generator().manual_seed(1))
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
    loss, metrics = part.loss(short(part.batch(2)), 2, torch.Generator().manual_seed(1))
    loss.mean().backward()
    assert "reference" not in metrics
    assert all(
        p.grad is None for name, p in part.transformer.named_parameters() if "emphasize" in name or "_img" in name
    )


@pytest.fixture
def asked_part(tiny_folder, tmp_path):
    asked = {"attribute_weight": 0.5, "drop_reference": 0.0, "drop_text": 0.0}
    return tiny_transformer_part(tiny_folder, tmp_path / "pools", **asked)


def test_both_streams_are_asked_for_the_attributes(asked_part, part, monkeypatch):
    monkeypatch.setattr(part, "settings", asked_part.settings.model_copy(update={"attribute_weight": 0.0}))
    batch = short(asked_part.batch(2))
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

    asked_part.loss(short(asked_part.batch(2)), 2, torch.Generator().manual_seed(1))
    assert asked_part._tap.take() == (None, None)


def test_without_a_reference_nobody_is_asked(asked_part, monkeypatch):
    monkeypatch.setattr(asked_part, "settings", asked_part.settings.model_copy(update={"drop_reference": 0.999}))
    batch = short(asked_part.batch(2))
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


def test_gap_and_emphasize_are_settings(tiny_folder, tmp_path, part):
    """They stand in the exported file, and change what the network computes; not given, the file's own count."""
    init = tiny_folder / "transformer.safetensors"
    asked = Settings(weights=tiny_folder, pools=tmp_path / "pools", num_frames=5, size=32, gap=3.0, emphasize=False)
    other = TransformerPart(asked, context(init))
    config = part.transformer.config
    assert (config.gap, config.emphasize) == (10.0, True)
    assert other.transformer.config == replace(config, gap=3.0, emphasize=False)
    state, whole = other.transformer.state_dict(), part.transformer.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())
    assert sorted({name.split(".")[2] for name in whole.keys() - state.keys()}) == ["emphasize_attn", "norm_emphasize"]
    other.export(tmp_path, {})
    assert load_transformer(tmp_path / "transformer.safetensors").config == other.transformer.config
    assert starting_network(asked, context(), lambda: config).config == other.transformer.config


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


def test_the_learning_rate_of_a_pattern_is_scaled(tiny_folder, tmp_path):
    train = {"lr_scale": {"patch_embedding.*": 5.0, "*.bias": 2.0}}
    small = {"num_frames": 1, "size": 32, "batch": 2, "pairs": 2, "train": train}
    settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small)
    init = tiny_folder / "transformer.safetensors"
    part = TransformerPart(settings, context(init))
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
        TransformerPart(wrong, context(init))
