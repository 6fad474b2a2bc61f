"""The command on clips of the drawn world, with a tiny CLIP and DINO whose weights are random."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_backbones import write_clip, write_dino
from transformers import SiglipConfig, ViTConfig, ViTImageProcessor, ViTModel

from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import write_clip as write_video
from evaluation import run
from evaluation.clip_set import read_set
from evaluation.metrics.backbones import Backbone
from evaluation.metrics.evaluate import still
from evaluation.metrics.feature_cache import FeatureCache
from evaluation.metrics.frames import Source, positions
from evaluation.metrics.measure import Instruments, measure
from evaluation.metrics.person import cut_out
from evaluation.study.analysis import Answer, analyse
from evaluation.videos import read_frames
from training.world.render import sample

pytestmark = pytest.mark.slow

ITEMS = 3
FRAMES = 21


def write_pictures(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:03d}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A set of three characters: the truth, a system that blurs it, one that freezes the reference, masks, models."""
    import cv2

    folder = tmp_path_factory.mktemp("evaluation")
    lines = []
    for seed in range(ITEMS):
        drawn, name = sample(seed, FRAMES, (64, 64)), f"{seed}.mp4"
        (folder / "references").mkdir(exist_ok=True)
        Image.fromarray(drawn.reference).save(folder / "references" / f"{seed}.png")
        blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in drawn.video])
        frozen = np.repeat(drawn.reference[None], FRAMES, axis=0)
        for system, frames in (("truth", drawn.video), ("blurred", blurred), ("frozen", frozen)):
            (folder / system).mkdir(exist_ok=True)
            write_video(folder / system / name, frames, {})
            masks = drawn.masks if system != "frozen" else np.repeat(drawn.reference_mask[None], FRAMES, axis=0)
            write_pictures(folder / "masks" / system / f"{seed}", masks)
        (folder / "masks" / "references").mkdir(exist_ok=True)
        Image.fromarray(drawn.reference_mask).save(folder / "masks" / "references" / f"{seed}.png")
        row = {"id": f"i{seed}", "reference": f"references/{seed}.png", "first": "A person.", "later": "It walks."}
        lines.append(json.dumps({**row, "seed": seed, "file": name}))
        (folder / "masks" / "references" / f"{seed}.png").rename(folder / "masks" / "references" / f"i{seed}.png")
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    write_clip(folder / "clip")
    write_dino(folder / "dino")
    return folder


def words(folder: Path, out: Path, *more: str) -> list[str]:
    systems = [f"{name}={folder / name}" for name in ("blurred", "frozen", "truth")]
    return ["--set", str(folder / "set.jsonl"), "--videos", *systems, "--out", str(out), *more]


def models(folder: Path) -> list[str]:
    return ["--clip", str(folder / "clip"), "--dino", str(folder / "dino"), "--masks", str(folder / "masks")]


@pytest.fixture(scope="module")
def out(made) -> Path:
    assert run.main(words(made, made / "out", *models(made))) == 0
    return made / "out"


