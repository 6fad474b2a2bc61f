"""`personalize.py`: a clip, a file, its sheet, with published backbones; resume; one line for what is wrong."""

import json
import os
import resource
import shutil
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from plain_files import write_backbone, write_encoders
from safetensors.torch import load_file

from contextanyone_core.encoders import on_demand
from contextanyone_core.encoders.text import read_tokenizer
from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import write_clip
from contextanyone_core.pose.litert import DOWNLOAD
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.pose.pose_file import pose_file_bytes, read_pose_file
from contextanyone_core.weights.personal_file import read_personal_file
from contextanyone_core.weights.safetensors_file import read_header
from training.config import load_config
from training.data.manifest import read_manifest
from training.data.world_poses import world_poses
from training.files import file_sha256, write_png
from training.personal import sheet
from training.personal.names import check_name
from training.personal.presets import PLACES, PRESETS
from training.personal.sheet import SheetRequest, write_sheet
from training.personalize import _PRESETS, main
from training.world import TEST_SEED_START, posed_sample

SIZE = (32, 48)
TINY = [
    *("run.steps=4", "part.stills_steps=2", "run.save_every=2", "run.workers=0", "run.threads=1", "run.trackers=[]"),
    *("part.data.buckets.sizes=[48x32]", "part.data.buckets.frames=[1, 9]", "part.sample_steps=1"),
    *("part.train.lora.rank=2", "part.recompute=none", "run.sample_every=9", "precision=fp32"),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_folder):
    """A clip of 20 frames with its masks and poses, backbones as published, encoders."""
    folder = tmp_path_factory.mktemp("given")
    pair = posed_sample(TEST_SEED_START + 4, 20, SIZE, free=True)
    write_clip(folder / "me.mp4", pair.video, {})
    (folder / "masks").mkdir()
    for number, mask in enumerate(pair.masks):
        write_png(folder / "masks" / f"{number:03d}.png", mask)
    (folder / "me.pose.safetensors").write_bytes(pose_file_bytes(world_poses(pair.keypoints, SIZE)))
    write_backbone(folder / "t2v.safetensors", control=False)
    write_backbone(folder / "control.safetensors", control=True)
    write_encoders(folder / "encoders", tiny_folder)
    return folder


def options(given, out, base="control", **changes):
    values = {
        "--clip": given / "me.mp4",
        "--class": "woman",
        "--out": out,
        "--mask": given / "masks",
        "--pose": given / "me.pose.safetensors",
        "--base": given / f"{base}.safetensors",
        "--encoders": given / "encoders",
    } | changes
    return [str(word) for pair in values.items() if pair[1] is not None for word in pair]


def run(given, out, *overrides, **changes):
    return main([*options(given, out, **changes), "--set", *TINY, *overrides])


@pytest.mark.parametrize(("base", "preset"), [("t2v", "paper"), ("control", "paper"), ("control", "strong")])
def test_a_clip_becomes_a_personal_file_and_a_sheet(given, tmp_path, capsys, base, preset):
    out = tmp_path / "me.safetensors"
    assert run(given, out, base=base, **{"--preset": preset, "--consent": "hers", "--license": "CC0"}) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(out), str(tmp_path / "me.sheet.png")]
    person = read_personal_file(out)
    assert (person.trigger, person.caption, person.preset) == ("zuv woman", "A zuv woman", preset)
    assert (person.consent, person.license) == ("hers", "CC0")
    assert person.base_hash == file_sha256(given / f"{base}.safetensors")
    assert np.isfinite(person.body.lengths).sum() >= 12
    names = {name.split(".")[3] for name in load_file(out)}
    assert names == ({"cross_attn"} if preset == "paper" else {"cross_attn", "self_attn", "ffn"})
    with Image.open(tmp_path / "me.sheet.png") as sheet:
        assert sheet.width > 5 * 48
    rows = [line.row for line in read_manifest(tmp_path / "me.work" / "data" / "manifest.jsonl").lines]
    assert {row.num_frames for row in rows} == {1, 9}
    assert len([row for row in rows if row.num_frames == 1]) == 16
    assert {row.prompt_first for row in rows} == {"A zuv woman."}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.safetensors", "me.sheet.png", "me.work"]
    stated = str(read_header(out).metadata)  # what goes with the file names neither the clip nor a folder
    assert not [place for place in (str(given), str(tmp_path), "me.mp4") if place in stated]


