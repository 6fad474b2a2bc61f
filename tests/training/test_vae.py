"""The whole-clip forward of the VAE equals diffusers' chunked one, and the part trains and exports it."""

import copy
import json
import shutil

import pytest
import torch
from processes import assert_worker_has_all_but_networks
from pydantic import ValidationError

from contextanyone_core.encoders.vae import VideoVAE, build_vae, load_vae, mini_vae_config
from contextanyone_core.errors import InputError
from contextanyone_core.weights.checkpoint import load_tensors
from contextanyone_core.weights.safetensors_file import read_header
from training.parts.base import PartContext
from training.parts.vae import Settings, VaePart, _change, _world_seed, still_start
from training.randomness import seed_for
from training.vae_forward import compile_norms, decode_whole, encode_whole
from training.world import TEST_SEED_START


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_vae(mini_vae_config() | {"base_dim": 4}).eval()


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_whole_clips_equal_the_chunked_forward(vae, frames):
    images = torch.rand(2, 3, frames, 24, 16) * 2 - 1
    with torch.no_grad():
        mean, logvar = encode_whole(vae, images)
        chunked = vae.encode(images).latent_dist
        torch.testing.assert_close(mean, chunked.mean, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logvar, chunked.logvar, atol=2e-5, rtol=1e-4)
        latents = 0.1 * mean
        decoded = decode_whole(vae, latents)
        torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(latents).sample, atol=2e-5, rtol=1e-4)


