"""The whole-clip forward of the VAE equals diffusers' chunked one, and the part trains and exports it."""

import copy
import json

import pytest
import torch

from contextanyone_core.checkpoint import read_header
from contextanyone_core.hosts.vae import VideoVAE, build_vae, load_vae, mini_vae_config
from training.parts.base import PartContext
from training.parts.vae import Settings, VaePart, still_start
from training.parts.vae_forward import decode_whole, encode_whole


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


def test_the_gradient_passes_where_diffusers_clamps(vae):
    latents = torch.ones(1, 16, 1, 2, 2, requires_grad=True)
    loud = copy.deepcopy(vae)
    loud.decoder.conv_out.bias.data.fill_(9.0)
    images = decode_whole(loud, latents)
    assert images.min() > 1
    images.square().sum().backward()
    assert latents.grad.abs().sum() > 0


def _part(**settings):
    torch.manual_seed(0)
    small = {"image_steps": 2, "image_batch": 2, "clip_batch": 1, "clip_frames": 5, "crop": 32}
    return VaePart(Settings(**small | settings), PartContext(seed=3, device=torch.device("cpu")))


def test_images_come_first_then_clips_with_images_in_between():
    part = _part(image_every=3)
    assert [tuple(part.batch(step).shape[1:4]) for step in (1, 2, 3, 4)] == [
        (1, 32, 32),
        (5, 32, 32),
        (1, 32, 32),
        (5, 32, 32),
    ]
    assert torch.equal(part.batch(4), part.batch(4))


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
