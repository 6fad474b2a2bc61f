"""Checkpoints written by a thread and in shards: what they hold is the state of their step, whoever reads them."""

import threading
from pathlib import Path
from typing import Any

import linear_part
import pytest
import torch
from safetensors.torch import load_file

from contextanyone_core.errors import CheckpointError
from training import saving, state
from training.config import parse_config
from training.distributed import one_process
from training.files import file_sha256
from training.loop import train
from training.saving import Buffers, Pace, Saver, copy_own
from training.state import CheckpointStore, Progress, ShareError, Writers
from training.tensor_files import Rows, TensorFiles, write_hashed

WHOLE = {"a": torch.arange(35.0).view(7, 5), "b": torch.arange(7).half(), "c": torch.tensor(3.0)}


def shares(count: int) -> list[dict[str, Any]]:
    """What each of several processes writes of WHOLE; the first also what is not shared out."""
    found: list[dict[str, Any]] = []
    for rank in range(count):
        rows = {name: WHOLE[name].chunk(count) for name in ("a", "b")}
        starts = {name: sum(len(part) for part in parts[:rank]) for name, parts in rows.items()}
        mine = {n: Rows(parts[rank], starts[n], 7) for n, parts in rows.items() if rank < len(parts)}
        found.append({"model": mine | ({"c": WHOLE["c"]} if rank == 0 else {})})
    return found


def together(count: int, act: Any) -> list[Any]:
    """Act as each of several processes, one thread for each; returns what they gave or raised."""
    barrier, place, results = threading.Barrier(count), [None] * count, [None] * count

    def run(rank: int) -> None:
        def gather(mine: Any) -> list[Any]:
            place[rank] = mine
            barrier.wait(600)
            found = list(place)
            barrier.wait(600)
            return found

        try:
            results[rank] = act(Writers(rank, count, gather))
        except (OSError, CheckpointError) as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    found = write_hashed(tmp_path / "a.safetensors", WHOLE)
    assert found == file_sha256(tmp_path / "a.safetensors")
    read = load_file(tmp_path / "a.safetensors")  # the library's own reader takes it
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in WHOLE.items())


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_shards_of_any_number_of_processes_are_read_by_any_other(tmp_path: Path, count: int) -> None:
    store = CheckpointStore(tmp_path)
    together(count, lambda w: store.save(Progress(step=3), shares(count)[w.rank], w))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003"]
    checkpoint = store.load_latest()
    assert checkpoint is not None
    files = checkpoint.tensors["model"]
    assert set(files) == set(WHOLE)
    for name, tensor in WHOLE.items():
        assert files.shape(name) == tensor.shape
        assert torch.equal(files[name], tensor)
    for start, end in ((0, 7), (2, 5), (3, 3), (6, 7)):
        assert torch.equal(files.rows("a", start, end), WHOLE["a"][start:end])
    for found in together(3, lambda w: store.load_latest(writers=w)):
        assert torch.equal(found.tensors["model"]["a"], WHOLE["a"])


def test_one_damaged_shard_sends_all_processes_to_the_checkpoint_before(tmp_path: Path, caplog: Any) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in (1, 2):
        together(2, lambda w, step=step: store.save(Progress(step=step), shares(2)[w.rank], w))
    shard = tmp_path / "step-00000002/model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0\0")
    assert [found.progress.step for found in together(2, lambda w: store.load_latest(writers=w))] == [1, 1]
    assert "step-00000002 is damaged: " in caplog.text
    assert "model-00002-of-00002.safetensors does not have the checksum" in caplog.text
    with pytest.raises(ValueError, match="not all"):
        TensorFiles([tmp_path / "step-00000001/model-00001-of-00002.safetensors"])


