"""The evaluation of poses: numbers on joints that are known, and the whole of it on a tiny widened model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.generation import pipeline
from contextanyone_core.generation.pipeline import ContextAnyonePipeline
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.evaluation.accuracy import confidence, confidence_of_share
from training.evaluation.characters import subjects
from training.evaluation.clips import ClipMaker
from training.evaluation.pose_reader import PoseReader, PoseReaderConfig
from training.evaluation.poses import (
    _does_as,
    _seam,
    _whose_bones,
    driven_by_others,
    driven_by_own,
    following,
    measure_poses,
)
from training.evaluation.probe import Probe, ProbeConfig
from training.evaluation.report import _pose_items
from training.evaluation.settings import EvaluateSettings


def test_joints_that_are_found_where_they_are_count_and_others_do_not():
    driven = driven_by_own(subjects(0, 3, 64, 5, "free"))
    joints = driven.joints
    assert following(joints, joints, 64)["within_5_percent"] == 1.0
    assert following(joints, joints, 64)["mean_px"] == 0.0
    height = (joints[..., 1].max(2) - joints[..., 1].min(2)).max(1).min()
    assert following(joints + np.array([0.049 * height, 0.0]), joints, 64)["within_5_percent"] == 1.0
    tallest = (joints[..., 1].max(2) - joints[..., 1].min(2)).max()
    assert following(joints + np.array([0.051 * tallest, 0.0]), joints, 64)["within_5_percent"] == 0.0
    far = joints.copy()
    far[:, :, 4] += 0.2 * 64
    assert following(far, joints, 64)["within_5_percent"] == pytest.approx(13 / 14, abs=0.01)
    outside = joints.copy()
    outside[:, :, 4] = -5  # not in the frame: it can be found nowhere
    assert following(far, outside, 64)["within_5_percent"] == 1.0


def test_the_interval_is_that_of_the_share_of_all_joints():
    """Where joints leave the frame, clips have unequal weight in the share: here a tenth of the others' in half."""
    joints = np.zeros((40, 2, 14, 2))
    joints[..., 0], joints[..., 1] = 10, np.linspace(5, 60, 14)
    joints[::2, :, 1:, 0] = -5
    found = joints.copy()
    found[1::2, ..., 0] += 30
    row = following(found, joints, 64)
    assert row["within_5_percent"] == pytest.approx(1 / 15)
    assert row["ci95"][0] < 1 / 15 < row["ci95"][1] < 0.2
    near, inside = np.asarray([28, 14, 0, 7]), np.full(4, 28)
    assert confidence_of_share(near, inside) == pytest.approx(confidence(near / inside))


def test_the_motions_differ_and_a_free_one_is_not_named():
    asked, free, held_out = (subjects(0, 4, 64, 5, motion) for motion in ("asked", "free", "held_out"))
    assert [subject.drawn.free for subject in (*asked, *free, *held_out)] == [False] * 4 + [True] * 8
    actions = ("walk", "wav", "jump", "danc", "sit")
    assert all(any(word in subject.neutral.later for word in actions) for subject in asked)
    assert not any(word in subject.neutral.later for subject in (*free, *held_out) for word in actions)


def test_another_bodys_pose_has_the_characters_bones_and_not_the_drivers():
    chosen = [subject for subject in subjects(0, 12, 128, 9, "asked") if subject.drawn.scene.action != "sitting"]
    drivers = [*chosen[1:], chosen[0]]
    driven = driven_by_others(chosen, drivers)
    found = _whose_bones(driven.joints, chosen, drivers)
    assert found["reference"] < 0.05
    assert found["driver"] > 2 * found["reference"]
    low, high = found["driver_less_reference"]["ci95"]
    assert 0 < low < found["driver_less_reference"]["mean"] < high
    drivers_own = _whose_bones(driven_by_own(drivers).joints, chosen, drivers)["driver_less_reference"]
    assert drivers_own["ci95"][1] < 0


@pytest.fixture(scope="module")
def maker(tiny_folder):
    torch.manual_seed(0)
    config = replace(ContextAnyoneConfig.tiny(), text_len=256, condition_dim=32, pose_style="miniature")
    network = ContextAnyoneTransformer(config)
    for parameter in network.parameters():  # nothing is zero, so that conditions reach the clips
        torch.nn.init.normal_(parameter, std=0.1)
    text = load_text_encoder(tiny_folder / "text_encoder.safetensors")
    text.text_len = config.text_len
    vae = VideoVAE(load_vae(tiny_folder / "vae.safetensors"))
    image = load_image_encoder(tiny_folder / "image_encoder.safetensors")
    made = ContextAnyonePipeline(network, vae, text, image)
    return ClipMaker(made, EvaluateSettings(size=32, num_frames=5, steps=1, batch_size=3))


def test_every_promised_row_is_measured(maker):
    torch.manual_seed(0)
    reader = PoseReader(PoseReaderConfig(32, (8, 8, 8, 8))).eval().requires_grad_(False)
    probe = Probe(ProbeConfig(side=32, channels=(8, 8, 8, 8), action_width=8)).eval()
    found = measure_poses(maker, reader, probe, 0, 3)
    rows = found["pose"]
    assert {"asked", "free", "held_out", "other_body", "another_clip", "none", "ceiling"} <= set(rows)
    for row in rows.values():
        assert 0 <= row["ci95"][0] <= row["ci95"][1] <= 1
        assert np.isfinite(row["mean_px"])
    assert len({row["mean_px"] for row in rows.values()}) == len(rows)  # each has a pose, or joints, of its own
    bones = rows["other_body"]["bones"]
    assert bones["driver"] - bones["reference"] == pytest.approx(bones["driver_less_reference"]["mean"])
    assert bones["driver"] != bones["reference"]
    assert rows["other_body"]["attributes"]["n"] == rows["other_body"]["n"]
    assert found["start"]["seam_ratio"] < 0.05  # the clip begins with the picture
    assert found["start"]["first_step_ratio"] > 0
    titles = [title for title, _, _ in _pose_items(found)]
    assert {"first frame off the start picture", "the driver's less the reference's"} <= set(titles)


def test_a_clip_that_does_not_begin_with_its_start_has_a_seam(maker, monkeypatch):
    chosen = subjects(0, 2, 32, 5, "asked")
    kept = _seam(maker, chosen)
    monkeypatch.setattr(pipeline, "lead_to_start", lambda velocity, *_: velocity)
    left = _seam(maker, chosen)
    assert kept["seam_ratio"] < 0.05 < left["seam_ratio"]


def test_another_bodys_pose_comes_with_its_own_action():
    chosen = subjects(0, 8, 32, 5, "asked")
    pairs = [(one, other) for one in chosen for other in chosen if one.drawn.scene.action != other.drawn.scene.action]
    subject, driver = pairs[0]
    said = _does_as(subject, driver)
    assert said.first == subject.neutral.first
    assert said.later != subject.neutral.later
    assert _does_as(subject, subject) == subject.neutral


def test_characters_of_one_seed_and_other_motions_have_their_own_picture(maker):
    plain, free = subjects(0, 1, 32, 5)[0], subjects(0, 1, 32, 5, "free")[0]
    assert plain.seed == free.seed
    first, second = maker.encode(plain), maker.encode(free)
    assert not torch.equal(first.latents, second.latents)
    assert maker.encode(plain) is first
