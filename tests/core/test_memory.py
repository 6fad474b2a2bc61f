"""The memory arithmetic against every allocation of a full-size forward pass, run on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.rope import forget_tables
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.memory import cache_bytes, forward_bytes, one_stream_bytes
from contextanyone_core.sampling.reference_modes import REFERENCE_MODES


class PeakOfStorages(TorchDispatchMode):
    """Adds up the storages that are alive after each operation, the given ones (weights) left out."""

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()
        self.ignored = ignored
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.ignored:
                    self.alive[reference.cdata] = (reference, storage.nbytes())
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def measured_peak(config: ContextAnyoneConfig, shape: tuple[int, ...], references: int, dtype: torch.dtype) -> int:
    forget_tables()  # a table of another fake mode must not be met
    with FakeTensorMode(), torch.no_grad():
        model = ContextAnyoneTransformer(config, device="cpu", dtype=dtype).eval()
        text = torch.randn(shape[0], config.text_len, config.text_dim, dtype=dtype)
        latents = torch.randn(shape, dtype=dtype)
        inputs = ReferenceInputs(
            [torch.randn(1, 16, 1, *shape[3:], dtype=dtype) for _ in range(references)],
            text[:1],
            [torch.randn(1, 257, 1280, dtype=dtype) for _ in range(references)],
        )
        weights = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
        tracker = PeakOfStorages({weight.cdata for weight in weights})
        with tracker:
            cache = model.encode_references(inputs) if references else None
            model(latents, torch.zeros(shape[0]), text, cache=cache)
    forget_tables()
    return tracker.peak


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width", "references", "dtype"),
    [
        (1, 21, 60, 104, 0, torch.bfloat16),
        (1, 21, 60, 104, 1, torch.bfloat16),
        (1, 21, 60, 104, 4, torch.bfloat16),
        (2, 9, 60, 104, 1, torch.bfloat16),
        (1, 21, 60, 104, 1, torch.float32),
        (1, 5, 32, 32, 2, torch.bfloat16),
    ],
)
def test_forward_bytes_is_within_20_percent_of_every_allocation(batch, frames, height, width, references, dtype):
    config = ContextAnyoneConfig.wan_1_3b()
    shape = (batch, 16, frames, height, width)
    tokens = references * (height // 2) * (width // 2)
    estimate = forward_bytes(
        config, shape, reference_tokens=tokens, image_tokens=references * 257, dtype_size=dtype.itemsize
    )
    assert estimate == pytest.approx(measured_peak(config, shape, references, dtype), rel=0.2)


@pytest.mark.parametrize(
    ("model", "references", "size"),
    [("refalign", 1, (60, 104)), ("phantom", 4, (60, 104)), ("bernini", 1, (106, 60)), ("bernini", 3, (106, 106))],
)
def test_one_stream_bytes_is_within_20_percent_of_every_allocation(model, references, size):
    config, dtype = replace(ContextAnyoneConfig.wan_1_3b(), emphasize=False, image_dim=None), torch.bfloat16
    shape = (1, 16, 21, 60, 104)
    forget_tables()
    with FakeTensorMode(), torch.no_grad():
        network = ContextAnyoneTransformer(config, device="cpu", dtype=dtype).eval()
        text = torch.randn(1, config.text_len, config.text_dim, dtype=dtype)
        shown = [torch.randn(1, 16, 1, *size, dtype=dtype) for _ in range(references)]
        weights = {StorageWeakRef(parameter.untyped_storage()).cdata for parameter in network.parameters()}
        conditioned = REFERENCE_MODES[model](network, ReferenceInputs(shown, text, []))
        latents, timesteps = torch.randn(shape, dtype=dtype), torch.zeros(1)
        tracker = PeakOfStorages(weights)
        with tracker:
            conditioned.velocity(latents, timesteps, text, with_reference=True)
    forget_tables()
    tokens = references * (size[0] // 2) * (size[1] // 2)
    estimate = one_stream_bytes(config, shape, reference_tokens=tokens, dtype_size=dtype.itemsize)
    assert estimate == pytest.approx(tracker.peak, rel=0.2)


def test_the_cache_of_one_reference_at_832_x_480():
    config = ContextAnyoneConfig.wan_1_3b()
    assert cache_bytes(config, 1560, 0, 2) == 1560 * 1536 * 2 * 4 * 30