def test_a_fresh_vae_sees_a_still_clip_as_one_still(vae):
    still = still_start(copy.deepcopy(vae))
    picture = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        alone = encode_whole(still, picture)[0]
        clip = encode_whole(still, picture.expand(-1, -1, 9, -1, -1))[0]
        torch.testing.assert_close(clip, alone.expand_as(clip), atol=1e-5, rtol=1e-4)
        frames = decode_whole(still, clip)
        torch.testing.assert_close(frames, frames[:, :, :1].expand_as(frames), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_norms_are_the_norms(vae):
    compiled = copy.deepcopy(vae)
    compile_norms(compiled)
    images = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    outputs = []
    for each in (vae, compiled):
        each.zero_grad()
        decoded = decode_whole(each, encode_whole(each, images)[0])
        decoded.square().mean().backward()
        outputs.append((decoded, [p.grad.clone() for p in each.parameters() if p.grad is not None]))
    (plain, plain_gradients), (fused, fused_gradients) = outputs
    torch.testing.assert_close(fused, plain, atol=2e-5, rtol=1e-4)
    for a, b in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_the_gradient_passes_where_diffusers_clamps(vae):
    latents = torch.ones(1, 16, 1, 2, 2, requires_grad=True)
    loud = copy.deepcopy(vae)
    loud.decoder.conv_out.bias.data.fill_(9.0)
    images = decode_whole(loud, latents)
    assert images.min() > 1
    images.square().sum().backward()
    assert latents.grad.abs().sum() > 0


def _part(accumulate=1, **settings):
    torch.manual_seed(0)
    small = {"image_steps": 2, "image_batch": 2, "clip_batch": 1, "clip_frames": 5, "crop": 32}
    context = PartContext(seed=3, device=torch.device("cpu"), accumulate=accumulate)
    return VaePart(Settings(**small | settings), context)


def test_images_come_first_then_clips_with_images_in_between():
    part = _part(image_every=3)
    assert [tuple(part.batch(step).shape[1:4]) for step in (1, 2, 3, 4)] == [
        (1, 32, 32),
        (5, 32, 32),
        (1, 32, 32),
        (5, 32, 32),
    ]
    assert torch.equal(part.batch(4), part.batch(4))


def test_all_batches_of_a_step_are_of_one_kind():
    part = _part(image_every=3, accumulate=2)
    assert [part.batch(number).shape[1] for number in range(2, 10)] == [1, 1, 5, 5, 1, 1, 5, 5]


def test_workers_need_no_network():
    assert_worker_has_all_but_networks(_part())


def test_no_step_repeats_pictures_of_the_next():
    batches = [[_world_seed(3, step, index) for index in range(150)] for step in (1, 2)]
    assert len({seed for seeds in batches for seed in seeds}) == 300
    assert batches[0][:64] == [seed_for(3, 64 + index, "vae data") % TEST_SEED_START for index in range(64)]


def test_an_odd_batch_of_pictures_is_refused():
    with pytest.raises(ValueError, match="image_batch"):
        _part(image_batch=5)


def test_a_few_steps_lower_the_loss():
    part = _part(image_steps=100)
    optimizer = torch.optim.Adam(part.vae.parameters(), 2e-3)
    batch, losses = part.batch(1), []
    for _ in range(10):
        loss, metrics = part.loss(batch, 0, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.8 * losses[0]
    assert set(metrics) == {"psnr_image", "kl"}


def test_a_frozen_encoder_is_left_out_of_the_groups():
    part = _part(train_encoder=False)
    trained = {id(p) for group in part.parameter_groups() for p in group["params"]}
    assert not trained & {id(p) for p in part.vae.encoder.parameters()}
    assert trained >= {id(p) for p in part.vae.decoder.parameters()}
    assert not any(p.requires_grad for p in part.vae.encoder.parameters())


def test_a_frozen_encoder_keeps_the_facts_of_its_latents(tmp_path, monkeypatch):
    monkeypatch.setattr("training.parts.vae._STATISTICS_CLIPS", 1)
    monkeypatch.setattr("training.parts.vae._FAMILIAR_PICTURES", 2)
    _part().export(tmp_path, {"steps": 0})
    before, config = read_header(tmp_path / "vae.safetensors"), load_vae(tmp_path / "vae.safetensors").config
    monkeypatch.setattr("training.parts.vae._STATISTICS_CLIPS", 2)  # another measurement would say something else
    settings = Settings(train_encoder=False)
    context = PartContext(seed=3, device=torch.device("cpu"), init_from=tmp_path / "vae.safetensors")
    VaePart(settings, context).export(tmp_path, {"steps": 1})
    after = read_header(tmp_path / "vae.safetensors")
    assert after.metadata["latent_rgb_factors"] == before.metadata["latent_rgb_factors"]
    assert load_vae(tmp_path / "vae.safetensors").config.latents_std == config.latents_std


@pytest.mark.parametrize("settings", [{"train_encoder": False}, {"keep_stills": 0.5}], ids=["frozen", "kept"])
def test_a_public_file_says_nothing_of_its_preview_which_is_measured(exported, tmp_path, monkeypatch, settings):
    monkeypatch.setattr("training.parts.vae._STATISTICS_CLIPS", 1)
    monkeypatch.setattr("training.parts.vae._FAMILIAR_PICTURES", 2)
    public = tmp_path / "vae.pth"
    torch.save(load_tensors(exported), public)
    context = PartContext(seed=3, device=torch.device("cpu"), init_from=public)
    VaePart(Settings(**settings), context).export(tmp_path, {"steps": 1})
    written = tmp_path / "vae.safetensors"
    assert load_vae(written).config.latents_std == load_vae(public).config.latents_std
    assert len(json.loads(read_header(written).metadata["latent_rgb_factors"])) == 16


def _moving_clip():
    """A black clip (1, 5, 32, 32, 3) through which a white square goes, eight pixels a frame."""
    clip = torch.zeros(1, 5, 32, 32, 3, dtype=torch.uint8)
    for frame in range(4):
        clip[:, frame, 8:16, 8 * frame : 8 * frame + 8] = 255
    return clip


def test_motion_counts_more_where_pixels_change():
    clip, generator = _moving_clip(), torch.Generator()
    plain, measured = _part(l1_weight=0, kl_weight=0).loss(clip, 0, generator.manual_seed(0))
    heavy, same = _part(l1_weight=0, kl_weight=0, motion_weight=3).loss(clip, 0, generator.manual_seed(0))
    assert torch.equal(measured["psnr_clip"], same["psnr_clip"])  # what is reported stays comparable
    assert plain.item() < heavy.item() < 4 * plain.item()
    still = clip[:, :1].expand(-1, 5, -1, -1, -1)
    plain, _ = _part(l1_weight=0, kl_weight=0).loss(still, 0, generator.manual_seed(0))
    heavy, _ = _part(l1_weight=0, kl_weight=0, motion_weight=3).loss(still, 0, generator.manual_seed(0))
    torch.testing.assert_close(plain, heavy)


def test_the_change_of_a_pixel_is_the_larger_of_its_two():
    change = _change(_moving_clip().permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    assert change.shape == (1, 1, 5, 32, 32)
    assert change[0, 0, 1, 8:16, :24].min() == 1  # it came from the left square, and leaves to the right one
    assert change[0, 0, 1, 8:16, 24:].max() == 0
    assert change[0, 0, :, :8].max() == 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.parts.vae._STATISTICS_CLIPS", 1)
        patch.setattr("training.parts.vae._FAMILIAR_PICTURES", 2)
        _part().export(folder, {"steps": 0})
    return folder / "vae.safetensors"


def test_kept_stills_pull_first_frames_back(exported):
    context = PartContext(seed=3, device=torch.device("cpu"), init_from=exported)
    part = VaePart(Settings(image_steps=0, clip_batch=1, clip_frames=5, crop=32, keep_stills=0.5), context)
    generator, clip = torch.Generator().manual_seed(0), _moving_clip()
    assert part.loss(clip, 0, generator)[1]["moved"].item() < 1e-9
    with torch.no_grad():
        part.vae.quant_conv.bias.add_(1.0)
    loss, metrics = part.loss(clip, 0, generator.manual_seed(0))
    assert metrics["moved"].item() > 0.01
    loss.mean().backward()
    assert part.vae.quant_conv.bias.grad[:16].mean() > 0
    assert not any(parameter.requires_grad for parameter in part.before.parameters())
    assert "before" not in part.modules()


def test_kept_stills_keep_the_facts_of_the_latents(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("training.parts.vae._FAMILIAR_PICTURES", 2)
    context = PartContext(seed=3, device=torch.device("cpu"), init_from=exported)
    VaePart(Settings(keep_stills=0.5), context).export(tmp_path, {"steps": 1})
    written = tmp_path / "vae.safetensors"
    assert load_vae(written).config.latents_std == load_vae(exported).config.latents_std
    assert read_header(written).metadata["latent_rgb_bias"] == read_header(exported).metadata["latent_rgb_bias"]


def test_a_length_that_the_vae_cannot_have_is_refused():
    with pytest.raises(ValidationError, match=r"Wan needs 4k \+ 1 frames, such as 5 or 9"):
        Settings(clip_frames=8)


def test_kept_stills_need_a_file_to_keep_them_from():
    with pytest.raises(InputError, match=r"part.keep_stills needs init.from"):
        _part(keep_stills=0.5)


def test_export_carries_statistics_and_the_preview_projection(tmp_path, monkeypatch):
    monkeypatch.setattr("training.parts.vae._STATISTICS_CLIPS", 1)
    monkeypatch.setattr("training.parts.vae._FAMILIAR_PICTURES", 2)
    part = _part()
    part.export(tmp_path, {"steps": 0})
    path = tmp_path / "vae.safetensors"
    header = read_header(path)
    loaded = load_vae(path)
    assert len(json.loads(header.metadata["latent_rgb_factors"])) == 16
    assert float(header.metadata["familiar_psnr"])
    assert min(loaded.config.latents_std) > 0
    warm = VaePart(part.settings, PartContext(seed=3, device=torch.device("cpu"), init_from=path))
    assert sum(len(group["params"]) for group in warm.parameter_groups()) == len(list(warm.vae.parameters()))
    latents = VideoVAE(loaded).encode(torch.rand(1, 3, 1, 32, 32) * 2 - 1)
    assert torch.isfinite(latents).all()


def test_one_clip_takes_the_kernel_of_a_batch_with_the_same_gradients(vae):
    """torch keeps oneDNN's conv3d for batches of two and more: see `runtime/conv3d.py`."""
    images = torch.randn(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(3))
    found = []
    for given in (images, images.expand(2, -1, -1, -1, -1)):
        vae.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            decoded = decode_whole(vae, encode_whole(vae, given)[0])
        kernels = {event.key for event in profile.key_averages()}
        assert "aten::mkldnn_convolution" in kernels
        assert len(given) > 1 or "aten::slow_conv3d_forward" not in kernels
        (decoded - given).square().flatten(1).sum(1).mean().backward()
        found.append((decoded[:1].detach(), [parameter.grad for parameter in vae.parameters()]))
    (one, gradients), (both, wanted) = found
    torch.testing.assert_close(one, both, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
