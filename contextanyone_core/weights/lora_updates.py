"""Weight updates as LoRA, LoHa, LoKr and DoRA define them, and their construction from a file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError

_LORA = ("down", "up")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_DORA = ("magnitude", "dora_scale")
_LEAVES = ("weight", "bias", "modulation")


@dataclass(frozen=True)
class LowRank:
    """LoRA's update, scale * up @ down: up (out, rank), down (rank, in); convolution kernels are flattened."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight; a convolution's kernel dimensions are flattened into `in`."""
        return self.up.shape[0], self.down.shape[1]

    def difference(self, weight: Tensor) -> Tensor:
        """The change of `weight` at strength 1, float32, in the weight's shape."""
        return (self.scale * (self.up.float() @ self.down.float())).to(weight.device).view(weight.shape)


@dataclass(frozen=True)
class Hadamard:
    """LoHa's update: scale times the elementwise (Hadamard) product of two low-rank matrices."""

    first: LowRank
    second: LowRank
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """As of `LowRank`."""
        return self.first.shape

    def difference(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        return self.scale * self.first.difference(weight) * self.second.difference(weight)


@dataclass(frozen=True)
class Kronecker:
    """LoKr's update: scale times the Kronecker product of two matrices, each full or low-rank."""

    first: Tensor | LowRank
    second: Tensor | LowRank
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """As of `LowRank`."""
        return self.first.shape[0] * self.second.shape[0], self.first.shape[1] * self.second.shape[1]

    def difference(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        product = torch.kron(_matrix(self.first), _matrix(self.second))
        return (self.scale * product).to(weight.device).view(weight.shape)


@dataclass(frozen=True)
class Dora:
    """DoRA: the updated weight, with each row rescaled to a learned norm.

    Attributes:
        update: update of the direction.
        magnitude: norms of the rows (out, 1) or, in some LyCORIS files, of the columns (1, in); with further
            dimensions of size 1 for a convolution.
    """

    update: LowRank | Hadamard | Kronecker
    magnitude: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """As of `LowRank`."""
        return self.update.shape

    def difference(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        changed = weight.float() + self.update.difference(weight)
        magnitude = self.magnitude.float().to(weight.device)
        summed = [side for side, size in enumerate(magnitude.shape) if size == 1]
        lengths = torch.linalg.vector_norm(changed, dim=summed, keepdim=True)
        factor: Tensor = magnitude / lengths.clamp(min=torch.finfo(torch.float32).eps)
        return changed * factor - weight.float()


Update = LowRank | Hadamard | Kronecker | Dora


@dataclass(frozen=True)
class Built:
    """The update of one module's weight, the differences of its parameters, and the names of unused parts."""

    update: Update | None
    differences: dict[str, Tensor]
    unused: list[str]


def build(
    file: str,
    place: str,
    parts: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    stated_scale: Callable[[int | None], float] | None,
) -> Built:
    """Build the update of one module from its tensors in a file.

    Args:
        file: its name, for messages.
        place: our name of the module or bare parameter.
        parts: the tensors, by the names of `lora_keys`.
        parameters: the transformer's parameters.
        stated_scale: scale by rank (None if the parts have no rank) from the adapter's config; an `alpha` among the
            parts takes precedence.

    Raises:
        CheckpointError: the parts do not fit each other or the transformer, or belong to two methods.
    """
    weight = parameters.get(f"{place}.weight")
    base = None if weight is None else _update(file, place, parts, _scale(parts, stated_scale))
    update: Update | None = base
    used: set[str] = set()
    if base is not None and weight is not None:
        check_update(file, place, base, weight)
        used = {"alpha", *_DORA, *{LowRank: (*_LORA, "up_bias"), Hadamard: _LOHA, Kronecker: _LOKR}[type(base)]}
        if any(part in parts for part in _DORA):
            update = Dora(base, _magnitude(file, place, parts, tuple(weight.shape)))
    differences: dict[str, Tensor] = {}
    for leaf in _LEAVES:
        name = place if leaf == "weight" and place in parameters else f"{place}.{leaf}"
        if leaf in parts and name in parameters:
            differences[name] = parts[leaf]
            used.add(leaf)
    if isinstance(base, LowRank) and "up_bias" in parts:
        if f"{place}.bias" in differences:
            raise CheckpointError(f"{file} changes the bias of {place} by two keys; keep one of the two in a file.")
        differences[f"{place}.bias"] = base.scale * parts["up_bias"].float()
    for name, difference in differences.items():
        check_difference(file, name, difference, parameters.get(name))
    return Built(update, differences, [part for part in parts if part not in used])


def check_update(file: str, name: str, update: Update, weight: Tensor | None) -> None:
    """Check that an update has the size of its weight.

    Raises:
        CheckpointError: the sizes differ; the message names both.
    """
    wanted = tuple(weight.flatten(1).shape) if weight is not None and weight.ndim > 1 else None
    if update.shape != wanted:
        raise CheckpointError(f"{file}: the update of {name} is for {update.shape}, the weight is {wanted}.")


def check_difference(file: str, name: str, difference: Tensor, parameter: Tensor | None) -> None:
    """Check that a difference has the size of its parameter.

    Raises:
        CheckpointError: the sizes differ; the message names both.
    """
    if parameter is None or parameter.numel() != difference.numel():
        needed = None if parameter is None else tuple(parameter.shape)
        given = tuple(difference.shape)
        raise CheckpointError(f"{file}: the difference of {name} is {given}, the parameter is {needed}.")


def _scale(parts: Mapping[str, Tensor], stated: Callable[[int | None], float] | None) -> Callable[[int | None], float]:
    """alpha / rank; 1 if there is no alpha, or no rank (LoKr with two full matrices)."""
    alpha = parts["alpha"].float().reshape(-1) if "alpha" in parts else torch.empty(0)
    if alpha.numel():
        return lambda rank: float(alpha[0]) / rank if rank else 1.0
    return stated or (lambda rank: 1.0)


def _update(
    file: str, place: str, parts: Mapping[str, Tensor], scale: Callable[[int | None], float]
) -> LowRank | Hadamard | Kronecker | None:
    """The update of a weight without DoRA's norms; None if parts are missing."""
    factors = [_lokr_factor(file, place, parts, which) for which in ("lokr_w1", "lokr_w2")]
    whole = {
        "LoRA": all(part in parts for part in _LORA),
        "LoHa": all(part in parts for part in _LOHA),
        "LoKr": all(factor is not None for factor in factors),
    }
    methods = [method for method, held in whole.items() if held]
    if len(methods) > 1:
        raise CheckpointError(f"{file} holds a {' and a '.join(methods)} of {place}; keep one of them in a file.")
    if methods == ["LoRA"]:
        return _low_rank(file, place, parts["down"], parts["up"], scale)
    if methods == ["LoHa"]:
        first, second = (
            _low_rank(file, place, parts[f"hada_w{number}_b"], parts[f"hada_w{number}_a"], lambda rank: 1.0)
            for number in (1, 2)
        )
        if first.shape != second.shape:
            raise CheckpointError(f"{file}: the two factors of {place} are {first.shape} and {second.shape}.")
        return Hadamard(first, second, scale(first.down.shape[0]))
    if methods == ["LoKr"]:
        ranks = [parts[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
        first_factor, second_factor = (factor for factor in factors if factor is not None)
        return Kronecker(first_factor, second_factor, scale(ranks[0] if ranks else None))
    return None


def _low_rank(file: str, place: str, down: Tensor, up: Tensor, scale: Callable[[int | None], float]) -> LowRank:
    if down.ndim < 2 or up.ndim < 2 or not down.shape[0]:
        raise CheckpointError(
            f"{file}: the update of {place} has {tuple(down.shape)} and {tuple(up.shape)} in place of two matrices."
        )
    down, up = down.flatten(1), up.flatten(1)
    if down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{file}: the two matrices of the update of {place} have the ranks {down.shape[0]} "
            f"(down, {tuple(down.shape)}) and {up.shape[1]} (up, {tuple(up.shape)}); both must be the same."
        )
    return LowRank(down, up, scale(down.shape[0]))


def _matrix(factor: Tensor | LowRank) -> Tensor:
    """The factor as one float32 matrix."""
    return factor.float() if isinstance(factor, Tensor) else factor.up.float() @ factor.down.float()


def _lokr_factor(file: str, place: str, parts: Mapping[str, Tensor], which: str) -> Tensor | LowRank | None:
    """One factor of a Kronecker product, full or low-rank; convolution kernels are flattened."""
    if which in parts and parts[which].ndim > 1:
        return parts[which].flatten(1)
    if f"{which}_a" in parts and f"{which}_b" in parts:
        return _low_rank(file, place, parts[f"{which}_b"], parts[f"{which}_a"], lambda rank: 1.0)
    return None


def _magnitude(file: str, place: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """DoRA's norms, broadcastable to a weight of `shape`: PEFT has one per row, LyCORIS one per row or column."""
    if "magnitude" in parts and "dora_scale" in parts:
        raise CheckpointError(f"{file} holds a lora_magnitude_vector and a dora_scale of {place}; keep one of them.")
    given = parts["magnitude"] if "magnitude" in parts else parts["dora_scale"]
    rows, columns = shape[:2]
    of_rows = "magnitude" in parts or given.shape[:1] == (rows,)
    if given.numel() == (rows if of_rows else columns):
        return given.reshape(*((rows, 1) if of_rows else (1, columns)), *[1] * (len(shape) - 2))
    raise CheckpointError(
        f"{file}: DoRA's lengths of {place} are {tuple(given.shape)}, the weight is {shape}; one a row is needed, or "
        "one a column."
    )
