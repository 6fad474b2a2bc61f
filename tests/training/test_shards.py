"""Shards of the cache: read without a mapping, compared with their checksums, damaged ones cost their own entries."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextanyone_core.errors import CheckpointError
from training.data.shards import Entry, ShardStore, key_of


def entry(value: float) -> Entry:
    return {
        "latents": torch.full((4, 3), value, dtype=torch.float16),
        "pose": torch.tensor([value]),
        "no": torch.ones(0),
    }


def filled(folder: Path, count: int = 4) -> tuple[ShardStore, list[str]]:
    store, keys = ShardStore(folder), [key_of(entry=index) for index in range(count)]
    store.write({key: entry(index) for index, key in enumerate(keys)})
    return store, keys


def damage(folder: Path, key: str) -> Path:
    """Turn one bit of an entry over, as a disk may: size and header stay."""
    (shard,) = folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8 : 8 + length])[f"{key}/latents"]["data_offsets"]
    content[8 + length + begin] ^= 1
    shard.write_bytes(content)
    return shard


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    _, keys = filled(tmp_path)
    store = ShardStore(tmp_path)
    assert sorted(store) == sorted(keys)
    for index, key in enumerate(keys):
        found = store.read(key)
        assert all(torch.equal(found[name], tensor) for name, tensor in entry(index).items())
        assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in entry(0).items()}


def test_a_flipped_bit_costs_its_own_entry(tmp_path: Path) -> None:
    _, keys = filled(tmp_path)
    shard = damage(tmp_path, keys[2])
    store = ShardStore(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"{shard.name} is damaged in the entry {keys[2]}: run training/cache.py"
    ):
        store.read(keys[2])
    assert [store.is_whole(key) for key in keys] == [True, True, False, True]
    store.discard([keys[2]])
    assert sorted(ShardStore(tmp_path)) == sorted({*keys} - {keys[2]})
    assert all(store.is_whole(key) for key in {*keys} - {keys[2]})


def test_a_shard_that_goes_away_while_it_is_used_costs_its_own_entries(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    store.write({"other": entry(9)})
    content = shard.read_bytes()
    shard.write_bytes(content[:-3])  # a mapping of it would end the process
    with pytest.raises(CheckpointError, match="is damaged or gone"):
        store.read(keys[0])
    shard.unlink()
    with pytest.raises(CheckpointError, match="is damaged or gone"):
        store.read(keys[3])
    assert store.longest([*keys, "other", "none"], "latents") == 4
    assert torch.equal(store.read("other")["pose"], torch.tensor([9.0]))


def test_an_unreadable_shard_is_left_out_named_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    with caplog.at_level(logging.WARNING):
        store = ShardStore(tmp_path)
    assert str(shard) in caplog.text
    assert len(store) == 0
    store.discard_unreadable()
    assert list(tmp_path.iterdir()) == []


def test_shards_of_older_versions_have_no_checksums(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    save_file(load_file(shard), shard)
    assert torch.equal(ShardStore(tmp_path).read(keys[1])["latents"], store.read(keys[1])["latents"])


def test_no_shard_is_mapped_or_kept_open(tmp_path: Path) -> None:
    for index in range(100):
        ShardStore(tmp_path).write({key_of(entry=index): entry(index)})
    store = ShardStore(tmp_path)
    kept = [store.read(key) for key in store]
    assert len(kept) == 100
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's list of mappings")
    assert str(tmp_path) not in maps.read_text()
    assert not any(
        str(tmp_path) in str(link.readlink())
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink() and link.exists()
    )
