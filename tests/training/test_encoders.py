"""The mini umT5 and the mini CLIP tower: tokenizer, labelled pairs, losses, a few steps of training, export."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from processes import assert_worker_has_all_but_networks

from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.errors import InputError
from training.parts.base import PartContext
from training.parts.captions_tokenizer import END_ID, PAD_ID, UNKNOWN_ID, train_tokenizer
from training.parts.encoder_data import LABELS, UNKNOWN, Variety, draw_caption, draw_pairs, fit_square
from training.parts.encoder_heads import also_true, contrastive_loss, label_loss
from training.parts.encoders import IMAGE_FILE, TEXT_FILE, EncodersPart, Settings
from training.world import draw_character, draw_scene, neutral_prompts

PLAIN = Variety(0.0, 0.0, 0.0)
TINY = Settings(
    pictures=16,
    tokenizer_captions=300,
    projection=16,
    test_pictures=8,
    text={"d_model": 32, "d_ff": 32, "d_kv": 16, "num_heads": 2, "num_layers": 1},
    image={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
)


def build(settings: Settings = TINY, init_from: Path | None = None) -> EncodersPart:
    torch.manual_seed(0)
    return EncodersPart(settings, PartContext(seed=0, device=torch.device("cpu"), init_from=init_from))


@pytest.fixture(scope="module")
def spiece_model() -> bytes:
    return train_tokenizer(0, 2000, 1000)


@pytest.fixture(scope="module")
def tokenizer(spiece_model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=spiece_model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodersPart, Path]:
    part, folder = build(), tmp_path_factory.mktemp("encoders")
    part.export(folder, {"name": "test", "seed": 0})
    return part, folder


def test_workers_need_no_network(exported):
    assert_worker_has_all_but_networks(exported[0])


def test_tokenizer_has_the_ids_that_both_hosts_expect(tokenizer):
    ids = (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.bos_id())
    assert ids == (PAD_ID, END_ID, UNKNOWN_ID, -1) == (0, 1, 2, -1)


def test_tokenizer_is_the_same_from_the_same_seed():
    assert train_tokenizer(3, 200, 1000) == train_tokenizer(3, 200, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f642",
        "\u4ed6\u5728\u8d70\u8def",
        "a \U0001f9cd\U0001f3fd woman \u5728\u6d77\u6ee9",
        "na\u00efve ümläut",
        "{[(~|@#$%^&*)]}",
    ],
)
def test_tokenizer_knows_every_character(tokenizer, text):
    ids = tokenizer.encode(text)
    assert UNKNOWN_ID not in ids
    assert tokenizer.decode(ids) == text


def test_words_of_the_captions_are_one_token_each_in_any_case(tokenizer):
    text = "A woman with striped teal trousers is dancing at the beach"
    assert len(tokenizer.encode(text)) == len(text.split())
    assert tokenizer.encode(text.upper()) == tokenizer.encode(text)


def test_a_caption_is_labelled_with_what_it_names():
    rng = np.random.default_rng(0)
    for _ in range(200):
        character, scene = draw_character(rng, test=False), draw_scene(rng)
        caption, labels = draw_caption(character, scene, rng)
        named = {
            name: values[label] for (name, values), label in zip(LABELS.items(), labels, strict=True) if label >= 0
        }
        for name in ("shirt_color", "trousers_color", "skin"):
            assert name not in named or named[name] in caption.lower()
        if named.get("place") == "snow":
            assert "snow" in caption
        if "place" not in named:
            assert not any(word in caption for word in ("beach", "park", "city", "room", "snow", "grass", "buildings"))


def test_a_caption_without_scene_tells_none():
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, labels = draw_caption(draw_character(rng, test=False), draw_scene(rng), rng, with_scene=False)
        assert (labels[-3:] == UNKNOWN).all()


def test_pairs_repeat_from_the_same_draws_and_differ_in_scene():
    first, second = (draw_pairs(5, 32, Variety(0.5, 0.5, 0.5), np.random.default_rng(9)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.caption == other.caption
        np.testing.assert_array_equal(one.picture, other.picture)
    frame, reference = draw_pairs(5, 32, PLAIN, np.random.default_rng(9))
    assert (frame.picture_labels[:8] == reference.picture_labels[:8]).all()
    assert (frame.picture_labels[8:] != reference.picture_labels[8:]).all()


def test_a_person_on_white_shows_no_place():
    frame, _ = draw_pairs(5, 32, Variety(1.0, 0.0, 0.0), np.random.default_rng(0))
    assert frame.picture_labels[-2:].tolist() == [UNKNOWN, UNKNOWN]
    assert (frame.picture[0] == 255).all()


def test_fit_square_pads_with_white():
    square = fit_square(np.zeros((32, 16, 3), np.uint8), 16)
    assert square.shape == (16, 16, 3)
    assert (square[:, :4] == 255).all()
    assert (square[:, 4:12] == 0).all()


def test_true_captions_of_others_are_no_negatives():
    captions = torch.tensor([[0, UNKNOWN], [1, UNKNOWN], [0, 2]])
    pictures = torch.tensor([[0, 1], [1, 1], [0, 2]])
    excluded = also_true(captions, pictures)
    assert excluded.tolist() == [[False, False, True], [False, False, False], [False, False, False]]
    loss, found = contrastive_loss(torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0], [0.0, 0.0, 10.0]]), excluded)
    assert found["text_to_image"].tolist() == [1.0, 1.0, 1.0]
    assert torch.isfinite(loss).all()


def test_label_loss_counts_unknown_as_asked():
    logits = [torch.zeros(1, len(values) + 1) for values in LABELS.values()]
    unnamed = torch.full((1, len(LABELS)), UNKNOWN)
    loss, _ = label_loss([scores[:, :-1] for scores in logits], unnamed, unnamed_class=False)
    assert loss.item() == 0.0
    loss, correct = label_loss(logits, unnamed, unnamed_class=True)
    assert loss.item() > 1.0
    assert correct.keys() == LABELS.keys()


def test_batch_is_a_function_of_seed_and_step():
    part = build()
    one, again, other = part.batch(3), part.batch(3), part.batch(4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["pictures"], other["pictures"])
    assert one["pictures"].shape == (16, 64, 64, 3)
    assert one["pictures"].dtype == torch.uint8


def test_a_few_steps_lower_the_loss():
    part = build()
    batch, generator = part.batch(0), torch.Generator()
    optimizer = torch.optim.AdamW([p for group in part.parameter_groups() for p in group["params"]], lr=2e-3)
    losses = []
    for step in range(12):
        loss, metrics = part.loss(batch, step, generator)
        assert loss.shape == (16,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.mean().item())
    assert losses[-1] < losses[0] - 1.0
    assert {"contrastive", "text_to_image", "image_to_text", "text_labels", "image_labels"} <= metrics.keys()


def test_sample_shows_pictures_and_accuracies(tmp_path):
    with torch.no_grad():
        build().sample(7, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["step"] == 7
    assert {f"text.{name}" for name in LABELS} | {f"image.{name}" for name in LABELS} <= metrics.keys()
    assert (tmp_path / "retrieval.png").is_file()
    assert (tmp_path / "captions.txt").read_text().count("\n") == 4


def test_a_sample_of_few_pictures(tmp_path):
    with torch.no_grad():
        build(TINY.model_copy(update={"test_pictures": 4})).sample(0, tmp_path)
    assert (tmp_path / "captions.txt").read_text().count("\n") == 2


def test_hosts_read_what_was_exported(exported):
    part, folder = exported
    text, image = load_text_encoder(folder / TEXT_FILE), load_image_encoder(folder / IMAGE_FILE)
    prompts = [*neutral_prompts(draw_scene(np.random.default_rng(0))), "\u4ed6 \U0001f642"]
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    ours = part.modules()
    tokens = text.tokenize(prompts)
    with torch.no_grad():
        expected = ours["text"](input_ids=torch.tensor([tokens[1]])).last_hidden_state[0]
        images = (pictures + 1) * 127.5
        rounded = images.round().to(torch.uint8).permute(0, 2, 3, 1)
        collated = {
            "pictures": rounded,
            "tokens": torch.tensor([tokens[0]] * 2),
            "mask": torch.ones(2, len(tokens[0])).bool(),
        }
        penultimate = part._pooled(collated)[2]
    embeds = text.encode(prompts)
    assert embeds.shape == (3, 128, 32)
    assert (embeds[1, len(tokens[1]) :] == 0).all()
    torch.testing.assert_close(embeds[1, : len(tokens[1])], expected, atol=1e-2, rtol=1e-2)
    encoded = image.encode(images.round() / 127.5 - 1)
    torch.testing.assert_close(encoded, penultimate, atol=1e-2, rtol=1e-2)


def test_warm_start_takes_both_files_and_the_tokenizer(exported):
    part, folder = exported
    warm = build(init_from=folder / IMAGE_FILE)
    for name, tensor in part.modules()["text"].state_dict().items():
        torch.testing.assert_close(warm.modules()["text"].state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    loss, _ = warm.loss(warm.batch(0), 0, torch.Generator())
    loss.mean().backward()


def test_warm_start_names_the_file_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no text_encoder\.safetensors"):
        build(init_from=tmp_path / IMAGE_FILE)
