"""Poses of a manifest's rows: drawn at the bucket's size, encoded, cached, and given to the condition channels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cached_world import build, change_rows, settings_for, write_small_world

from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import frames_to_images
from contextanyone_core.pose.body import bone_lengths
from contextanyone_core.pose.drawing import STYLES, draw_poses
from contextanyone_core.pose.pose_file import read_pose_file
from training.data import limb_stretch
from training.data.batches import CachedData
from training.data.cache import data_hash, read_index
from training.data.limb_stretch import stretched
from training.data.shards import ShardStore
from training.data.world_poses import world_poses
from training.parts.base import PartContext
from training.parts.manifest import ManifestPart, Settings
from training.world import posed_sample


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = write_small_world(tmp_path_factory.mktemp("poses") / "world", 3)
    change_rows(path, lambda row: row | ({"pose": None} if row["id"] == "00000008" else {}))
    return path


@pytest.fixture(scope="module")
def data(manifest, tiny_folder):
    settings = settings_for(manifest, tiny_folder, poses="miniature")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limb_stretch, "STRETCHED", 0.0)
        assert build(settings)
    return settings


def test_an_entry_is_the_drawn_pose_as_generation_encodes_it(data, manifest, tiny_folder):
    cached = CachedData(data)
    row = next(row for row in cached.rows if row.keys.pose is not None)
    entry = ShardStore(data.cache / "pose").read(row.keys.pose)
    bucket = row.bucket
    assert (bucket.num_frames, bucket.height, bucket.width) == (5, 32, 48)  # the video's own size: nothing is moved
    poses = read_pose_file(manifest.parent / row.id / "pose.safetensors").at(range(5))
    expected = VideoVAE(load_vae(tiny_folder / "vae.safetensors")).encode(
        frames_to_images(draw_poses(poses, STYLES["miniature"]))
    )
    torch.testing.assert_close(entry["latents"].float(), expected[0], atol=2e-2, rtol=2e-2)


def test_a_row_without_a_pose_has_zeros_in_a_batch(data):
    cached = CachedData(data)
    rows = {row.id: number for number, row in enumerate(cached.rows)}
    assert cached.batch([rows["00000007"]], 32)["poses"].abs().max() > 0
    without = cached.batch([rows["00000008"]], 32)
    assert without["poses"].shape == without["latents"].shape
    assert not without["poses"].any()


def test_without_the_setting_nothing_of_the_cache_changes(data, manifest, tiny_folder):
    plain = settings_for(manifest, tiny_folder)
    assert build(plain)
    with_poses, without = read_index(data), read_index(plain)
    assert [replace(row.keys, pose=None) for row in with_poses.rows] == [row.keys for row in without.rows]
    assert data_hash(with_poses) != data_hash(without)
    assert "poses" not in CachedData(plain).batch([0], 32)


def test_another_style_is_another_entry(data, manifest, tiny_folder):
    full = settings_for(manifest, tiny_folder, poses="full")
    assert build(full)
    keys = [{row.keys.pose for row in read_index(settings).rows} - {None} for settings in (data, full)]
    assert len(keys[0]) == len(keys[1]) == 2
    assert not keys[0] & keys[1]


def test_a_pose_that_states_no_layout_is_a_counted_reason(manifest, tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = write_small_world(tmp_path / "world", 2)
    pose = path.parent / "00000007" / "pose.safetensors"
    save_file(load_file(pose), pose)
    settings = settings_for(path, tiny_folder, poses="miniature")
    assert build(settings)
    index = read_index(settings)
    assert [row.id for row in index.rows] == ["00000008"]
    assert "lacks layout, width, height, fps in its metadata" in index.dropped[0].detail


def test_the_condition_channels_learn_from_cached_poses(data, tiny_folder):
    torch.manual_seed(0)
    init = tiny_folder / "transformer.safetensors"
    settings = Settings(data=data, condition=True, drop_pose=0.0, drop_start=0.0)
    part = ManifestPart(settings, PartContext(3, torch.device("cpu"), init))
    assert part.transformer.config.condition_dim == 32
    numbers = [number for number, row in enumerate(part.data.rows) if row.keys.pose is not None]
    loss, _ = part.loss(part.data.batch(numbers[:1], part.config.text_len), 0, torch.Generator().manual_seed(0))
    loss.mean().backward()
    gradient = part.transformer.patch_embedding.weight.grad
    assert gradient[:, 16:32].abs().max() > 0
    assert gradient[:, 32:].abs().max() > 0


def part_of(tiny_folder, **changes):
    context = PartContext(3, torch.device("cpu"), tiny_folder / "transformer.safetensors")
    return ManifestPart(Settings(**changes), context)


def test_poses_that_the_network_is_not_shown_are_refused(data, manifest, tiny_folder):
    with pytest.raises(InputError, match=r"no condition channels to show them in: set part\.condition=true"):
        part_of(tiny_folder, data=data)
    plain = settings_for(manifest, tiny_folder)
    assert build(plain)
    assert part_of(tiny_folder, data=plain, condition=True).conditioned  # first frames alone


@pytest.mark.parametrize(("style", "frames"), [("full", 1), ("miniature", 2)])
def test_one_first_frame_is_shown_at_full_size_as_fun_does(manifest, tiny_folder, style, frames):
    plain = settings_for(manifest, tiny_folder)
    assert build(plain)
    part = part_of(tiny_folder, data=plain, condition=True)
    part.transformer.config = replace(part.transformer.config, pose_style=style)
    assert part.encoded(part.data.batch([0], part.config.text_len)).start_frames == frames


def test_poses_of_another_style_than_the_network_draws_are_refused(manifest, tiny_folder):
    full = settings_for(manifest, tiny_folder, poses="full")
    assert build(full)
    with pytest.raises(InputError, match=r"is full, and the network's pose_style is miniature: set part\.data\.poses="):
        part_of(tiny_folder, data=full, condition=True)


def test_a_stretched_limb_changes_its_bones_alone_and_the_share_is_a_tenth():
    pair = posed_sample(3, 5, (64, 64))
    poses = world_poses(pair.keypoints, (64, 64))
    rng = np.random.default_rng(0)
    changed = [found for _ in range(400) if (found := stretched(poses, rng)) is not poses]
    assert 20 <= len(changed) <= 60
    own = bone_lengths(poses)
    for found in changed:
        ratios = np.array([
            np.linalg.norm(np.diff(found.body[:, [parent, child], :2], axis=1), axis=-1).mean()
            / np.linalg.norm(np.diff(poses.body[:, [parent, child], :2], axis=1), axis=-1).mean()
            for parent, child in ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13))
        ])  # fmt: skip
        other = ~np.isclose(ratios, 1.0, atol=1e-6)
        assert other.sum() <= 2
        assert ((ratios > 0.49) & (ratios < 2.01)).all()
    assert np.isfinite(own[:12]).all()
