"""The evaluation: every number on data where it is known, and the whole command on a tiny stack with random weights."""

import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import sentencepiece
import torch
from diffusers import WanVACETransformer3DModel

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import build_image_model, mini_image_config, save_image_encoder
from contextanyone_core.encoders.text import TextEncoder, build_text_model, mini_text_config, save_text_encoder
from contextanyone_core.encoders.vae import build_vae, mini_vae_config, save_vae
from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from training.evaluate import main
from training.evaluation.accuracy import attributes_right, chance, confidence, drift, scene_accuracy, summary
from training.evaluation.characters import CONTRADICTED, neighbour, subjects
from training.evaluation.fidelity import psnr, reconstruction_psnr
from training.evaluation.motion import mean_flow, motion_ratio
from training.evaluation.probe import Probe, ProbeConfig, Reading, save_probe
from training.evaluation.settings import EvaluateSettings, VariantShares, load_settings
from training.settings import PRESETS
from training.world import ATTRIBUTES, TEST_SEED_START

CONFIG = PRESETS / "miniature" / "evaluate.yaml"
SENTENCES = ("A person.", "The same person is waving at the beach at sunset.", "A woman with red hair in the park.")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The five files of a tiny stack, random but for what zero initialisation would hide."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10), model_writer=written, vocab_size=320, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).vocab_size()
    config = replace(ContextAnyoneConfig.tiny(), text_len=256)
    text = mini_text_config(vocabulary) | {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    encoder = TextEncoder(build_text_model(text).eval(), written.getvalue(), config.text_len)
    save_text_encoder(encoder, folder / "text_encoder.safetensors")
    save_transformer(folder / "transformer.safetensors", ContextAnyoneTransformer(config), dtype=torch.float16)
    save_vae(build_vae(mini_vae_config() | {"base_dim": 4}), folder / "vae.safetensors")
    image = mini_image_config() | {"image_size": 16, "hidden_size": 24, "num_attention_heads": 2}
    save_image_encoder(build_image_model(image), folder / "image_encoder.safetensors")
    save_probe(Probe(ProbeConfig(side=32, channels=(8, 8, 8, 8), action_width=8)), folder / "probe.safetensors")
    return folder


def _reading(labels, length):
    read = {name: torch.from_numpy(labels[:, [i]].repeat(length, 1)) for i, name in enumerate(ATTRIBUTES)}
    scene = {name: torch.zeros(len(labels), length, dtype=torch.long) for name in ("place", "light")}
    actions = torch.zeros(len(labels), dtype=torch.long)
    return Reading(read | scene, actions, torch.zeros(len(labels), length, 14, 2))


def test_the_command_writes_every_promised_key(weights, tmp_path, capsys):
    out = tmp_path / "out"
    overrides = [f"weights={weights}", "size=32", "num_frames=5", "steps=2", "batch_size=3", "vae_clips=2"]
    overrides += ["probe_frames=20", "dtype=float32", "vae_dtype=float32"]
    assert main(["--config", str(CONFIG), "--seed", "1", "--count", "4", "--out", str(out), "--set", *overrides]) == 0
    assert "another one's reference" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    for row in ("reference", "text_only", "shuffled_reference", "shuffled_reference_own", "emphasis_0",
                "contradicting_prompt", "vae_round_trip"):  # fmt: skip
        part = metrics["attribute_accuracy"][row]
        assert set(part) == {"mean", "ci95", "per_attribute", "by_frame", "n"}
        assert list(part["per_attribute"]) == list(ATTRIBUTES)
        assert len(part["by_frame"]) == 5
        assert part["ci95"][0] <= part["mean"] <= part["ci95"][1]
    assert metrics["attribute_accuracy"]["reference"]["n"] == 4
    assert metrics["attribute_accuracy"]["text_only"]["n"] == 2
    assert set(metrics["scene_accuracy"]) == {"action", "place", "light"}
    assert {"accuracy", "per_attribute", "by_light"} <= set(metrics["probe"])
    assert {"vae_psnr", "chance", "drift", "motion_ratio", "reconstruction_psnr", "contradiction"} <= set(metrics)
    assert set(metrics["weights"]) == {"transformer", "vae", "text_encoder", "image_encoder", "probe"}
    sheet = cv2.imread(str(out / "contact_sheet.png"))
    assert sheet.shape[1] == 11 * (128 + 4)
    assert "another one's reference" in (out / "table.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "metrics.json", "table.md"]


def test_phantom_is_scored_with_the_same_keys(weights, tmp_path):
    """A transformer without our parts, its references concatenated: no row for emphasis, no reference stream."""
    config = replace(ContextAnyoneConfig.tiny(), text_len=256, image_dim=None, emphasize=False)
    save_transformer(tmp_path / "transformer.safetensors", ContextAnyoneTransformer(config), dtype=torch.float16)
    for part in ("text_encoder", "vae", "probe"):
        (tmp_path / f"{part}.safetensors").symlink_to(weights / f"{part}.safetensors")
    words = _small("phantom", tmp_path, "guidance_scale=7.5", "reference_scale=5")
    metrics = _measured(words, tmp_path / "out")
    assert {"reference", "text_only", "shuffled_reference", "contradicting_prompt"} <= set(
        metrics["attribute_accuracy"]
    )
    assert "emphasis_0" not in metrics["attribute_accuracy"]
    assert metrics["reconstruction_psnr"] is None
    assert main([*words, "--out", str(tmp_path / "out"), "--set", f"weights={weights}"]) == 2


def test_wan_is_scored_on_what_it_reads_the_prompt(weights, tmp_path):
    metrics = _measured(_small("wan", weights), tmp_path / "out")
    assert set(metrics["attribute_accuracy"]) == {"text_only", "vae_round_trip"}
    assert metrics["attribute_accuracy"]["text_only"]["n"] == 2
    assert set(metrics["scene_accuracy"]) == {"action", "place", "light"}


def test_vace_is_scored_with_the_same_keys(weights, tmp_path, capsys):
    """Through diffusers' pipeline, from a folder in diffusers' form; the seeds are the others'."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 32, "freq_dim": 32, "ffn_dim": 48}
    WanVACETransformer3DModel(**sizes, num_layers=2, vace_layers=[0]).save_pretrained(tmp_path / "transformer")
    for part in ("text_encoder", "vae", "probe"):
        (tmp_path / f"{part}.safetensors").symlink_to(weights / f"{part}.safetensors")
    words = _small("vace", tmp_path)
    metrics = _measured(words, tmp_path / "out")
    assert {"reference", "text_only", "shuffled_reference", "contradicting_prompt"} <= set(
        metrics["attribute_accuracy"]
    )
    assert set(metrics["weights"]) == {"transformer", "vae", "text_encoder", "probe"}
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "out"), "--set", "weights=null"]) == 2
    assert "model is vace, and weights is not given" in capsys.readouterr().err


def _small(model, folder, *more):
    """The words of a tiny evaluation of two characters."""
    small = ["num_frames=5", "steps=1", "batch_size=4", "vae_clips=2", "probe_frames=20", "size=32"]
    small += ["dtype=float32", "vae_dtype=float32"]
    return ["--config", str(CONFIG), "--count", "2", "--set", f"model={model}", f"weights={folder}", *small, *more]


def _measured(words, out):
    assert main([*words, "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "1"], "--count is 1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--set", "stpes=4"], "Did you mean steps"),
        (["--set", "num_frames=16"], "num_frames is 16"),
        (["--set", "sampler=unipcc"], "Did you mean unipc"),
        (["--set", "weights=nowhere"], "weights is nowhere"),
        (["--set", "variants.reference=0"], "variants.reference is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, capsys, arguments, said):
    assert main(["--config", str(CONFIG), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--config", str(CONFIG), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_the_shipped_settings_are_valid():
    settings = load_settings(CONFIG)
    assert settings.variants.counts(200)["reference"] == 200
    with pytest.raises(InputError, match="variants"):
        load_settings(CONFIG, ["variants.reference=2"])


def test_a_variant_without_a_share_is_left_out():
    counts = VariantShares(reference=0.5, text_only=0, emphasis_0=0.01).counts(20)
    assert counts == {"reference": 10, "shuffled_reference": 5, "emphasis_0": 2, "contradicting_prompt": 5}


def test_seeds_give_disjoint_test_characters_and_a_larger_count_adds_to_them():
    one, more, other = subjects(0, 3, 16, 1), subjects(0, 5, 16, 1), subjects(1, 3, 16, 1)
    assert one == more[:3]
    assert not {subject.seed for subject in more} & {subject.seed for subject in other}
    assert all(subject.seed >= TEST_SEED_START and subject.drawn.character.is_test for subject in more + other)
    assert neighbour(2, one) == one[0]


def test_a_contradicting_prompt_claims_other_values():
    for subject in subjects(0, 6, 16, 1):
        contradiction = subject.contradiction
        assert len(set(contradiction.named)) == CONTRADICTED
        assert (contradiction.claimed != subject.labels).all()
        assert contradiction.prompt.later == subject.neutral.later
        assert len(contradiction.prompt.first) > len(subject.neutral.first)


def test_perfect_reading_is_one_and_wrong_frames_show_in_every_number():
    labels = np.stack([subject.labels for subject in subjects(0, 5, 16, 1)])
    reading = _reading(labels, 4)
    assert summary(attributes_right(reading, labels))["mean"] == 1
    assert summary(attributes_right(reading, labels))["ci95"] == [1, 1]
    reading.frames["skin"][:, -1] += 1
    right = attributes_right(reading, labels)
    numbers = summary(right)
    assert numbers["per_attribute"]["skin"] == pytest.approx(3 / 4)
    assert numbers["per_attribute"]["accessory"] == 1
    assert numbers["by_frame"] == pytest.approx([1, 1, 1, 7 / 8])
    assert drift(right) == {"first": 1.0, "last": pytest.approx(7 / 8), "points": pytest.approx(12.5)}


def test_scene_accuracy_counts_actions_by_clip_and_places_by_frame():
    reading = _reading(np.zeros((2, 8), np.int64), 4)
    reading.frames["place"][0, :2] = 1
    labels = np.asarray([[0, 0, 0], [1, 0, 0]])
    assert scene_accuracy(reading, labels) == {"action": 0.5, "place": 0.75, "light": 1.0}


def test_chance_is_one_over_the_number_of_values():
    assert chance()["per_attribute"]["shirt_color"] == pytest.approx(0.1)
    assert chance()["mean"] == pytest.approx(np.mean([1 / len(values) for values in ATTRIBUTES.values()]))


def test_the_interval_contains_the_mean_and_narrows_with_more_characters():
    values = np.random.default_rng(0).random(400)
    wide, narrow = confidence(values[:25]), confidence(values)
    assert narrow[0] < values.mean() < narrow[1]
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])


def test_flow_measures_a_known_shift_and_nothing_in_a_frozen_clip():
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 2)
    points = np.zeros((5, 14, 2), np.float32)
    points[:, 0], points[:, 1] = -0.4, 0.4
    moving = np.stack([np.roll(picture, 2 * index, axis=1) for index in range(5)])
    assert mean_flow(moving, points) == pytest.approx(2, abs=0.2)
    assert mean_flow(np.stack([picture] * 5), points) == pytest.approx(0, abs=1e-3)


def test_the_motion_ratio_is_told_by_action_too():
    told = motion_ratio([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], ["a", "a", "b"])
    assert told == {"ratio": pytest.approx(1), "by_action": {"a": pytest.approx(0.75), "b": pytest.approx(1.5)}}


def test_psnr_of_a_known_error():
    picture = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(picture, picture) == 99
    assert psnr(picture, picture + 10) == pytest.approx(20 * np.log10(25.5))


def test_a_reconstruction_is_compared_with_the_first_frame_and_with_its_input():
    chosen = subjects(0, 3, 16, 1)
    truths = [torch.from_numpy(subject.drawn.video[0]).permute(2, 0, 1) / 127.5 - 1 for subject in chosen]
    numbers = reconstruction_psnr(truths, chosen)
    assert numbers["ground_truth_frame"] == 99
    assert numbers["own_input"] < 30
    assert numbers["n"] == 3


def test_settings_refuse_unknown_keys():
    with pytest.raises(ValueError, match="extra"):
        EvaluateSettings(colour="red")