def numbers(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((out / "metrics.json").read_text())


def test_every_metric_is_there_for_every_item(out):
    found = numbers(out)
    wanted = {"clip_i", "clip_i_person", "clip_t", "dino_i", "dino_i_person", "drift_slope", "consistency_20", "motion"}
    assert wanted | {"copy_frame", "copy_background", "dino_i_matched", "subject_consistency"} <= found.keys()
    systems = ("blurred", "frozen", "truth", "(still reference)", "(another person)")
    assert set(found["dino_i"]) == set(systems)
    assert {len(found[name][system]) for name in wanted for system in systems} == {ITEMS}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["record"]["CLIP"].startswith("clip, revision ")
    assert all(str(out.parent) not in (out / name).read_text() for name in ("summary.json", "table.md", "report.html"))
    assert {row["first"] for row in summary["comparisons"]} == {"blurred"}  # floor, ceiling and truth are not compared


def test_clip_i_and_dino_i_by_hand(made, out):
    """The same numbers from transformers' own calls."""
    import torch
    from transformers import AutoImageProcessor, AutoModel, CLIPModel

    frames = read_frames(made / "truth" / "1.mp4")[positions(FRAMES)]
    pictures = [Image.fromarray(frame) for frame in frames] + [Image.open(made / "references" / "1.png")]
    for name, kind in (("clip_i", "clip"), ("dino_i", "dino")):
        pixels = AutoImageProcessor.from_pretrained(made / kind)(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            if kind == "clip":
                model = CLIPModel.from_pretrained(made / kind)
                features = model.visual_projection(model.vision_model(**pixels).pooler_output)
            else:
                features = AutoModel.from_pretrained(made / kind)(**pixels).pooler_output
        cosines = torch.nn.functional.cosine_similarity(features[:-1], features[-1:])
        assert numbers(out)[name]["truth"]["i1"] == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_clip_t_and_the_person_alone_by_hand(made, out):
    """Both prompts joined, and the cut-outs on white, from transformers' own calls."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

    frames, masks = (read_frames(made / place)[positions(FRAMES)] for place in ("truth/1.mp4", "masks/truth/1"))
    reference = np.asarray(Image.open(made / "references" / "1.png"))
    mask = np.asarray(Image.open(made / "masks" / "references" / "i1.png"))
    people = [cut_out(frame, one.mean(-1) > 127) for frame, one in zip(frames, masks, strict=True)]
    people.append(cut_out(reference, mask > 127))

    def features(kind: str, pictures: list[np.ndarray]) -> torch.Tensor:
        images = [Image.fromarray(picture) for picture in pictures]
        pixels = AutoImageProcessor.from_pretrained(made / kind)(images=images, return_tensors="pt")
        if kind == "dino":
            return AutoModel.from_pretrained(made / kind)(**pixels).pooler_output
        model = CLIPModel.from_pretrained(made / kind)
        return model.visual_projection(model.vision_model(**pixels).pooler_output)

    with torch.inference_mode():
        model = CLIPModel.from_pretrained(made / "clip")
        tokens = AutoTokenizer.from_pretrained(made / "clip")("A person. It walks.", return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)
        of_people = {f"{kind}_i_person": features(kind, people) for kind in ("clip", "dino")}
        pairs = {name: (of[:-1], of[-1:]) for name, of in of_people.items()}
        pairs["clip_t"] = features("clip", list(frames)), text
        for name, (one, other) in pairs.items():
            cosines = torch.nn.functional.cosine_similarity(one, other)
            assert numbers(out)[name]["truth"]["i1"] == pytest.approx(float(cosines.mean()), abs=1e-5), name


def test_items_of_one_picture_are_one_reference(made, tmp_path):
    """Two items whose reference is the same picture, under two names, are no two independent ones."""
    rows = [json.loads(line) for line in (made / "set.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        name = "again.png" if number == 2 else f"{number}.png"
        shutil.copy(made / "references" / f"{number % 2}.png", tmp_path / name)
        row["reference"] = name
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    systems = [f"{name}={made / name}" for name in ("blurred", "frozen")]
    assert run.main(["--set", str(tmp_path / "set.jsonl"), "--videos", *systems, "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["metrics"]["copy_frame"]["blurred"]
    assert (found["items"], found["references"]) == (3, 2)
    assert min(row["p"] for row in summary["comparisons"]) >= 0.5  # the least that two references allow


def test_a_clip_that_is_made_anew_is_measured_anew(made, out, tmp_path):
    """Under the same name in the same folder; what did not change is read from the cache."""
    shutil.copytree(out, tmp_path / "out")
    systems = [f"{name}={made / name}" for name in ("frozen", "truth")]
    shutil.copytree(made / "blurred", tmp_path / "blurred")
    shutil.copy(made / "truth" / "0.mp4", tmp_path / "blurred" / "0.mp4")
    line = ["--set", str(made / "set.jsonl"), "--videos", f"blurred={tmp_path / 'blurred'}", *systems]
    assert run.main([*line, "--out", str(tmp_path / "out"), *models(made)]) == 0
    before, after = numbers(out), numbers(tmp_path / "out")
    for name in ("motion", "copy_frame", "clip_i", "dino_i", "dino_i_person"):
        assert after[name]["blurred"] == {**before[name]["blurred"], "i0": before[name]["truth"]["i0"]}
        assert after[name]["blurred"]["i0"] != before[name]["blurred"]["i0"]


def test_a_still_reference_is_the_ceiling_and_freezing_does_not_win_where_motion_is_matched(out):
    found = {
        metric: {system: float(np.mean(list(values.values()))) for system, values in of_system.items()}
        for metric, of_system in numbers(out).items()
    }
    assert found["dino_i"]["(still reference)"] == pytest.approx(1, abs=1e-5)
    assert found["clip_i_person"]["(still reference)"] == pytest.approx(1, abs=1e-5)
    assert found["dino_i"]["frozen"] > found["dino_i"]["blurred"]
    assert found["dino_i_matched"]["frozen"] == 0 < found["dino_i_matched"]["blurred"]
    assert found["motion"]["(still reference)"] == 0
    assert found["copy_frame"]["frozen"] > 0.98 > found["copy_frame"]["truth"]
    assert found["motion_ratio"]["truth"] == pytest.approx(1)
    assert found["subject_consistency"]["(still reference)"] == pytest.approx(1, abs=1e-5)
    assert (out / "table.md").read_text().count("| dino_i |") >= 1


def test_what_a_still_clip_is_perfect_in_is_compared_at_matched_motion_too_or_not_at_all(out):
    compared = {row["metric"] for row in json.loads((out / "summary.json").read_text())["comparisons"]}
    similar = {"clip_i", "clip_i_person", "dino_i", "dino_i_person"}
    assert {f"{name}{motion}" for name in similar for motion in ("", "_matched")} <= compared
    shown = {"drift_slope", "consistency_1", "consistency_20", "subject_consistency"}
    assert shown <= numbers(out).keys()
    assert not shown & compared


def test_the_base_wins_nothing_where_its_own_motion_is_the_measure(made, out):
    """Its clips match themselves: 1 by construction."""
    assert run.main([*words(made, made / "based", *models(made)), "--base", "blurred"]) == 0
    summary = json.loads((made / "based" / "summary.json").read_text())
    assert summary["metrics"]["motion_matched"]["blurred"]["mean"] == 1
    compared = {row["metric"] for row in summary["comparisons"]}
    assert {"dino_i", "copy_frame"} <= compared
    assert not [name for name in compared if name.endswith("_matched")]
    of_truth = {row["metric"] for row in json.loads((out / "summary.json").read_text())["comparisons"]}
    assert {"motion_matched", "dino_i_matched"} <= of_truth


def test_another_persons_clip_is_the_truths_of_another_reference(out):
    found = numbers(out)["motion"]
    assert found["(another person)"]["i0"] == found["truth"]["i1"]
    assert found["(another person)"]["i2"] == found["truth"]["i0"]


def test_a_second_run_computes_nothing_and_an_interrupted_one_goes_on(made, out, monkeypatch):
    calls: list[int] = []
    original = Backbone.pictures

    def counted(self, frames):
        calls.append(len(frames))
        return original(self, frames)

    monkeypatch.setattr(Backbone, "pictures", counted)
    again = made / "again"
    shutil.copytree(out, again)
    assert run.main(words(made, again, *models(made))) == 0
    assert calls == []
    assert (again / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()
    files = sorted((again / "features").iterdir())
    for file in files[::2]:
        file.unlink()
    assert run.main(words(made, again, *models(made))) == 0
    assert 0 < len(calls) < len(files)
    assert (again / "table.md").read_bytes() == (out / "table.md").read_bytes()


def test_a_clip_at_half_the_rate_moves_and_drifts_half_as_fast(made, tmp_path):
    frames = read_frames(made / "blurred" / "0.mp4")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    instruments = Instruments(FeatureCache(tmp_path / "features"), dino=Backbone("dino", str(made / "dino")))
    item, found = read_set(made / "set.jsonl")[0], []
    for rate in (16, 8):
        path = tmp_path / f"{rate}.png"
        first.save(path, save_all=True, append_images=rest, duration=1000 / rate)
        found.append(measure(instruments, item, Source(path, ""), still(item)).numbers)
    for name in ("motion", "drift_slope"):
        assert found[1][name] == pytest.approx(found[0][name] / 2, rel=0.02)
        assert found[0][name] != 0


def test_the_study_reads_the_numbers(out):
    found = numbers(out)
    answers = [Answer("r", f"i{index}", f"i{index}", "blurred", "frozen", index % 5 - 2) for index in range(ITEMS)]
    correlated = analyse(answers, {"dino_i": found["dino_i"]})["spearman"]
    assert correlated["dino_i"]["comparisons"] == ITEMS


def test_without_backbones_only_what_needs_none_is_computed(made, tmp_path, capsys):
    systems = [f"{name}={made / name}" for name in ("blurred", "frozen")]
    line = ["--set", str(made / "set.jsonl"), "--videos", *systems, "--out", str(tmp_path / "out")]
    assert run.main(line) == 0
    assert capsys.readouterr().out.endswith(f"The page: {tmp_path / 'out' / 'report.html'}\n")
    assert set(numbers(tmp_path / "out")) == {"motion", "copy_frame"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "CLIP: not run" in text
    assert "a clip that hardly moves" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--base", "none"], "--base is none"),
        (["--batch", "0"], "--batch is 0"),
        (["--dino", "there/is/none"], "--dino there/is/none cannot be loaded (there is no such folder, so"),
        (["--masks", "there_is_none"], "is no folder"),
        (["--masks", ".", "--segmenter", "."], "name one of them"),
        (["--segmenter", "there_is_none"], "there_is_none"),
    ],
)
def test_a_mistake_is_one_line(made, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run.main(words(made, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def without(folder: Path, target: Path, name: str, shape: tuple[int, ...] | None = None) -> Path:
    """A copy of a model's folder without a tensor, or with zeros of another shape in its place."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    del tensors[name]
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_checkpoint_that_is_not_whole_measures_nothing(made, tmp_path):
    """transformers would fill it with random numbers and go on."""
    for kind, name, shape in (
        ("clip", "visual_projection.weight", None),
        ("clip", "text_projection.weight", (3, 3)),
        ("dino", "layernorm.bias", None),
        ("dino", "layernorm.weight", (3,)),
    ):
        folder = without(made / kind, tmp_path / f"{kind}-{name}", name, shape)
        with pytest.raises(InputError, match=f"--{kind} .* lacks {name}"):
            Backbone(kind, str(folder))
    fewer = without(tmp_path / "dino-layernorm.bias", tmp_path / "fewer", "layernorm.weight")
    with pytest.raises(InputError, match=r"lacks layernorm\.bias and 1 more"):
        Backbone("dino", str(fewer))


def test_what_no_feature_depends_on_may_be_missing(made, tmp_path):
    frames = list(read_frames(made / "truth" / "0.mp4")[:2])
    clip = Backbone("clip", str(without(made / "clip", tmp_path / "clip", "logit_scale")))
    assert np.array_equal(clip.pictures(frames), Backbone("clip", str(made / "clip")).pictures(frames))
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")  # DINO's checkpoints have no pooler
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    features = Backbone("dino", str(tmp_path / "vit")).pictures(frames)
    assert np.array_equal(features, Backbone("dino", str(tmp_path / "vit")).pictures(frames))


def test_another_kind_of_model_or_device_is_one_line(made, tmp_path, capsys):
    SiglipConfig().save_pretrained(tmp_path / "siglip")
    for line, said in (
        (["--dino", str(made / "clip")], "is a model of type clip; it must be vit or dinov2"),
        (["--clip", str(made / "dino")], "is a model of type dinov2; it must be clip."),
        (["--clip", str(tmp_path / "siglip")], "is a model of type siglip; it must be clip."),
        (["--clip", str(made / "clip"), "--device", "cudaa"], "device 'cudaa' cannot be used"),
    ):
        assert run.main(words(made, tmp_path / "out", *line)) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_masks_of_another_size_or_missing_are_named(made, tmp_path, capsys):
    shutil.copytree(made / "masks", tmp_path / "masks")
    line = ["--dino", str(made / "dino"), "--masks", str(tmp_path / "masks")]
    shutil.rmtree(tmp_path / "masks" / "blurred" / "0")
    assert run.main(words(made, tmp_path / "out", *line)) == 2
    assert "has no blurred/0.mp4" in capsys.readouterr().err
    write_pictures(tmp_path / "masks" / "blurred" / "0", np.zeros((3, 64, 64), np.uint8))
    assert run.main(words(made, tmp_path / "out", *line)) == 2
    assert "(3, 64, 64)" in capsys.readouterr().err


def test_it_starts_as_a_script():
    script = Path(run.__file__)
    shown = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "--videos" in shown.stdout
