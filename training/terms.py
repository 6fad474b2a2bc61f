"""The numbers of a step for the log: sums of the loss's terms, read from the device at once and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Sums = dict[str, tuple[float, int]]  # term of the loss: sum, and number of values in it


class BatchResult(NamedTuple):
    """A batch after its backward pass.

    Attributes:
        loss: the mean over its samples, on the device. terms: by name, the sum and the number of values in it.
        own: how many samples it has here. samples: in all processes.
    """

    loss: Tensor
    terms: dict[str, tuple[float | Tensor, int]]
    own: int
    samples: int


class Logged(NamedTuple):
    """One process's contribution to the record of a step.

    Attributes:
        sums: of the terms of the loss, by batch.
        finite: whether all losses and the gradients' norm are.
        ids: the samples of a step that is not finite, where the batches name them.
        unreadable: how many samples the batches lack.
    """

    sums: list[Sums]
    finite: bool
    ids: list[str]
    unreadable: int


def terms_of(metrics: Mapping[str, float | Tensor]) -> dict[str, tuple[float | Tensor, int]]:
    """Sums and numbers of values; a tensor's sum stays on its device."""
    return {
        name: (value.detach().float().sum(), value.numel()) if isinstance(value, Tensor) else (float(value), 1)
        for name, value in metrics.items()
    }


def sums_of(metrics: Mapping[str, float | Tensor]) -> Sums:
    """The same, read at once."""
    return {name: (float(total), count) for name, (total, count) in terms_of(metrics).items()}


def read_step(results: Sequence[BatchResult], norm: Tensor) -> tuple[list[Sums], float]:
    """The sums of the batches' terms, `loss` among them, and the norm, in one copy to the host."""
    found = [norm, *(result.loss for result in results)]
    found += [total for result in results for total, _ in result.terms.values() if isinstance(total, Tensor)]
    device = results[0].loss.device
    read, *values = torch.stack([value.float().to(device, non_blocking=True) for value in found]).tolist()
    losses, others = values[: len(results)], iter(values[len(results) :])
    sums = []
    for loss, result in zip(losses, results, strict=True):
        terms: Sums = {"loss": (loss * result.own, result.own)}
        for name, (total, count) in result.terms.items():
            terms[name] = (next(others) if isinstance(total, Tensor) else total, count)
        sums.append(terms)
    return sums, read


def means(found: Sequence[Sums]) -> dict[str, float]:
    """The means over the samples of all batches and processes; a term counts in the batches that have it.

    The gradient is the mean over the batches (docs/TRAINING_CLUSTER.md, Rules): how many samples a batch has follows
    from its bucket, and a small batch of long clips is as much work as a large one of short clips.
    """
    names = dict.fromkeys(name for sums in found for name in sums)
    having = {name: [sums[name] for sums in found if name in sums] for name in names}
    return {name: sum(total for total, _ in have) / sum(count for _, count in have) for name, have in having.items()}
