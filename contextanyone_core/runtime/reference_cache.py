"""Where a reference cache is kept between the steps, on the device or the CPU, and in which form, as it is or int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import torch
from torch import Tensor

from ..model.attention import KeysValues
from ..model.blocks import BlockCache
from ..model.references import ReferenceCache

CACHE_DEVICES = ("auto", "gpu", "cpu", "off")
CACHE_DTYPES = ("default", "int8")
_LEVELS = 127


@dataclass(frozen=True)
class CacheOptions:
    """Where and in which form a reference cache is kept.

    Attributes:
        device: one of `CACHE_DEVICES`. `gpu`: where the video is computed. `cpu`: in host memory, each block's part
            copied when its block runs. `off`: nothing is kept, and the references are computed in every pass. `auto`:
            `gpu` if everything fits there, else `cpu`.
        dtype: one of `CACHE_DTYPES`: that of the computation, or int8.
    """

    device: str = "gpu"
    dtype: str = "default"

    def settled(self, needed: int, total: int) -> CacheOptions:
        """The same with `auto` resolved, for a run that needs so many bytes of a device that has `total`."""
        return self if self.device != "auto" else replace(self, device="gpu" if needed <= total else "cpu")

    def device_bytes(self, whole: int, layers: int, dtype_size: int) -> int:
        """Bytes on the device while the video is computed, of a cache of `whole` bytes in the compute dtype.

        A cache on the CPU or in int8 also needs the restored parts of two blocks there: of that in use, and the next.
        """
        if self.device == "off":
            return whole // layers
        parts = 2 * whole // layers
        if self.device == "cpu":
            return parts
        return whole if self.dtype == "default" else whole // dtype_size + parts


class Int8Tensor(NamedTuple):
    """A tensor (B, tokens, C) in int8 with one scale per channel.

    With m the largest magnitude of a channel, an element is restored to within m / 254 (half of a level), before it is
    rounded to the dtype of the computation.
    """

    levels: Tensor  # (B, tokens, C), int8
    scales: Tensor  # (B, 1, C), float32

    @classmethod
    def of(cls, values: Tensor) -> Int8Tensor:
        """Round a tensor (B, tokens, C), symmetrically per channel."""
        scales = values.float().abs().amax(dim=1, keepdim=True) / _LEVELS
        safe = torch.where(scales > 0, scales, torch.ones_like(scales))
        return cls((values.float() / safe).round().to(torch.int8), scales)

    def to(self, device: torch.device) -> Int8Tensor:
        """The same on another device."""
        return Int8Tensor(self.levels.to(device), self.scales.to(device))

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The tensor in the dtype of the computation."""
        return (self.levels.float() * self.scales).to(dtype)


_Kept = Tensor | Int8Tensor
_KeptPair = tuple[_Kept, _Kept]


class _KeptBlock(NamedTuple):
    """A `BlockCache` as it is kept."""

    self_attn: _KeptPair
    emphasize: _KeptPair | None
    image: _KeptPair | None


class KeptBlocks(Sequence[BlockCache]):
    """Keys and values of all blocks in another place or form; a block's part is restored when it is asked for.

    Args:
        blocks: what was computed.
        device: where they are kept.
        int8: whether they are rounded to int8.
    """

    def __init__(self, blocks: Sequence[BlockCache], device: torch.device, *, int8: bool) -> None:
        first = blocks[0].self_attn.values
        self._device, self._dtype = first.device, first.dtype
        self.kept = [_kept_block(block, device, int8=int8) for block in blocks]
        self._last: tuple[int, BlockCache] | None = None

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> BlockCache: ...

    @overload
    def __getitem__(self, index: slice) -> list[BlockCache]: ...

    def __getitem__(self, index: int | slice) -> BlockCache | list[BlockCache]:
        """The part of a block, on the device and in the dtype of the computation."""
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        if self._last is None or self._last[0] != index:
            self._last = None  # freed before the next is copied
            own, emphasize, image = self.kept[index]
            parts = (None if pair is None else self._restored(pair) for pair in (emphasize, image))
            self._last = (index, BlockCache(self._restored(own), *parts))
        return self._last[1]

    def _restored(self, pair: _KeptPair) -> KeysValues:
        moved = [item.to(self._device) for item in pair]
        return KeysValues(*(item.restored(self._dtype) if isinstance(item, Int8Tensor) else item for item in moved))


def keep(cache: ReferenceCache, options: CacheOptions) -> ReferenceCache:
    """The cache, kept as `options` say; `auto` must be settled."""
    if not cache.blocks or options == CacheOptions():
        return cache
    computed = cache.blocks[0].self_attn.values.device
    device = torch.device("cpu") if options.device == "cpu" else computed
    return ReferenceCache(KeptBlocks(cache.blocks, device, int8=options.dtype == "int8"), cache.outputs)


def _kept_block(block: BlockCache, device: torch.device, *, int8: bool) -> _KeptBlock:
    emphasize, image = (None if pair is None else _kept(pair, device, int8=int8) for pair in block[1:])
    return _KeptBlock(_kept(block.self_attn, device, int8=int8), emphasize, image)


def _kept(pair: KeysValues, device: torch.device, *, int8: bool) -> _KeptPair:
    keys, values = pair
    if int8:
        return Int8Tensor.of(keys).to(device), Int8Tensor.of(values).to(device)
    return keys.to(device), values.to(device)