def test_a_process_that_cannot_write_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = CheckpointStore(tmp_path), write_hashed
    together(2, lambda w: store.save(Progress(step=1), shares(2)[w.rank], w))

    def full_disk(path: Path, tensors: Any, after_piece: Any) -> str:
        if "00002-of" in path.name:
            raise OSError(f"{path} cannot be written: No space left on device")
        return write(path, tensors, after_piece)

    monkeypatch.setattr(state, "write_hashed", full_disk)
    first, second = together(2, lambda w: store.save(Progress(step=2), shares(2)[w.rank], w))
    assert isinstance(first, ShareError)
    assert "model-00002-of-00002.safetensors cannot be written" in str(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_copies_take_little_more_memory_than_they_have_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gets memory that a card writes to in powers of two; the copies are the same memory at the next save."""
    monkeypatch.setattr(saving, "_PIECE", 1 << 20)
    shapes = [(33, 260), (0, 3), (), (7,), (130, 260)] * 20
    tensors = {str(index): torch.randn(shape) for index, shape in enumerate(shapes)}
    tensors |= {f"half {name}": tensor.half() for name, tensor in tensors.items()} | {"bytes": torch.arange(5).byte()}
    buffers, held = Buffers(), set[int]()
    for _ in range(2):
        copies: Any = copy_own({"model": tensors}, Writers(), None, buffers)["model"]
        assert all(torch.equal(copies[name], tensor) for name, tensor in tensors.items())
        pieces = {copy.untyped_storage().data_ptr(): copy.untyped_storage().nbytes() for copy in copies.values()}
        assert not held or held == set(pieces)
        held = set(pieces)
        tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    assert all(size.bit_count() == 1 for size in pieces.values())
    own = sum(tensor.nbytes for tensor in tensors.values())
    assert own <= sum(pieces.values()) <= 1.05 * own + (1 << 20)


def make_config(out: Path, **run: Any) -> Any:
    settings = {"name": "t", "steps": 6, "threads": 1, "workers": 0, "out": out, "trackers": [], "sample_every": 100}
    return parse_config({"run": settings | run, "optim": {"warmup_steps": 2}, "part": {"name": "linear"}})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is written is the state of its step: the disk waits here until two more steps are made."""
    train(make_config(tmp_path / "straight", save_every=2, keep_last=3))
    write, loss, made = write_hashed, linear_part.LinearPart.loss, threading.Semaphore(0)

    def slow(path: Path, tensors: Any, after_piece: Any) -> str:
        if path.parent.name.startswith(".contextanyone-step-00000002") and path.stem == "model":
            assert made.acquire(timeout=600)
            assert made.acquire(timeout=600)
        return write(path, tensors, after_piece)

    def counted(self: linear_part.LinearPart, batch: Any, step: int, generator: torch.Generator) -> Any:
        if step in (2, 3):
            made.release()
        return loss(self, batch, step, generator)

    monkeypatch.setattr(state, "write_hashed", slow)
    monkeypatch.setattr(linear_part.LinearPart, "loss", counted)
    train(make_config(tmp_path / "slow", save_every=2, keep_last=3))
    for step in (2, 4, 6):
        for file in ("model", "ema", "optimizer"):
            name = f"checkpoints/step-{step:08d}/{file}.safetensors"
            left, right = (load_file(tmp_path / run / name) for run in ("slow", "straight"))
            assert all(torch.equal(tensor, right[key]) for key, tensor in left.items()), name


def endless(self: Pace, worked: float) -> None:
    """A pause that ends only where the run waits for the checkpoint."""
    assert self._awaited.wait(600)


def break_off(store: CheckpointStore) -> None:
    """Break a run while it writes a checkpoint."""

    def breaks() -> None:
        with Saver(store, one_process()) as saver:
            saver.start(Progress(step=1), {"model": WHOLE})
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        breaks()


def test_the_run_never_waits_for_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next checkpoint, at the end, and after an error."""
    monkeypatch.setattr(Pace, "pause", endless)
    train(make_config(tmp_path / "run", save_every=2))
    store = CheckpointStore(tmp_path / "broken")
    break_off(store)
    for folder, step in ((tmp_path / "run/checkpoints", 6), (tmp_path / "broken", 1)):
        checkpoint = CheckpointStore(folder).load_latest()
        assert checkpoint is not None
        assert checkpoint.progress.step == step


def test_every_piece_is_followed_by_a_pause_that_its_work_and_the_cores_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, rest in ((2, 19.0), (8, 4.0), (100, 0.0)):
        monkeypatch.setattr(saving, "thread_count", lambda cores=cores: cores)
        waited: list[float] = []
        pace = Pace()
        monkeypatch.setattr(pace._awaited, "wait", waited.append)
        pace.pause(0.5)
        assert waited == pytest.approx([0.5 * rest])
    pieces: list[float] = []
    large = {"a": torch.zeros(9 << 20, dtype=torch.uint8), "b": torch.zeros(3)}
    write_hashed(tmp_path / "a.safetensors", large, pieces.append)
    assert len(pieces) == 1 + 1 + 3  # the header, b, and a in pieces of 4 MiB


def test_an_error_between_checkpoints_loses_none(tmp_path: Path) -> None:
    """The one that is being written when the run breaks is completed."""
    store = CheckpointStore(tmp_path)
    break_off(store)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert checkpoint.progress.step == 1


@pytest.mark.parametrize("error", [CheckpointError("no such folder"), KeyError("float4"), MemoryError()])
def test_whatever_a_checkpoint_fails_for_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(path: Path, tensors: Any, after_piece: Any) -> str:
        raise error

    monkeypatch.setattr(state, "write_hashed", fails)
    with pytest.raises(type(error)) as raised:
        train(make_config(tmp_path, save_every=2))
    assert raised.value is error
    assert 2 <= len((tmp_path / "log.jsonl").read_text().splitlines()) < 6
    assert not list((tmp_path / "checkpoints").iterdir())


def test_one_without_memory_for_its_copies_leaves_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(tensors: Any, writers: Writers, stream: Any, buffers: Any) -> Any:
        if writers.rank == 1:
            raise MemoryError
        return tensors

    monkeypatch.setattr(saving, "copy_own", copied)

    def saved(writers: Writers) -> Exception | None:
        saver = Saver(CheckpointStore(tmp_path / "checkpoints"), one_process())
        saver._write(Progress(step=1), shares(2)[writers.rank], None, writers)
        assert saver._copied.is_set()
        return saver._error

    first, second = together(2, saved)
    assert isinstance(first, ShareError)
    assert isinstance(second, MemoryError)
    assert not (tmp_path / "checkpoints").exists()
