"""The reference cache on another device, in int8: what is kept, and how far it is from what was computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.attention import KeysValues
from contextanyone_core.model.blocks import BlockCache
from contextanyone_core.model.references import ReferenceCache, ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.memory import cache_bytes
from contextanyone_core.runtime.reference_cache import CacheOptions, Int8Tensor, KeptBlocks, keep

CONFIG = ContextAnyoneConfig.tiny()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    made = ContextAnyoneTransformer(CONFIG).eval().requires_grad_(False)
    for parameter in made.parameters():
        if not parameter.any():
            parameter.normal_(std=0.2)  # a new network's velocity is zero
    return made


@pytest.fixture(scope="module")
def cache(network):
    torch.manual_seed(4)
    text = torch.randn(1, CONFIG.text_len, CONFIG.text_dim)
    image = [torch.randn(1, 5, CONFIG.image_dim)]
    with torch.no_grad():
        return network.encode_references(ReferenceInputs([torch.randn(1, 16, 1, 4, 6)], text, image))


def tensors(block):
    return [part for pair in block if pair is not None for part in pair]


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 5)),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 3e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_an_element_is_within_half_a_level_of_its_channel(shape, scale, dtype, seed):
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2) * scale).to(dtype)
    kept = Int8Tensor.of(values)
    assert kept.levels.dtype == torch.int8
    bound = values.float().abs().amax(dim=1, keepdim=True) / 254
    assert bool(((kept.restored(torch.float32) - values.float()).abs() <= bound * (1 + 1e-4)).all())
    rounding = torch.finfo(dtype).eps * values.float().abs() + torch.finfo(dtype).tiny
    error = (kept.restored(dtype).float() - values.float()).abs()
    assert bool((error <= bound * 1.01 + rounding).all())


@pytest.mark.parametrize("dtype", ["default", "int8"])
def test_the_video_reads_what_is_kept(network, cache, dtype):
    torch.manual_seed(5)
    given = torch.randn(2, 16, 2, 4, 6), torch.tensor([700.0, 300.0]), torch.randn(2, CONFIG.text_len, CONFIG.text_dim)
    kept = keep(cache, CacheOptions("cpu", dtype))
    with torch.no_grad():
        wanted, found = (network(*given, cache=one).velocity for one in (cache, kept))
    assert kept.outputs is cache.outputs
    if dtype == "default":
        assert torch.equal(found, wanted)
    else:
        assert 0 < (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_block_after_another_and_twice_is_the_same(cache):
    kept = keep(cache, CacheOptions("cpu", "int8")).blocks
    assert isinstance(kept, KeptBlocks)
    assert len(kept) == CONFIG.num_layers
    again = [kept[1], kept[0], kept[0], kept[1]]
    assert again[1] is again[2], "asked twice, restored once"
    assert all(torch.equal(*pair) for pair in zip(tensors(again[0]), tensors(again[3]), strict=True))
    assert len(kept[:]) == CONFIG.num_layers
    assert [type(block) for block in kept] == [BlockCache] * CONFIG.num_layers


def test_what_is_as_computed_is_left_alone(cache):
    assert keep(cache, CacheOptions()) is cache
    nothing = ReferenceCache([], [])
    assert keep(nothing, CacheOptions("cpu", "int8")) is nothing


def test_absent_branches_stay_absent():
    pair = KeysValues(torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    (block,) = keep(ReferenceCache([BlockCache(pair, None, None)], []), CacheOptions("gpu", "int8")).blocks
    assert (block.emphasize, block.image) == (None, None)


@pytest.mark.parametrize("dtype", ["default", "int8"])
def test_on_a_gpu_it_lies_on_the_cpu_and_a_block_comes_back(dtype):
    with FakeTensorMode():  # the devices of a GPU machine without one
        pair = KeysValues(*(torch.empty(1, 7, 8, dtype=torch.bfloat16, device="cuda") for _ in range(2)))
        kept = keep(ReferenceCache([BlockCache(pair, pair, None)] * 2, []), CacheOptions("cpu", dtype)).blocks
        lying = [part for block in kept.kept for pair in block if pair is not None for part in pair]
        flat = [tensor for part in lying for tensor in (part if isinstance(part, Int8Tensor) else (part,))]
        assert {tensor.device.type for tensor in flat} == {"cpu"}
        assert {(part.device.type, part.dtype) for part in tensors(kept[1])} == {("cuda", torch.bfloat16)}
        here = keep(ReferenceCache([BlockCache(pair, pair, None)], []), CacheOptions("gpu", "int8")).blocks
        assert here.kept[0].self_attn[0].levels.device.type == "cuda"


def test_bytes_on_the_device():
    config = ContextAnyoneConfig.wan_1_3b()
    whole = cache_bytes(config, 1560, 257, 2)
    found = {
        (device, dtype): CacheOptions(device, dtype).device_bytes(whole, config.num_layers, 2)
        for device in ("auto", "gpu", "cpu", "off")
        for dtype in ("default", "int8")
    }
    assert found["gpu", "default"] == found["auto", "default"] == whole
    assert found["cpu", "default"] == found["cpu", "int8"] == 2 * whole // 30
    assert whole / 2 < found["gpu", "int8"] < 0.6 * whole
    assert found["off", "default"] == whole // 30


def test_auto_is_the_gpu_while_everything_fits():
    auto = CacheOptions("auto", "int8")
    assert auto.settled(8, 8) == CacheOptions("gpu", "int8")
    assert auto.settled(9, 8) == CacheOptions("cpu", "int8")
    assert CacheOptions("off").settled(1, 8) == CacheOptions("off")