def test_the_sheet_is_generated_as_the_training_conditions(given, tmp_path):
    """With regions where the preset has them; the sheet of the same file without them is another."""
    out = tmp_path / "me.safetensors"
    assert run(given, out, "part.regions=pose", "part.sample_steps=2") == 0
    made = (tmp_path / "me.sheet.png").read_bytes()
    prompts = [f"A zuv woman {place}." for place in PLACES]
    data, paths = out.with_suffix(".work") / "data", (given / "control.safetensors", out, given / "encoders")
    for regions in (True, False):
        asked = SheetRequest(data / "manifest.jsonl", *paths, prompts, (32, 48), 9, 2, regions)
        write_sheet(asked, tmp_path / "other.png")
        assert ((tmp_path / "other.png").read_bytes() == made) == regions


def test_the_text_encoder_is_gone_before_the_network_of_the_sheet_comes(given, tmp_path, monkeypatch):
    loaded, load = [], on_demand.load_text_encoder

    def watched(*asked):
        loaded.append(weakref.ref((encoder := load(*asked)).model))
        return encoder

    def comes(*_, **__):
        assert [model() for model in loaded] == [None]
        raise InterruptedError

    monkeypatch.setattr(on_demand, "load_text_encoder", watched)
    monkeypatch.setattr(sheet, "load_transformer", comes)
    base, none = given / "control.safetensors", tmp_path / "none"
    with pytest.raises(InterruptedError):
        sheet.generate(SheetRequest(none, base, none, given / "encoders", ["A person."], (32, 48), 9, 2, False))


def test_the_file_holds_the_presets_strength_as_its_one(given, tmp_path):
    """The same training, whose samples do not disturb it, scaled in the file by alpha alone."""
    whole, folded = tmp_path / "whole.safetensors", tmp_path / "folded.safetensors"
    assert run(given, whole) == 0
    assert run(given, folded, "part.personal.strength=0.7", "run.sample_every=2") == 0
    assert (read_personal_file(whole).strength, read_personal_file(folded).strength) == (1.0, 0.7)
    trained, stated = load_file(whole), load_file(folded)
    assert trained.keys() == stated.keys()
    for name, tensor in trained.items():
        expected = 0.7 * tensor if name.endswith(".alpha") else tensor
        torch.testing.assert_close(stated[name], expected, rtol=1e-7 if name.endswith(".alpha") else 0, atol=0)


def test_a_stopped_training_goes_on_bit_for_bit(given, tmp_path):
    straight, halves = tmp_path / "straight.safetensors", tmp_path / "halves.safetensors"
    assert run(given, straight) == 0
    assert run(given, halves, "run.steps=3") == 0
    first = halves.read_bytes()
    assert run(given, halves) == 0
    assert halves.read_bytes() == straight.read_bytes() != first


def test_consent_may_be_added_later_and_another_preset_wants_another_file(given, tmp_path, capsys):
    out = tmp_path / "me.safetensors"
    assert run(given, out) == 0
    trained = load_file(out)
    assert run(given, out, **{"--consent": "hers"}) == 0
    assert read_personal_file(out).consent == "hers"
    assert all(torch.equal(tensor, trained[name]) for name, tensor in load_file(out).items())
    assert run(given, out, **{"--consent": "hers", "--preset": "strong"}) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "part.personal.preset" in said
    assert "with personalize.py another --out" in said


