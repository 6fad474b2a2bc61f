"""The pool of encoded pairs, on the tiny stack."""

import os
import resource
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from training.data import pool as pool_module
from training.data.pool import PoolKey, encoders_hash, open_pool
from training.files import write_tensors
from training.randomness import seed_for
from training.world import TEST_SEED_START, sample


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pool_module, "_SHARD", 2)


def test_a_pool_holds_what_the_hosts_encode_and_goes_on_where_it_stopped(tiny_folder, tmp_path):
    vae = VideoVAE(load_vae(tiny_folder / "vae.safetensors"))
    image_encoder = load_image_encoder(tiny_folder / "image_encoder.safetensors")
    key = PoolKey("test", 7, 5, 32, 4)
    pool = open_pool(tmp_path, key, vae, image_encoder)
    first, second = sorted(key.folder(tmp_path).glob("*.safetensors"))
    before = load_file(second)
    second.unlink()
    untouched = first.stat().st_mtime_ns
    again = open_pool(tmp_path, key, vae, image_encoder)
    assert first.stat().st_mtime_ns == untouched
    assert all(torch.equal(load_file(second)[name], tensor) for name, tensor in before.items())
    assert torch.equal(again.latents, pool.latents)

    pair = sample(seed_for(7, 0, "pool") % TEST_SEED_START, 5, (32, 32))
    video = torch.from_numpy(pair.video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    torch.testing.assert_close(pool.latents[:1].float(), vae.encode(video), atol=0.05, rtol=0.05)
    assert pool.character(0) == pair.character
    assert pool.scene(0) == pair.scene
    assert not pair.character.is_test


def test_a_full_disk_leaves_no_half_shard_of_a_pool(tiny_folder, tmp_path):
    vae = VideoVAE(load_vae(tiny_folder / "vae.safetensors"))
    image_encoder = load_image_encoder(tiny_folder / "image_encoder.safetensors")
    key = PoolKey("test", 7, 1, 32, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match=r"00000\.safetensors cannot be written"):
            open_pool(tmp_path, key, vae, image_encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(key.folder(tmp_path).iterdir()) == []


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda c: c[:5], lambda c: c[:-1], flipped])
def test_a_damaged_shard_of_a_pool_is_encoded_anew(tiny_folder, tmp_path, caplog, damage):
    encoders = (
        VideoVAE(load_vae(tiny_folder / "vae.safetensors")),
        load_image_encoder(tiny_folder / "image_encoder.safetensors"),
    )
    key = PoolKey("test", 7, 1, 32, 4)
    whole = open_pool(tmp_path, key, *encoders)
    shard = key.folder(tmp_path) / "00001.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    assert torch.equal(open_pool(tmp_path, key, *encoders).latents, whole.latents)
    assert "00001.safetensors is damaged and encoded anew" in caplog.text


def test_tensors_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.safetensors", []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists())))
    write_tensors(path, {"a": torch.ones(3)})
    assert synced[0] == (path.stat().st_size, False)
    assert [there for _, there in synced] == [False, True]  # the folder after it


def test_a_held_out_pool_has_no_pair_of_the_other(tmp_path):
    own = PoolKey("test", 0, 17, 128, 22_208)
    seeds = {own.world_seed(index) for index in range(own.pairs)}
    plain = PoolKey("test", 1, 17, 128, 64)
    apart = replace(plain, apart_from=own)
    assert seeds & {plain.world_seed(index) for index in range(64)}
    assert not seeds & {apart.world_seed(index) for index in range(64)}
    assert own.world_seed(3) == seed_for(0, 3, "pool") % TEST_SEED_START
    assert apart.folder(tmp_path) not in (plain.folder(tmp_path), replace(own, seed=1).folder(tmp_path))
    assert plain.folder(tmp_path).name == "test-world1-seed1-17x128"


def test_a_better_decoder_reads_the_same_pool_and_another_encoder_does_not(tiny_folder):
    image_encoder = load_image_encoder(tiny_folder / "image_encoder.safetensors")

    def changed(part_of_vae):
        vae = load_vae(tiny_folder / "vae.safetensors")
        if part_of_vae:
            next(vae.get_submodule(part_of_vae).parameters()).data.add_(0.1)
        return encoders_hash(VideoVAE(vae), image_encoder)

    same = changed(None)
    assert changed("decoder") == same
    assert len({same, changed("encoder"), changed("quant_conv")}) == 3
    next(image_encoder.model.parameters()).data.add_(0.1)
    assert changed(None) != same
