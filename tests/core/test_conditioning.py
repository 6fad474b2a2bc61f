"""Preparing reference pictures, the dual encoder, and prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.reference import (
    DualEncoder,
    check_picture,
    clip_picture,
    fit_text_embeds,
    fitted_size,
    on_white,
    pad_picture,
)
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.prompts import TwoStagePrompt, check_text_length

SIDES = st.integers(1, 200)
TARGETS = st.integers(16, 96)


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, high=TARGETS, wide=TARGETS)
def test_padding_never_crops(height: int, width: int, high: int, wide: int) -> None:
    """A black picture stays whole: one black rectangle of the fitted size in the middle, white around it."""
    padded = pad_picture(torch.full((1, 3, height, width), -1.0), (high, wide))
    assert padded.shape == (1, 3, high, wide)
    black = padded[0, 0] < 0
    rows, columns = black.any(1).nonzero().flatten(), black.any(0).nonzero().flatten()
    fitted = fitted_size((height, width), (high, wide))
    assert (len(rows), len(columns)) == fitted
    assert int(black.sum()) == fitted[0] * fitted[1]
    assert (fitted[0] == high) or (fitted[1] == wide)
    assert abs(int(rows[0]) - (high - 1 - int(rows[-1]))) <= 1
    assert abs(int(columns[0]) - (wide - 1 - int(columns[-1]))) <= 1
    assert torch.equal(padded[0, 0][~black], torch.ones(high * wide - int(black.sum())))


@settings(deadline=None, max_examples=60)
@given(height=st.integers(8, 200), width=st.integers(8, 200), high=TARGETS, wide=TARGETS)
def test_padding_keeps_the_aspect(height: int, width: int, high: int, wide: int) -> None:
    fitted = fitted_size((height, width), (high, wide))
    scale = min(high / height, wide / width)
    assert abs(fitted[0] - height * scale) <= 1
    assert abs(fitted[1] - width * scale) <= 1


def test_all_four_corners_survive() -> None:
    picture = torch.full((1, 3, 60, 200), 0.0)
    picture[..., :6, :6] = picture[..., -6:, :6] = picture[..., :6, -6:] = picture[..., -6:, -6:] = -1.0
    padded = pad_picture(picture, (64, 64))[0, 0]
    height = fitted_size((60, 200), (64, 64))[0]
    top = (64 - height) // 2
    for row in (top, top + height - 1):
        for column in (0, 63):
            assert padded[row, column] < -0.5


def test_a_picture_that_fits_is_left_as_it_is() -> None:
    picture = torch.rand(1, 3, 48, 32) * 2 - 1
    assert torch.equal(pad_picture(picture, (48, 32)), picture)
    assert torch.equal(pad_picture(picture, (48, 48))[..., 8:40], picture)


def test_resizing_stays_in_range() -> None:
    sharp = torch.where(torch.rand(1, 3, 20, 20) > 0.5, 1.0, -1.0)
    for size in ((64, 64), (16, 16)):
        assert pad_picture(sharp, size).abs().max() <= 1


def test_very_wide_and_very_tall_pictures_keep_a_line() -> None:
    for shape, size in (((1, 3, 2, 5000), (1, 64)), ((1, 3, 5000, 2), (64, 1))):
        assert fitted_size((shape[2], shape[3]), (64, 64)) == size
        assert (pad_picture(torch.full(shape, -1.0), (64, 64)) < 0).any()


def test_clip_picture_is_a_padded_square() -> None:
    square = clip_picture(torch.full((1, 3, 40, 20), -1.0), 16)
    assert square.shape == (1, 3, 16, 16)
    assert int((square[0, 0] < 0).sum()) == 16 * 8


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(1, 3, H, W\)"):
        pad_picture(torch.zeros(shape), (16, 16))


class Eye:
    """Encoders that return what they were shown."""

    image_size = 24

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_dual_encoder_shows_each_encoder_its_own_view() -> None:
    picture = torch.rand(1, 3, 30, 50)
    reference = DualEncoder(Eye(), Eye()).encode(picture, (32, 64))
    assert torch.equal(reference.latents, pad_picture(picture, (32, 64))[:, :, None])
    assert reference.image_embeds is not None
    assert torch.equal(reference.image_embeds, clip_picture(picture, 24))
    assert DualEncoder(Eye(), None).encode(picture, (32, 64)).image_embeds is None


def test_dual_encoder_gives_each_view_alone() -> None:
    """A host that learns the video's size later makes the tokens first."""
    picture, encoder = torch.rand(1, 3, 30, 50), DualEncoder(Eye(), Eye())
    whole = encoder.encode(picture, (32, 64))
    tokens = encoder.semantic_tokens(picture)
    assert tokens is not None
    assert whole.image_embeds is not None
    assert torch.equal(tokens, whole.image_embeds)
    assert torch.equal(encoder.latents(picture, (32, 64)), whole.latents)


# Prompts


def test_two_prompts_are_joined_by_one_space() -> None:
    prompt = TwoStagePrompt("A woman.", "She waves.")
    assert prompt.reference_text == "A woman."
    assert prompt.video_text == "A woman. She waves."