def test_ctrl_c_saves_and_says_how_to_go_on(given, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "me.safetensors"
    log = tmp_path / "me.work" / "run" / "log.jsonl"

    def interrupt():
        while not log.is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code = run(given, out, "run.steps=100000")
    watcher.join()
    assert code == 130
    assert not out.exists()
    assert (tmp_path / "me.work" / "run" / "checkpoints" / "latest").is_file()
    assert "the same command goes on from there" in caplog.text
    assert "part.stills_steps is 2 and optim.lr_factors {600: 0.3}: pictures end" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(given, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code = run(given, tmp_path / "me.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert "Traceback" not in said[-1]
    assert not (tmp_path / "me.safetensors").exists()
    assert list(tmp_path.iterdir()) == []


def two_people(folder, given):
    frames = to_json(read_pose_file(given / "me.pose.safetensors"))
    other = json.loads(json.dumps(frames))
    for frame, copy in zip(frames, other, strict=True):
        points = copy["people"][0]["pose_keypoints_2d"]
        points[0::3] = [x + 12 if x else 0 for x in points[0::3]]
        frame["people"].append(copy["people"][0])
    path = folder / "two.json"
    path.write_text(json.dumps(frames))
    return path


def nobody(folder, given):
    frames = to_json(read_pose_file(given / "me.pose.safetensors"))
    path = folder / "nobody.json"
    path.write_text(json.dumps([frame | {"people": []} for frame in frames]))
    return path


def short(folder, given):
    write_clip(folder / "short.mp4", np.zeros((5, 32, 48, 3), np.uint8), {})
    return folder / "short.mp4"


def small(folder, given):
    write_clip(folder / "small.mp4", np.zeros((20, 16, 22, 3), np.uint8), {})
    return folder / "small.mp4"


def text(folder, given):
    (folder / "text.mp4").write_text("no video")
    return folder / "text.mp4"


def picture(folder, given):
    write_png(folder / "one.png", np.zeros((32, 48, 3), np.uint8))
    return folder / "one.png"


def masks(size, count, value):
    def write(folder, given):
        path = folder / f"masks{size}-{count}-{value}"
        path.mkdir()
        for number in range(count):
            write_png(path / f"{number:03d}.png", np.full((32, size), value, np.uint8))
        return path

    return write


def other_base(folder, given):
    return write_backbone(folder / "wide.safetensors", control=True, text_dim=40)


def empty_encoders(folder, given):
    (folder / "encoders").mkdir()
    return folder / "encoders"


WRONG = {
    "no clip": ({"--clip": lambda f, g: f / "none.mp4"}, "there is no such file"),
    "no video": ({"--clip": text}, "cannot be decoded"),
    "a picture": ({"--clip": picture}, "is a single picture"),
    "too short": ({"--clip": short}, "5 frames at 16 a second in its longest shot; at least 9"),
    "nobody": ({"--pose": nobody}, "shows nobody"),
    "several people": ({"--pose": two_people}, "person out: contextanyone pose FILE --person 1 --out one.json"),
    "no poses": ({"--pose": None}, f"--models PATH for the estimator, MediaPipe's wheel ({DOWNLOAD})"),
    "a small clip": ({"--clip": small}, "has 22 x 16 pixels, which would be enlarged 2.2 times; 2 times is the most"),
    "a long caption": ({"--caption": f"A zuv woman {'dances ' * 600}."}, "shorten it"),
    "a mask of another size": ({"--mask": masks(64, 20, 255)}, "has 64 x 32 pixels, the clip 48 x 32"),
    "masks of another number": ({"--mask": masks(48, 7, 255)}, "has 7 frames, the clip 20"),
    "an empty mask": ({"--mask": masks(48, 20, 0)}, "is empty in every frame"),
    "digits": ({"--name": "zq7"}, "--name zq7 falls into ▁"),
    "a word": ({"--name": "in"}, "is one piece of the tokenizer, ▁"),
    "no class": ({"--class": "12"}, "must be what the person is"),
    "a caption of nobody": ({"--caption": "A woman at the beach."}, "does not name the person as 'zuv woman'"),
    "another base": ({"--base": other_base}, "a base of another size"),
    "no base": ({"--base": None}, "needs --base FILE"),
    "a lost base": ({"--base": lambda f, g: f / "none.pth"}, "none.pth is not there; give the one file"),
    "a folder as base": ({"--base": lambda f, g: g}, "is a folder; give the one file with the base's weights"),
    "no encoders": ({"--encoders": empty_encoders}, "holds no vae.safetensors"),
    "no licence": ({"--license": ""}, "--license is empty"),
    "no folder": ({"--out": lambda f, g: f / "none" / "me.safetensors"}, "there is no folder"),
    "another ending": ({"--out": lambda f, g: f / "me.pt"}, "give the name of a .safetensors file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_leaves_nothing(given, tmp_path, capsys, name):
    made, message = WRONG[name]
    changes = {key: make(tmp_path, given) if callable(make) else make for key, make in made.items()}
    before = sorted(tmp_path.rglob("*"))
    code = run(given, tmp_path / "me.safetensors", **changes)
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in said[-1]
    assert said[-1].startswith("personalize.py: ")
    assert not any("Traceback" in line for line in said)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_knows_the_presets():
    assert set(PRESETS) == set(_PRESETS)
    configs = [load_config(PRESETS[name].config, PRESETS[name].changes) for name in _PRESETS]
    assert [config.part.personal.strength for config in configs] == [1.0, 1.0, 0.7]
    targets = load_config(PRESETS["strong"].config, PRESETS["strong"].changes).part.train.lora.targets
    assert {"blocks.*.self_attn.q", "blocks.*.cross_attn.o", "blocks.*.ffn.*"} <= set(targets)


@pytest.mark.nightly
def test_a_drawn_person_needs_neither_masks_nor_poses(tmp_path):
    pair = posed_sample(TEST_SEED_START + 4, 33, (128, 128), free=True)
    write_clip(tmp_path / "drawn.mp4", pair.video, {})
    out = tmp_path / "drawn.safetensors"
    steps = ["run.steps=4", "part.stills_steps=2", "run.workers=0", "run.trackers=[]", "part.sample_steps=2"]
    command = ["--clip", str(tmp_path / "drawn.mp4"), "--class", "person", "--out", str(out), "--preset", "miniature"]
    assert main([*command, "--set", *steps]) == 0
    assert read_personal_file(out).preset == "miniature"
    assert out.stat().st_size < 1_000_000
    found = read_pose_file(tmp_path / "drawn.work" / "data" / "pose.safetensors").body
    truth = world_poses(pair.keypoints, (128, 128)).body
    seen = truth[..., 2] > 0
    assert np.linalg.norm((found - truth)[..., :2], axis=-1)[seen].mean() < 2.5


def test_another_clip_does_not_mix_with_the_work_of_the_first(given, tmp_path, capsys):
    out = tmp_path / "me.safetensors"
    assert run(given, out) == 0
    clip = tmp_path / "other.mp4"
    write_clip(clip, posed_sample(TEST_SEED_START + 5, 20, SIZE, free=True).video, {})
    assert run(given, out, **{"--clip": clip}) == 2
    assert "holds the training of another clip" in capsys.readouterr().err


def test_captions_come_with_and_without_the_scene_and_the_prior_has_them_without_the_name(given, tmp_path):
    out = tmp_path / "me.safetensors"
    assert run(given, out, **{"--caption": "In the park a zuv woman waves"}) == 0
    rows = [line.row for line in read_manifest(tmp_path / "me.work" / "data" / "manifest.jsonl").lines]
    assert [row.prompt_first for row in rows[:3]] == ["A zuv woman.", "In the park a zuv woman waves.", "A zuv woman."]
    config = load_config(tmp_path / "me.work" / "run" / "config.yaml")
    assert config.part.data.prior_captions == ("A woman.", "In the park a woman waves.")


def test_the_help_has_a_command_that_lacks_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    example = said[said.index("python training/") :].split("\n\n")[0]
    assert "--models mediapipe-0.10.21-*.whl" in example  # poses are needed
    assert "a folder of pictures, one for each frame" in " ".join(said.split())


def test_names_show_their_pieces(given):
    tokenizer, _ = read_tokenizer(given / "encoders" / "text_encoder.safetensors")
    assert len(check_name("zuv", tokenizer)) > 1
    for wrong in ("zu-v", "a b", "", "x9"):
        with pytest.raises(InputError, match="falls into"):
            check_name(wrong, tokenizer)


def test_a_work_folder_that_is_copied_goes_on(given, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    assert run(given, first / "me.safetensors", "run.steps=3") == 0
    shutil.copytree(first, second)
    assert run(given, second / "me.safetensors") == 0
