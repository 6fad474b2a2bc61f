"""Poses and a start frame in a generation: in every pass, within their window, as asked for on the command line."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pose_cases import figure, sequence
from safetensors.numpy import save_file

from contextanyone_core import cli
from contextanyone_core.cli.generate_pose import file_record
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.generation.conditions import condition_at, lead_to_start
from contextanyone_core.generation.pipeline import (
    Conditions,
    ContextAnyonePipeline,
    GenerationSettings,
    LatentSampler,
    stack_conditions,
)
from contextanyone_core.media.video_io import read_metadata, write_clip
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.drawing import MINIATURE, draw_poses
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.sampling.guidance import make_guidance
from contextanyone_core.sampling.names import SAMPLERS
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer

CONFIG = replace(ContextAnyoneConfig.tiny(), condition_dim=32)
SETTINGS = GenerationSettings(num_frames=5, width=32, height=32, steps=4)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return LatentSampler(model)


def conditions(pose=True, start=True, seed=1):
    text, negative = (draw(1, CONFIG.text_len, CONFIG.text_dim, seed=seed + offset) for offset in (0, 50))
    references = ReferenceInputs([draw(1, 16, 1, 4, 4, seed=seed)], text, [draw(1, 3, CONFIG.image_dim, seed=seed)])
    video = VideoCondition(
        draw(1, 16, 2, 4, 4, seed=seed + 1) if pose else None, draw(1, 16, 1, 4, 4, seed=seed + 2) if start else None
    )
    return Conditions(text, negative, references, video)


def sample(sampler, given, settings=SETTINGS, seeds=(0,)):
    return sampler.sample_latents(given, settings, sampler.noise(seeds, settings))


@pytest.mark.parametrize("change", [{"pose_strength": 0.0}, {"pose_window": (1.0, 1.0)}, {"pose_window": (0.3, 0.4)}])
@pytest.mark.parametrize("start", [False, True])
def test_strength_zero_and_outside_the_window_is_no_pose_bit_for_bit(sampler, change, start):
    without = sample(sampler, conditions(pose=False, start=start))
    assert torch.equal(sample(sampler, conditions(start=start), replace(SETTINGS, **change)), without)
    assert not torch.allclose(sample(sampler, conditions(start=start)), without, atol=1e-2)
    nothing = replace(conditions(), video=None)
    assert torch.equal(sample(sampler, nothing), without) == (not start)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_ends_on_its_start_whatever_the_network_says(sampler, name):
    given = conditions()
    found = sample(sampler, given, replace(SETTINGS, sampler=name))
    assert torch.allclose(found[:, :, :1], given.video.start, atol=1e-4)
    rest = sample(sampler, replace(given, video=replace(given.video, start=2 * given.video.start)))[:, :, 1:]
    assert not torch.allclose(found[:, :, 1:], rest, atol=1e-2)  # the start reaches the frames that follow


def test_frames_of_a_start_that_are_absent_stay_the_networks():
    velocity, latents, start = draw(2, 16, 3, 4, 4), draw(2, 16, 3, 4, 4, seed=1), draw(2, 16, 2, 4, 4, seed=2)
    start[1, :, 1] = 0
    found = lead_to_start(velocity, latents, 0.5, VideoCondition(start=start))
    assert torch.equal(found[0, :, :2], (latents[0, :, :2] - start[0]) / 0.5)
    assert torch.equal(found[1, :, 1:], velocity[1, :, 1:])
    assert torch.equal(found[:, :, 2], velocity[:, :, 2])
    assert lead_to_start(velocity, latents, 0.5, VideoCondition(pose=latents)) is velocity


@pytest.mark.parametrize("guidance", ["cfg", "dual"])
def test_a_run_without_conditions_is_the_narrow_models_bit_for_bit(sampler, guidance):
    narrow = ContextAnyoneTransformer(replace(CONFIG, condition_dim=0))
    state = sampler.transformer.state_dict()
    narrow.load_state_dict(state | {"patch_embedding.weight": state["patch_embedding.weight"][:, :16]})
    chosen = make_guidance(
        guidance, CONFIG, guidance_scale=3.0, **({"reference_scale": 2.0} if guidance == "dual" else {})
    )
    settings, nothing = replace(SETTINGS, guidance=chosen), replace(conditions(), video=None)
    assert torch.equal(sample(sampler, nothing, settings), sample(LatentSampler(narrow), nothing, settings))
    assert not torch.equal(sample(sampler, conditions(), settings), sample(sampler, nothing, settings))


def test_the_cache_of_a_run_is_made_once_and_without_conditions(sampler, monkeypatch):
    made, encode = [], sampler.transformer.encode_references
    monkeypatch.setattr(
        sampler.transformer, "encode_references", lambda *given: made.append(encode(*given)) or made[-1]
    )
    for given in (conditions(), conditions(pose=False, start=False)):
        sample(sampler, given)
    with_them, without = made
    for one, two in zip(with_them.blocks, without.blocks, strict=True):
        pairs = zip(
            (*one.self_attn, *one.emphasize, *one.image), (*two.self_attn, *two.emphasize, *two.image), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(with_them.outputs[0], without.outputs[0])


@pytest.mark.parametrize(("window", "wanted"), [((0.0, 1.0), [1, 1, 1, 1]), ((0.25, 0.75), [0, 1, 1, 0])])
def test_pose_and_start_are_in_every_pass_of_the_window(sampler, window, wanted):
    seen = []
    hook = sampler.transformer.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["condition"]), with_kwargs=True
    )
    dual = make_guidance("dual", CONFIG, guidance_scale=3.0, reference_scale=2.0)
    sample(sampler, conditions(), replace(SETTINGS, guidance=dual, pose_window=window))
    hook.remove()
    assert [item.pose is not None for item in seen] == [bool(acts) for acts in wanted for _ in range(3)]
    assert all(item.start is not None for item in seen)


def test_strength_is_a_factor():
    video = conditions().video
    assert torch.equal(condition_at(video, 0.5, 0.5, (0.0, 1.0)).pose, 0.5 * video.pose)
    assert condition_at(video, 0.5, 1.0, (0.0, 1.0)) is video
    assert condition_at(None, 0.5, 0.5, (0.0, 1.0)) is None


def test_a_batch_is_its_videos(sampler):
    singles = [conditions(seed=seed) for seed in (1, 11)]
    together = sample(sampler, stack_conditions(singles), seeds=(0, 1))
    for index, single in enumerate(singles):
        alone = sample(sampler, single, seeds=(index,))
        assert torch.allclose(together[index : index + 1], alone, atol=1e-4)
    with pytest.raises(InputError, match="all have a pose condition, or none; 1 of 2"):
        stack_conditions([conditions(), conditions(pose=False)])
    longer = replace(singles[1], video=replace(singles[1].video, pose=draw(1, 16, 3, 4, 4)))
    with pytest.raises(ShapeError, match="pose conditions of one shape"):
        stack_conditions([singles[0], longer])


@pytest.mark.parametrize("window", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(InputError, match="two shares of the steps"):
        replace(SETTINGS, pose_window=window)


@pytest.fixture(scope="session")
def wide_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny stack with condition channels."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("wide") / "weights"))
    narrow = load_transformer(folder / "transformer.safetensors")
    wide = ContextAnyoneTransformer(replace(narrow.config, condition_dim=32))
    state = narrow.state_dict()
    new = 0.3 * draw(narrow.config.dim, 32, 1, 2, 2)
    state["patch_embedding.weight"] = torch.cat([state["patch_embedding.weight"], new], dim=1)
    wide.load_state_dict(state)
    save_transformer(folder / "transformer.safetensors", wide, dtype=torch.float32)
    return folder


def dance(frames=5):
    """A person who lowers an arm, on a canvas of 320 x 320."""
    bodies = [figure(neck=(160.0, 60.0 + frame), lengths=np.full(17, 30.0)) for frame in range(frames)]
    return sequence(bodies, (320, 320))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with poses of 5 frames and a start frame, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    Path("dance.json").write_text(json.dumps(to_json(dance())))
    Path("long.json").write_text(json.dumps(to_json(dance(8))))
    Image.new("RGB", (64, 64), (200, 60, 90)).save("start.png")
    Image.new("RGB", (64, 32), (200, 60, 90)).save("broad.png")
    folder = Path("drawn")
    folder.mkdir()
    for index, frame in enumerate(draw_poses(dance().placed((32, 32)), MINIATURE)):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return tmp_path


SMALL = ("--frames", "5", "--size", "32x32", "--steps", "2", "--guidance-scale", "1", "--first", "A woman.")


def run(folder, *words):
    return cli.main([str(word) for word in ("generate", "--weights", folder, *SMALL, *words)])


def frames_of(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))])


def test_poses_are_drawn_as_the_model_knows_them(wide_folder):
    pipeline = ContextAnyonePipeline.from_folder(wide_folder)
    frames = torch.from_numpy(draw_poses(dance().placed((32, 32)), MINIATURE)).permute(3, 0, 1, 2)[None]
    given = pipeline.encode_condition(frames.float() / 127.5 - 1, torch.zeros(1, 3, 64, 64), (32, 32))
    assert given.pose.shape == (1, 16, 2, 4, 4)
    assert given.start.shape == (1, 16, 1, 4, 4)
    assert torch.equal(given.pose, pipeline.vae.encode(frames.float() / 127.5 - 1))
    with pytest.raises(InputError, match=r"64 x 32 pixels, the video 32 x 32.*crop it"):
        pipeline.encode_condition(None, torch.zeros(1, 3, 32, 64), (32, 32))


def test_the_command_follows_keypoints_and_a_drawing_of_them_alike(desk, wide_folder, capsys):
    for name, words in {
        "plain": (),
        "keys": ("--pose", "dance.json"),
        "drawn_clip": ("--pose", "drawn"),
        "off": ("--pose", "dance.json", "--pose-strength", "0"),
        "late": ("--pose", "dance.json", "--pose-start", "0.9"),
        "half": ("--pose", "dance.json", "--pose-end", "0.5"),
    }.items():
        assert run(wide_folder, *words, "--out", name) == 0, capsys.readouterr().err
    made = {name: frames_of(name) for name in ("plain", "keys", "drawn_clip", "off", "late", "half")}
    assert np.array_equal(made["keys"], made["drawn_clip"])
    assert np.array_equal(made["off"], made["plain"])
    assert np.array_equal(made["late"], made["plain"])
    assert not np.array_equal(made["keys"], made["plain"])
    assert not np.array_equal(made["half"], made["keys"])
    assert not np.array_equal(made["half"], made["plain"])


def test_the_clip_says_what_it_followed_and_a_longer_pose_is_cut(desk, wide_folder, capsys):
    words = ("--pose", "long.json", "--pose-body", "dance.json", "--pose-end", "0.5", "--start-frame", "start.png")
    assert run(wide_folder, *words, "--out", "out.webp") == 0
    assert "long.json has 8 frames at 16 a second; the first 5 are used" in capsys.readouterr().err
    metadata = read_metadata(Path("out.webp"))
    pose = metadata["pose"]
    assert (pose["name"], pose["fit"], pose["body"]["name"]) == ("long.json", "bones", "dance.json")
    assert (pose["strength"], pose["start"], pose["end"], pose["person"]) == (1, 0, 0.5, None)
    assert pose["sha256"] == hashlib.sha256(Path("long.json").read_bytes()).hexdigest()
    assert metadata["start_frame"]["name"] == "start.png"
    assert run(wide_folder, *words, "--out", "out.webp", "--resume") == 0
    assert "out.webp is finished" in capsys.readouterr().err
    assert run(wide_folder, "--out", "plain.webp") == 0
    assert not {"pose", "start_frame"} & read_metadata(Path("plain.webp")).keys()
    assert "pose_strength" not in read_metadata(Path("plain.webp"))["settings"]


def test_a_folder_is_recorded_by_its_files_one_after_the_other(tmp_path):
    (tmp_path / "poses" / "inner").mkdir(parents=True)
    for name, content in (("2.json", b"two"), ("1.json", b"one")):
        (tmp_path / "poses" / name).write_bytes(content)
    assert file_record(tmp_path / "poses") == {"name": "poses", "sha256": hashlib.sha256(b"onetwo").hexdigest()}


def test_keypoints_that_do_not_state_their_rate_are_given_it(desk, wide_folder, capsys):
    content = json.loads(Path("long.json").read_text())
    Path("bare.json").write_text(json.dumps([{key: frame[key] for key in frame if key != "fps"} for frame in content]))
    assert run(wide_folder, "--pose", "bare.json", "--out", "out.webp") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "rate" in line]
    assert line.endswith("16 frames a second are assumed: state it, such as --pose-fps 30")
    assert read_metadata(Path("out.webp"))["pose"]["fps"] is None
    assert run(wide_folder, "--pose", "bare.json", "--pose-fps", 24, "--out", "out.webp") == 0
    assert "rate" not in capsys.readouterr().err
    assert read_metadata(Path("out.webp"))["pose"]["fps"] == 24


def test_a_drawn_video_without_a_skeleton_is_a_warning(desk, wide_folder, capsys):
    Path("empty").mkdir()
    for index in range(5):
        Image.new("RGB", (32, 32), (127, 127, 127)).save(f"empty/{index}.png")
    assert run(wide_folder, "--pose", "empty", "--out", "out.webp") == 0
    assert "empty shows no skeleton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--pose", "gone.json"), "gone.json: there is no such file"),
        (("--pose", "void.json"), "void.json is empty"),
        (("--pose", "void.mp4"), "void.mp4 is empty"),
        (("--pose", "void.safetensors"), "void.safetensors is empty"),
        (("--pose", "void"), "void is a folder without pictures"),
        (("--pose", "nan.json"), "nan.json: pose_keypoints_2d has numbers that are not finite"),
        (("--pose", "nan.safetensors"), "nan.safetensors: the pose's body has numbers that are not finite"),
        (("--pose", "nobody.json"), "nobody.json shows nobody"),
        (("--pose", "nobody_at_first.json"), "nobody_at_first.json shows nobody in its first 5 frames"),
        (("--pose", "two.json"), "shows 2 people"),
        (("--pose", "two.json"), "--pose-person 1"),
        (("--pose", "two.json", "--pose-person", "3"), "person 3 is asked for"),
        (("--pose", "dance.json", "--frames", "9"), "ask for at most 5"),
        (("--pose", "drawn", "--frames", "9"), "ask for at most 5"),
        (("--pose", "start.png", "--size", "64x64"), "ask for at most 1"),
        (("--pose", "drawn", "--size", "48x32"), "drawn poses are never resized"),
        (("--pose", "drawn", "--pose-fit", "bones"), "--pose-fit is for keypoints"),
        (("--pose", "dance.json", "--pose-fit", "bone"), "Did you mean bones?"),
        (("--pose", "dance.json", "--pose-fit", "bones"), "--pose-fit bones needs --pose-body FILE: keypoints"),
        (("--pose", "dance.json", "--pose-fit", "none", "--pose-body", "dance.json"), "ignores it"),
        (("--pose", "dance.json", "--pose-body", "start.png"), "--pose-models PATH"),
        (("--pose", "dance.json", "--pose-body", "void.json"), "void.json is empty"),
        (("--pose", "dance.json", "--pose-body", "nan.json"), "nan.json: pose_keypoints_2d has numbers"),
        (("--pose", "dance.json", "--pose-body", "two.json"), "one person's: contextanyone pose FILE --person 1"),
        (("--pose", "dance.json", "--pose-body", "nobody.json"), "nobody.json shows nobody"),
        (("--pose", "dance.json", "--pose-strength", "nan"), "from 0 to 100"),
        (("--pose", "dance.json", "--pose-start", "0.6", "--pose-end", "0.5"), "lower share first"),
        (("--pose", "dance.json", "--pose-end", "2"), "from 0 to 1"),
        (("--pose", "dance.json", "--model", "phantom"), "--model phantom leave --pose and --start-frame out"),
        (("--start-frame", "start.png", "--model", "vace"), "--model vace leave --pose"),
        (("--pose", "dance.json", "--pose-body", "start.png", "--pose-models", "."), "holds no pose_detection.tflite"),
        (("--pose", "dance.json", "--pose-body", "start.png", "--pose-models", "gone.whl"), "gone.whl"),
        (("--pose", "dance.json", "--pose-models", "."), "--pose-models estimates the body of --pose-body"),
        (("--pose", "drawn", "--pose-models", "."), "--pose-models is for keypoints"),
        (("--pose-models", "."), "--pose-models belongs to --pose"),
        (("--pose-fps", "30"), "--pose-fps belongs to --pose"),
        (("--pose", "dance.json", "--pose-fps", "30"), "asked for are 30; leave --pose-fps out"),
        (("--pose", "start.png", "--pose-fps", "30"), "start.png has its own rate"),
        (("--pose-body", "dance.json"), "--pose-body belongs to --pose"),
        (("--pose-strength", "0"), "--pose-strength belongs to --pose"),
        (("--start-frame", "gone.png"), "gone.png"),
        (("--start-frame", "broad.png"), "the same aspect: crop it to 1:1"),
    ],
)
def test_refusals_are_one_line(desk, wide_folder, capsys, words, hint):
    for name in ("void.json", "void.mp4", "void.safetensors"):
        Path(name).write_bytes(b"")
    Path("void").mkdir()
    Path("nan.json").write_text(json.dumps(to_json(dance())).replace("160.0", "NaN", 1))
    broken = dance().body.copy()
    broken[0, 0, 0] = np.nan
    metadata = {"layout": "body18", "width": "320", "height": "320", "fps": "16"}
    save_file({"keypoints": broken.astype(np.float32)}, "nan.safetensors", metadata)
    two = to_json(dance())
    for frame in two if isinstance(two, list) else [two]:
        person = json.loads(json.dumps(frame["people"][0]).replace("160.0", "250.0"))
        frame["people"].append(person)
    Path("two.json").write_text(json.dumps(two))
    nobody = to_json(dance())
    for frame in nobody:
        frame["people"] = []
    Path("nobody.json").write_text(json.dumps(nobody))
    Path("nobody_at_first.json").write_text(json.dumps(nobody + to_json(dance())))
    before = sorted(desk.rglob("*"))
    assert run(wide_folder, "--out", "out.webp", *words) == 2
    err = capsys.readouterr().err.removeprefix("contextanyone: no --reference is given: plain text to video\n")
    assert hint in err
    assert err.startswith("contextanyone: ")
    assert err.count("\n") == 1
    assert sorted(desk.rglob("*")) == before


@pytest.mark.weights
def test_the_body_may_be_a_clip_of_the_person(desk, wide_folder, capsys):
    """As if its poses had been estimated before."""
    models, photographs = (os.environ.get(f"CONTEXTANYONE_{name}") for name in ("MEDIAPIPE", "PHOTOGRAPHS"))
    if not (models and photographs):
        pytest.skip("CONTEXTANYONE_MEDIAPIPE and CONTEXTANYONE_PHOTOGRAPHS are not set: see test_pose_estimation.py")
    walker = np.array(Image.open(Path(photographs) / "bus.jpg").convert("RGB"))[260:1060, :480]
    write_clip(Path("walk.mp4"), np.stack([np.roll(walker, 4 * step, axis=1) for step in range(5)]), {})
    assert cli.main(["pose", "walk.mp4", "--models", models, "--out", "walk.json"]) == 0
    words = ("--pose", "dance.json", "--pose-body")
    assert run(wide_folder, *words, "walk.mp4", "--pose-models", models, "--out", "clip") == 0
    assert "walk.mp4: 5frame" in capsys.readouterr().err
    assert run(wide_folder, *words, "walk.json", "--out", "keys") == 0
    assert run(wide_folder, "--pose", "dance.json", "--out", "own") == 0
    assert np.array_equal(frames_of("clip"), frames_of("keys"))
    assert not np.array_equal(frames_of("clip"), frames_of("own"))


def test_channels_that_are_still_zero_are_a_warning(desk, wide_folder, capsys):
    zeroed = Path(shutil.copytree(wide_folder, desk / "zeroed"))
    network = load_transformer(zeroed / "transformer.safetensors")
    with torch.no_grad():
        network.patch_embedding.weight[:, 16:] = 0
    save_transformer(zeroed / "transformer.safetensors", network, dtype=torch.float32)
    for folder, told in ((zeroed, True), (wide_folder, False)):
        assert run(folder, "--pose", "dance.json", "--out", "out.webp") == 0
        assert ("condition channels of this model are untrained (zero)" in capsys.readouterr().err) is told


def test_a_narrow_model_says_what_to_do(desk, tiny_folder, capsys):
    for words in (("--pose", "dance.json"), ("--start-frame", "start.png")):
        assert run(tiny_folder, *words, "--out", "out.webp") == 2
        assert "no condition channels" in capsys.readouterr().err
