"""Rotary position embedding at arbitrary positions; the positions of Gap-RoPE; cached tables of the two streams.

The position of a token is (t, y, x) in float64 on the CPU; never bf16, where 257 becomes 256. The rotation is real
float32 arithmetic, independent of grids and references. For a plain grid the table equals that of diffusers'
`WanRotaryPosEmbed` exactly.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ShapeError

RotaryTable = tuple[Tensor, Tensor]
"""Cosine and signed sine, each float32 (tokens, head_dim); see `rotary_table`."""
Grid = tuple[int, int, int]
"""Number of tokens of a video or picture along time, rows and columns."""


def grid_positions(frames: int, rows: int, columns: int, *, first_frame: float = 0.0) -> Tensor:
    """Positions of a grid of tokens in Wan's order: time, rows, columns.

    Returns:
        float64 (frames * rows * columns, 3) on the CPU: t counts from `first_frame`, y and x from 0.

    Raises:
        ShapeError: an axis has no token.
    """
    if min(frames, rows, columns) < 1:
        raise ShapeError(f"A grid of {frames} x {rows} x {columns} tokens is empty; every axis needs at least 1.")
    axes = [torch.arange(length, dtype=torch.float64, device="cpu") for length in (frames, rows, columns)]
    axes[0] = axes[0] + first_frame
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def reference_positions(index: int, rows: int, columns: int, gap: float) -> Tensor:
    """Positions of reference `index` (from 0): rows and columns from 0 as in the video, at t = -gap * (index + 1).

    Args:
        gap: latent frames between the video and the first reference, and between references; need not be whole.

    Returns:
        float64 (rows * columns, 3) on the CPU.

    Raises:
        ShapeError: an axis has no token.
    """
    # Paper: the side and the size of the gap are not stated. Here references lie before the video, whose own times
    # stay the backbone's 0, 1, ...; only distances enter attention, so this equals a video that starts at the gap.
    # Paper: only a temporal gap is described, so rows and columns are not shifted.
    return grid_positions(1, rows, columns, first_frame=-gap * (index + 1))


def in_context_positions(number: int, frames: int, rows: int, columns: int) -> Tensor:
    """Positions in a stream that holds the video and in-context references: each has a grid from 0, and a number.

    The number is a fourth coordinate (Bernini, arXiv 2605.22344; source ids in ComfyUI): `rotary_table` adds its
    angles, over the whole head, to those of t, y and x.

    Args:
        number: 0 for the video, 1, 2, ... for the references in their order.

    Returns:
        float64 (frames * rows * columns, 4) on the CPU: t, y, x, number.

    Raises:
        ShapeError: an axis has no token.
    """
    grid = grid_positions(frames, rows, columns)
    return torch.cat([grid, torch.full((len(grid), 1), float(number), dtype=torch.float64)], dim=1)


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How many channels of a head carry t, y and x (Wan: 44, 42, 42 of 128)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(positions: Tensor, head_dim: int, theta: float = 1e4) -> RotaryTable:
    """Cosine and signed sine of every token's rotation angles, ready for `apply_rotary`.

    Args:
        positions: (tokens, 3), any real values, or (tokens, 4) with a number (`in_context_positions`); computed in
            float64.
        head_dim: even width of one attention head.

    Returns:
        Two float32 tensors (tokens, head_dim). Each pair of neighbouring channels has one angle a: cos(a), cos(a) in
        the first tensor, -sin(a), sin(a) in the second.

    Raises:
        ShapeError: positions are neither (tokens, 3) nor (tokens, 4).
    """
    if positions.ndim != 2 or positions.shape[1] not in (3, 4):
        raise ShapeError(f"Positions have shape {tuple(positions.shape)}; needed is (tokens, 3) or (tokens, 4).")

    def angles(axis: int, width: int) -> Tensor:
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
        return torch.outer(positions[:, axis].double(), 1.0 / theta**exponents)

    table = torch.cat([angles(axis, width) for axis, width in enumerate(axis_widths(head_dim))], dim=1)
    if positions.shape[1] == 4:
        table = table + angles(3, head_dim)
    cos, sin = table.cos().float(), table.sin().float()
    return torch.stack((cos, cos), dim=-1).flatten(1), torch.stack((-sin, sin), dim=-1).flatten(1)


def video_table(grids: tuple[Grid, ...], head_dim: int, device: torch.device) -> RotaryTable:
    """The table of the video stream: of the video's tokens, then of those of in-context references.

    It is cached until `forget_tables`, as is that of `reference_table`.

    Args:
        grids: of the video and of each in-context reference.

    Raises:
        ShapeError: a grid is empty.
    """
    return _table(grids, None, head_dim, device)


def reference_table(grids: tuple[Grid, ...], gap: float, head_dim: int, device: torch.device) -> RotaryTable:
    """The table of the reference stream: of all references' tokens, one reference after the other.

    Args:
        grids: of each reference.
        gap: as in `reference_positions`.

    Raises:
        ShapeError: a grid is empty.
    """
    return _table(grids, gap, head_dim, device)


def _table(grids: tuple[Grid, ...], gap: float | None, head_dim: int, device: torch.device) -> RotaryTable:
    if torch.compiler.is_compiling():
        return _new_table(grids, gap, head_dim, device)
    return _cached_table(grids, gap, head_dim, device)


def _new_table(grids: tuple[Grid, ...], gap: float | None, head_dim: int, device: torch.device) -> RotaryTable:
    """The table of the video stream (gap None), or of the reference stream."""
    if gap is None and len(grids) == 1:
        positions = grid_positions(*grids[0])
    elif gap is None:
        positions = torch.cat([in_context_positions(number, *grid) for number, grid in enumerate(grids)])
    else:
        parts = [reference_positions(index, rows, columns, gap) for index, (_, rows, columns) in enumerate(grids)]
        positions = torch.cat(parts)
    cos, sin = rotary_table(positions, head_dim)
    return cos.to(device), sin.to(device)


# A training comes back to each of its buckets: by default 20 of clips and 5 of references, 0.33 GiB of tables at full
# size. To make one anew takes a third of a second on two cores, and a copy to the device for which the host waits.
@lru_cache(maxsize=64)
def _cached_table(grids: tuple[Grid, ...], gap: float | None, head_dim: int, device: torch.device) -> RotaryTable:
    """As `_new_table`, and never an inference tensor, so that a training step can use it too."""
    with torch.inference_mode(mode=False):
        return _new_table(grids, gap, head_dim, device)


def forget_tables() -> None:
    """Free the cached rotary tables on all devices: 34 MB for 832 x 480 x 81."""
    _cached_table.cache_clear()


def apply_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate each pair of neighbouring channels by its token's angle: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x: (B, tokens, heads, head_dim); the arithmetic is at least float32, the result has x's dtype.
        table: from `rotary_table`, on x's device.

    Raises:
        ShapeError: the table was made for another number of tokens or another head width.
    """
    cos, sin = table
    if (x.shape[1], x.shape[-1]) != (cos.shape[0], cos.shape[1]):
        raise ShapeError(
            f"The rotary table is for {cos.shape[0]} tokens of width {cos.shape[1]}; "
            f"the tensor has {x.shape[1]} of width {x.shape[-1]}."
        )
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)  # b n h (pairs 2): each pair (a, b) as (b, a)
    return torch.addcmul(x * cos.unsqueeze(-2), swapped, sin.unsqueeze(-2)).to(x.dtype)
