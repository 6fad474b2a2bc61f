"""An auxiliary head of the miniature's training that places the driving pose's joints by a middle block's video tokens.

In much noise the velocity's error says little of where a hand is, and there the picture is decided. The head asks for
every joint in every frame, so that blocks read the pose channels before the noise does. As the attributes' heads it is
no part of the model: nothing of it is exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contextanyone_core.shapes import FRAME_STEP
from training.world import KEYPOINTS

_CELLS = 4  # a side of what one token shows
_SPREAD = 0.75  # cells, of the Gaussian around each joint
_PLACED = 1.5  # cells: nearer counts as placed


class JointHead(nn.Module):
    """Maps of the joints in each frame, a cell of a quarter of a token's side each.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.maps = nn.Linear(width, FRAME_STEP * len(KEYPOINTS) * _CELLS**2)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int], joints: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (B,) with a Gaussian around each joint, and the share (B,) placed within 1.5 cells.

        Args:
            tokens: (B, t * i * j, width) on a grid (t, i, j). joints: (B, T, 14, 2), x and y as shares of the picture;
                those outside it do not count.
        """
        frames, rows, columns = grid
        maps = self.maps(self.norm(tokens.float())).float()
        maps = maps.view(len(tokens), frames, rows, columns, FRAME_STEP, len(KEYPOINTS), _CELLS, _CELLS)
        maps = maps.permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5)  # (B, t, 4, 14, y, x)
        maps = torch.cat([maps[:, :1, 0], maps[:, 1:].flatten(1, 2)], dim=1)  # the first token shows one frame
        height, width = maps.shape[-2:]
        places = torch.stack([joints[..., 0] * width, joints[..., 1] * height], dim=-1)
        inside = ((joints >= 0) & (joints < 1)).all(-1).float()
        count = inside.sum((1, 2)).clamp(min=1)
        target = _near(places[..., 1], height)[..., :, None] * _near(places[..., 0], width)[..., None, :]
        entropy = -(target.flatten(-2) * maps.flatten(-2).log_softmax(-1)).sum(-1)
        best = maps.detach().flatten(-2).argmax(-1)
        found = torch.stack([best % width, best // width], dim=-1) + 0.5
        placed = ((found - places).norm(dim=-1) < _PLACED).float()
        return (entropy * inside).sum((1, 2)) / count, (placed * inside).sum((1, 2)) / count


def _near(place: Tensor, cells: int) -> Tensor:
    """Weights (..., cells), of sum 1, of the cells along one axis."""
    middles = torch.arange(cells, device=place.device) + 0.5
    return (-((middles - place[..., None]) ** 2) / (2 * _SPREAD**2)).softmax(-1)
