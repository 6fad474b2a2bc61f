"""How ZeRO's shares are cut, without DeepSpeed: every element of a parameter is in one process's share."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.zero.pieces import cut
from training.zero.shares import _leaves

SIZES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=3)


@given(SIZES, st.integers(1, 5), st.integers(0, 7))
def test_pieces_are_the_shares_of_the_parameters_laid_end_to_end(
    sizes: list[list[int]], processes: int, padding: int
) -> None:
    groups = [
        {f"{group}.{index}": size for index, size in enumerate(group_sizes)} for group, group_sizes in enumerate(sizes)
    ]
    share_sizes = [-(-sum(group.values()) // processes) + padding for group in groups]
    values = {name: torch.randn(size) for group in groups for name, size in group.items()}
    shares = []
    for group, share in zip(groups, share_sizes, strict=True):
        flat = torch.cat([values[name] for name in group])
        padded = torch.cat([flat, torch.zeros(share * processes - len(flat))])
        shares.append(padded.split(share))
    joined = {name: torch.full_like(value, torch.nan) for name, value in values.items()}
    pieces = cut(groups, share_sizes)
    for piece in pieces:
        assert joined[piece.name][piece.in_parameter].isnan().all()  # no element twice
        joined[piece.name][piece.in_parameter] = shares[piece.group][piece.rank][piece.in_share]
    assert all(torch.equal(joined[name], value) for name, value in values.items())
    assert len({(piece.name, piece.rank) for piece in pieces}) == len(pieces)


def test_the_leaves_of_a_loss_are_the_parameters_that_it_depends_on() -> None:
    used, shared, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    hidden = torch.utils.checkpoint.checkpoint(lambda x: (x * shared).tanh(), used * 2, use_reentrant=False)
    loss = (hidden * shared + unused.detach()).sum()
    assert _leaves(loss) & {id(used), id(shared), id(unused)} == {id(used), id(shared)}
    assert _leaves(torch.ones(1).sum()) == set()
