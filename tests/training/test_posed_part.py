"""The transformer's part with condition channels: poses and start frames."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_transformer_part import short, tiny_transformer_part

from contextanyone_core.media.image_io import frames_to_images
from contextanyone_core.pose.drawing import MINIATURE, draw_poses
from training.data.world_poses import world_poses
from training.parts.objective import draw, dual_guidance_step, fixed_draws
from training.world import posed_sample

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def part(tiny_folder, tmp_path):
    return tiny_transformer_part(tiny_folder, tmp_path / "pools")


@pytest.fixture
def posed_part(tiny_folder, tmp_path):
    return tiny_transformer_part(tiny_folder, tmp_path / "pools", condition=True)


def test_a_narrow_network_is_widened_by_channels_that_change_nothing(posed_part, part):
    wide, narrow = posed_part.transformer, part.transformer
    assert (wide.config.condition_dim, wide.config.pose_style) == (32, "miniature")
    assert torch.equal(wide.patch_embedding.weight[:, :16], narrow.patch_embedding.weight)
    assert not wide.patch_embedding.weight[:, 16:].any()
    batch = short(posed_part.batch(0))
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
    longer = replace(many, latents=many.latents.repeat(1, 1, 2, 1, 1))
    frames = draw(posed_part.settings, longer, generator).condition.start_frames
    assert [abs((frames == count).float().mean() - 0.25) < 0.05 for count in (1, 2)] == [True, True]
    one = draw(posed_part.settings, replace(longer, start_frames=1), generator).condition.start_frames
    assert set(one.tolist()) == {0, 1}
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
    batch = short(posed_part.batch(0))
    loss, _ = posed_part.loss(batch, 0, torch.Generator().manual_seed(1))
    loss.mean().backward()
    gradient = posed_part.transformer.patch_embedding.weight.grad
    assert gradient[:, 16:32].abs().max() > 0
    assert gradient[:, 32:].abs().max() > 0
