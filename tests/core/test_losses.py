"""The dual-guidance loss: each term over its own tokens, per sample, masked or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.model.losses import dual_guidance_loss, per_sample_error, reconstruction


def tensors(seed, frames=3, batch=2):
    random = torch.Generator().manual_seed(seed)
    video = torch.randn(2, batch, 16, frames, 4, 6, generator=random)
    references = (
        torch.randn(2, batch, 16, 1, 4, 6, generator=random),
        torch.randn(2, batch, 16, 1, 2, 2, generator=random),
    )
    return video, [pair[0] for pair in references], [pair[1] for pair in references]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.floats(0, 10))
def test_it_is_the_sum_of_two_means(seed, weight):
    video, rebuilt, targets = tensors(seed)
    loss = dual_guidance_loss(*video, rebuilt, targets, reference_weight=weight)
    assert loss.total.shape == loss.video.shape == loss.reference.shape == (2,)
    errors = torch.cat([(a - b).square().flatten(1) for a, b in zip(rebuilt, targets, strict=True)], dim=1)
    assert torch.allclose(loss.video, (video[0] - video[1]).square().flatten(1).mean(1))
    assert torch.allclose(loss.reference, errors.mean(1))
    assert torch.allclose(loss.total, loss.video + weight * loss.reference)


def test_the_reference_term_does_not_depend_on_the_clip_length():
    short, long = tensors(0, frames=1), tensors(0, frames=21)
    rebuilt, targets = short[1], short[2]
    terms = [
        dual_guidance_loss(*video, rebuilt, targets, reference_weight=0.1).reference for video in (short[0], long[0])
    ]
    assert torch.equal(*terms)


def test_without_a_reference_only_the_video_counts():
    video, _, _ = tensors(0)
    loss = dual_guidance_loss(*video, reference_weight=0.1)
    assert torch.equal(loss.total, loss.video)
    assert not loss.reference.any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 5))
def test_constant_masks_change_nothing(seed, value):
    video, rebuilt, targets = tensors(seed)
    masks = {
        "video_mask": torch.full((2, 1, 3, 4, 6), value),
        "reference_masks": [torch.full((2, 1, *item.shape[2:]), value) for item in rebuilt],
    }
    plain = dual_guidance_loss(*video, rebuilt, targets, reference_weight=0.3)
    masked = dual_guidance_loss(*video, rebuilt, targets, reference_weight=0.3, **masks)
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(plain, masked, strict=True))


def test_a_mask_selects():
    video, _, _ = tensors(4)
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[:, :, 1, :2] = 1
    expected = (video[0] - video[1])[:, :, 1, :2].square().flatten(1).mean(1)
    loss = dual_guidance_loss(*video, reference_weight=0.0, video_mask=mask)
    assert torch.allclose(loss.video, expected)


def test_an_empty_mask_is_zero_and_has_no_nan_gradient():
    video, _, _ = tensors(4)
    velocity = video[0].requires_grad_()
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[1] = 1
    loss = dual_guidance_loss(velocity, video[1], reference_weight=0.0, video_mask=mask)
    assert loss.video[0] == 0
    loss.total.sum().backward()
    assert velocity.grad.isfinite().all()
    assert not velocity.grad[0].any()
    assert velocity.grad[1].any()


def test_reconstruction_has_no_factor_sigma():
    fed, output = torch.randn(2, 1, 16, 1, 2, 2)
    assert torch.equal(reconstruction(fed, output), fed - output)


def test_half_precision_is_averaged_in_float32():
    value = torch.full((1, 16, 21, 60, 104), 0.1, dtype=torch.bfloat16)
    loss = per_sample_error([value], [torch.zeros_like(value)])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.01, rel=0.01)


def test_what_does_not_match_is_refused():
    video, rebuilt, targets = tensors(0)
    with pytest.raises(ShapeError, match="2 predictions, 1 targets"):
        dual_guidance_loss(*video, rebuilt, targets[:1], reference_weight=0.1)
    with pytest.raises(ShapeError, match="target"):
        dual_guidance_loss(video[0], video[1][:1], reference_weight=0.1)
    with pytest.raises(ShapeError, match="mask"):
        dual_guidance_loss(*video, reference_weight=0.1, video_mask=torch.ones(2, 1, 2, 4, 6))
    with pytest.raises(ShapeError, match="a mask is 1; it must be that of the others, 2"):
        dual_guidance_loss(
            *(torch.zeros(2, 16, 3, 4, 6),) * 2, reference_weight=0.1, video_mask=torch.ones(1, 1, 3, 4, 6)
        )
    one, two = torch.zeros(1, 16, 1, 4, 6), torch.zeros(2, 16, 1, 4, 6)
    with pytest.raises(ShapeError, match="a prediction is 1; it must be that of the others, 2"):
        per_sample_error([two, one], [two, one])
    for clip, reference in ((one, two), (two, one)):
        with pytest.raises(ShapeError, match="batch of reconstructions"):
            dual_guidance_loss(clip, clip, [reference], [reference], reference_weight=0.1)
    with pytest.raises(ShapeError, match="reference_output"):
        reconstruction(rebuilt[0], rebuilt[1])
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="reference_weight"):
            dual_guidance_loss(*video, rebuilt, targets, reference_weight=weight)
