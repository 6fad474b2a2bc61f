"""Rotary positions: exactly diffusers' for a plain grid, relative, and free of grids and references."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.errors import ShapeError
from contextanyone_core.model.rope import (
    apply_rotary,
    axis_widths,
    grid_positions,
    in_context_positions,
    reference_positions,
    reference_table,
    rotary_table,
    video_table,
)


def difference(ours, theirs):
    """Largest difference to diffusers' table, whose sines have no sign."""
    (cos, sin), (other_cos, other_sin) = ours, (part[0, :, 0] for part in theirs)
    sign = torch.tensor([-1.0, 1.0]).repeat(sin.shape[1] // 2)
    return float(max((cos - other_cos).abs().max(), (sin * sign - other_sin).abs().max()))


AXIS = st.integers(1, 12)


@settings(max_examples=15, deadline=None)
@given(AXIS, AXIS, AXIS, st.sampled_from([24, 64, 128]))
def test_table_is_exactly_diffusers_for_a_plain_grid(frames, rows, columns, head_dim):
    theirs = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.empty(1, 16, frames, 2 * rows, 2 * columns))
    ours = rotary_table(grid_positions(frames, rows, columns), head_dim)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert difference(ours, theirs) == 0.0


def test_table_is_exactly_diffusers_at_full_size():
    theirs = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.empty(1, 16, 21, 60, 104))
    assert difference(rotary_table(grid_positions(21, 30, 52), 128), theirs) == 0.0
    assert axis_widths(128) == (44, 42, 42)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), AXIS, AXIS, st.floats(0.25, 40))
def test_references_lie_before_the_video_one_gap_apart(index, rows, columns, gap):
    positions = reference_positions(index, rows, columns, gap)
    assert positions.dtype == torch.float64
    assert positions.device.type == "cpu"
    assert (positions[:, 0] == -gap * (index + 1)).all()
    assert torch.equal(positions[:, 1:], grid_positions(1, rows, columns)[:, 1:])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-300, 300), min_size=9, max_size=9), st.integers(0, 1000))
def test_only_distances_enter_attention(numbers, seed):
    first, second, move = torch.tensor(numbers, dtype=torch.float64).view(3, 3)
    q, k = torch.randn(2, 1, 1, 1, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def product(a, b):
        rotated = (apply_rotary(x, rotary_table(at[None], 24)) for x, at in ((q, a), (k, b)))
        return float(torch.mul(*rotated).sum())

    assert product(first, second) == pytest.approx(product(first + move, second + move), abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rotation_keeps_lengths_and_dtype(seed, dtype):
    x = torch.randn(2, 6, 3, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)
    turned = apply_rotary(x, rotary_table(grid_positions(1, 2, 3, first_frame=-257.5), 24))
    assert turned.dtype == dtype
    assert torch.allclose(
        turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=2e-2 if dtype != x.float().dtype else 1e-5
    )


def test_tables_of_both_streams_are_of_their_positions_in_order():
    """Each reference one gap further, in-context references by their number, rows before columns."""
    grids, cpu = ((1, 2, 3), (1, 3, 2)), torch.device("cpu")
    apart = torch.cat([reference_positions(index, *grid[1:], 2.5) for index, grid in enumerate(grids)])
    numbered = torch.cat([in_context_positions(number, *grid) for number, grid in enumerate(((3, 2, 2), *grids))])
    for found, positions in (
        (reference_table(grids, 2.5, 24, cpu), apart),
        (video_table(((3, 2, 2), *grids), 24, cpu), numbered),
        (video_table(((3, 2, 4),), 24, cpu), grid_positions(3, 2, 4)),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, rotary_table(positions, 24), strict=True))


def test_the_origin_is_not_rotated():
    x = torch.randn(1, 1, 2, 24)
    assert torch.equal(apply_rotary(x, rotary_table(torch.zeros(1, 3), 24)), x)


def test_large_positions_stay_apart():
    cos, _ = rotary_table(torch.tensor([[256.0, 0, 0], [257.0, 0, 0]], dtype=torch.float64), 24)
    assert not torch.equal(cos[0], cos[1])


def test_wrong_shapes_are_refused():
    table = rotary_table(grid_positions(1, 2, 2), 24)
    with pytest.raises(ShapeError, match="4 tokens of width 24"):
        apply_rotary(torch.randn(1, 5, 2, 24), table)
    with pytest.raises(ShapeError, match=r"\(tokens, 3\)"):
        rotary_table(torch.zeros(4, 2), 24)
    with pytest.raises(ShapeError, match="at least 1"):
        grid_positions(1, 0, 2)
