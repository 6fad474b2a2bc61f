"""Where ZeRO puts the parameters: which elements of which parameter lie in which process's share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """The elements of one parameter in one process's share of an optimizer group.

    Attributes:
        name: of the parameter. rank: of the process. group: of the optimizer, by its index.
        in_share: the elements of the process's share. in_parameter: the same elements of the flattened parameter.
    """

    name: str
    rank: int
    group: int
    in_share: slice
    in_parameter: slice


def cut(groups: Sequence[Mapping[str, int]], share_sizes: Sequence[int]) -> list[Piece]:
    """Lay the parameters of each group end to end and cut that into shares of equal size, the first one's first.

    Args:
        groups: the parameters' numbers of elements by name, for each optimizer group, in the optimizer's order.
        share_sizes: elements of a share, for each group.
    """
    pieces = []
    for group, (sizes, share) in enumerate(zip(groups, share_sizes, strict=True)):
        start = 0
        for name, size in sizes.items():
            stop = start + size
            for rank in range(start // share, -(-stop // share)):
                first = rank * share
                begin, end = max(start, first), min(stop, first + share)
                in_share, in_parameter = slice(begin - first, end - first), slice(begin - start, end - start)
                pieces.append(Piece(name, rank, group, in_share, in_parameter))
            start = stop
    return pieces