@pytest.mark.parametrize("prompt", [TwoStagePrompt("A woman."), TwoStagePrompt("", "A woman.")])
def test_one_prompt_is_read_by_both_streams(prompt: TwoStagePrompt) -> None:
    assert prompt.reference_text == prompt.video_text == "A woman."


@pytest.mark.parametrize(("first", "later"), [("", ""), ("  ", "\n")])
def test_an_empty_prompt_is_refused(first: str, later: str) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        TwoStagePrompt(first, later)


def test_a_prompt_too_long_says_by_how_much() -> None:
    prompt = TwoStagePrompt("one two three", "four five")
    prompt.check_length(lambda text: len(text.split()) + 1, 6)
    with pytest.raises(InputError, match="6 tokens, 2 more than the 4"):
        prompt.check_length(lambda text: len(text.split()) + 1, 4)
    with pytest.raises(InputError, match="The negative prompt has 3 tokens, 1 more"):
        check_text_length("The negative prompt", "bad blurry", lambda text: len(text.split()) + 1, 2)


def test_on_white_keeps_the_subject_and_whitens_the_rest():
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 4:12, 6:18] = 1
    result = on_white(image, mask)
    assert torch.equal(result[..., 12:20, 16:32], image[..., 12:20, 16:32])
    assert torch.equal(result[..., :4, :], torch.ones(1, 3, 4, 48))


@pytest.mark.parametrize("mask", [torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), torch.nan)])
def test_on_white_refuses_masks_that_say_nothing(mask):
    with pytest.raises(InputError, match="mask"):
        on_white(torch.zeros(1, 3, 32, 32), mask)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 0, 32), (3, 32, 32)])
def test_pictures_of_another_batch_or_without_pixels_are_refused(shape):
    for use in (
        check_picture,
        lambda image: on_white(image, torch.ones(1, 1, 8, 8)),
        lambda image: pad_picture(image, (32, 32)),
    ):
        with pytest.raises(ShapeError, match=r"\(1, 3, H, W\)"):
            use(torch.zeros(shape))
    for mask in (torch.ones(2, 1, 8, 8), torch.ones(1, 1, 0, 8)):
        with pytest.raises(ShapeError, match="mask has shape"):
            on_white(torch.zeros(1, 3, 32, 32), mask)


def test_pictures_without_sense_are_refused():
    with pytest.raises(InputError, match="1 x 1 pixels"):
        check_picture(torch.zeros(1, 3, 1, 1))
    with pytest.raises(InputError, match="NaN"):
        check_picture(torch.full((1, 3, 32, 32), torch.nan))
    with pytest.raises(ShapeError, match=r"\(1, 3, H, W\)"):
        check_picture(torch.zeros(1, 4, 32, 32))


def test_text_embeds_of_any_length_become_text_len_rows():
    config = ContextAnyoneConfig.tiny()
    short, long = torch.randn(1, 5, config.text_dim), torch.zeros(1, 512, config.text_dim)
    long[:, : config.text_len] = torch.randn(config.text_len, config.text_dim)
    assert torch.equal(fit_text_embeds(short, config)[:, :5], short)
    assert fit_text_embeds(short, config)[:, 5:].abs().sum() == 0
    assert torch.equal(fit_text_embeds(long, config), long[:, : config.text_len])


def test_padding_between_joined_prompts_is_left_out():
    config = ContextAnyoneConfig.tiny()
    one, two = torch.randn(1, 3, config.text_dim), torch.randn(1, 4, config.text_dim)
    padding = torch.zeros(1, config.text_len, config.text_dim)
    fitted = fit_text_embeds(torch.cat((one, padding, two, padding), 1), config)
    assert torch.equal(fitted[:, :7], torch.cat((one, two), 1))
    assert not fitted[:, 7:].any()
    full = torch.ones(1, config.text_len, config.text_dim)
    with pytest.raises(InputError, match=f"The negative prompt has {config.text_len + 4} tokens, 4 more"):
        fit_text_embeds(torch.cat((full, padding, two), 1), config, "The negative prompt")


def test_text_of_another_encoder_or_too_long_is_refused():
    config = ContextAnyoneConfig.tiny()
    with pytest.raises(ShapeError, match="gives 48 channels, the model wants 32"):
        fit_text_embeds(torch.zeros(1, 12, 48), config)
    for shape in ((12, config.text_dim), (config.text_dim,), ()):
        with pytest.raises(ShapeError, match=r"needed is \(B, L, 32\)"):
            fit_text_embeds(torch.zeros(shape), config)
    with pytest.raises(ShapeError, match=r"umt5_xxl_fp8_e4m3fn_scaled.*umt5-xxl-enc-bf16.*Load CLIP"):
        fit_text_embeds(torch.zeros(1, 12, 48), ContextAnyoneConfig.wan_1_3b())
    long = torch.zeros(1, 40, config.text_dim)
    long[:, : config.text_len + 3] = 1
    with pytest.raises(InputError, match=f"{config.text_len + 3} tokens, 3 more"):
        fit_text_embeds(long, config)
