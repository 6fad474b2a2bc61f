"""FSDP2 without a whole network in any process: what each builds, reads and exports, and how much of it is held."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_part
import torch
from accelerate import PartialState
from processes import finish, make_config, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from training.config import TrainConfig
from training.distributed import World, full, open_world
from training.loop import _export
from training.parts.base import PartContext
from training.prefetch import no_garbage_in_forks
from training.randomness import seed_globals
from training.saving import Buffers, copy_own
from training.shares import Shares, named_places
from training.state import CheckpointStore, Progress, Writers
from training.trainer import build_trainer

WORLD = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_transformer(path, network, dtype=torch.float16)  # a file's rows become float32
    return path


def built(settings: dict[str, Any], init_from: Path | None, shares: Shares | None) -> tuple[dict[str, Any], Any]:
    """The tensors of a part as one process builds it, or its rows of them; and what is drawn next."""
    seed_globals(3, 0, "init")
    context = PartContext(3, CPU, init_from, shares=shares)
    part = tiny_part.TinyPart(tiny_part.Settings(**settings), context)
    drawn = torch.rand(4)
    modules = part.modules()
    found = named_places(modules) if shares is None else shares.named(modules)
    assert all(parameter.is_meta == (shares is not None) for parameter in part.transformer.parameters())
    return found, drawn


def from_file(config: TrainConfig, path: Path) -> TrainConfig:
    return config.model_copy(update={"init": config.init.model_copy(update={"from_": path})})


LORA = {"train": {"lora": {"rank": 2}}}


@pytest.mark.parametrize(
    ("settings", "starts"),
    [({}, False), ({"emphasize": False}, False), ({}, True), ({"condition": True}, True), (LORA, True)],
    ids=["new", "new without emphasis", "file", "widened", "lora"],
)
def test_shares_are_the_rows_of_what_one_process_builds(settings, starts, start_file):
    init_from = start_file if starts else None
    whole, drawn = built(settings, init_from, None)
    for count in (2, 3):
        parts = [built(settings, init_from, Shares(rank, count)) for rank in range(count)]
        assert all(torch.equal(after, drawn) for _, after in parts)
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([rows[name] for rows, _ in parts]), tensor), name
            assert all(rows[name].numel() <= -(-tensor.shape[0] // count) * tensor[:1].numel() for rows, _ in parts)
        assert all(rows.keys() == whole.keys() for rows, _ in parts)


class Held(TorchDispatchMode):
    """Bytes of the float32 tensors in memory that operations have used, and the most there were at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, found)):
            tensor = leaf._local_tensor if isinstance(leaf, DTensor) else leaf
            if isinstance(tensor, torch.Tensor) and tensor.device == CPU and tensor.dtype == torch.float32:
                storage = tensor.untyped_storage()
                seen = self._found.get(storage._cdata, (None, 0))[1]
                self._found[storage._cdata] = (StorageWeakRef(storage), max(seen, tensor.nbytes))
        self._found = {key: pair for key, pair in self._found.items() if not pair[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._found.values()))
        return found


def _hold(configs: list[TrainConfig], environment: dict[str, str], found: Any) -> None:
    """Build each run, save it, export it; rank 0 puts the most that each process held at the start and the export."""
    PartialState._reset_state()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open_world() as world:
        for config in configs:
            with Held() as start:
                trainer = build_trainer(config, None, world)
            whole = {name: full(parameter).detach() for name, parameter in trainer.trained.items()}
            if world.first:
                alone = build_trainer(config, None, world.alone())
                assert all(torch.equal(whole[name], parameter) for name, parameter in alone.trained.items())
            store = CheckpointStore(config.run.folder / "checkpoints")
            writers = Writers(world.rank, world.size, world.gather)
            store.save(Progress(step=6), copy_own(trainer.tensors(), writers, None, Buffers()), writers)
            checkpoint = store.load_latest(writers=writers)
            with Held() as resumed:
                trainer = build_trainer(config, checkpoint, world)
            with Held() as export:
                _export(trainer, store, config.run.folder / "export")
            held = world.gather((start.most, resumed.most, export.most))
            if world.first:
                found.put(held)


def hold(configs: list[TrainConfig]) -> list[list[tuple[int, int, int]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(WORLD), "ACCELERATE_USE_FSDP": "true"}
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(WORLD)]
    processes = [fork.Process(target=_hold, args=(configs, rank, queue)) for rank in ranks]
    with no_garbage_in_forks():
        for process in processes:
            process.start()
    try:
        return [queue.get(timeout=600) for _ in configs]
    finally:
        finish(processes)


def sizes() -> list[int]:
    """Bytes of the network's tensors."""
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny(), device="meta")
    return [4 * parameter.numel() for parameter in network.parameters()]


def test_no_process_holds_a_whole_network(tmp_path, start_file):
    """At a new start, at one from a file, and at the export: counted in four processes."""
    configs = [
        make_config(tmp_path / "new", {"name": "tiny"}),
        from_file(make_config(tmp_path / "file", {"name": "tiny"}), start_file),
        from_file(make_config(tmp_path / "lora", {"name": "tiny", **LORA}), start_file),
    ]
    held = hold(configs)
    whole, largest = sum(sizes()), max(sizes())
    share = 1.02 * whole / WORLD  # of rows that four processes cannot divide
    at_most = 2 * share + 2 * largest  # kept rows and shards, or shards and their average; a tensor that is drawn
    assert at_most < 0.8 * whole
    for config, processes in zip(configs, held, strict=True):
        assert all(share / 2 < most <= at_most for started, resumed, _ in processes for most in (started, resumed))
        (_, _, first), *others = processes
        assert largest < first <= share + 3 * largest  # its shards, which the export does not touch, and a tensor
        assert [exported for _, _, exported in others] == [0] * (WORLD - 1)
        run = config.run.folder
        alone = tmp_path / f"{run.name} alone"
        build_trainer(config, CheckpointStore(run / "checkpoints").load_latest(optimizer=False)).export(alone)
        files = sorted(path.name for path in alone.iterdir())
        assert files == sorted(path.name for path in (run / "export").iterdir())
        for name in files:
            assert (alone / name).read_bytes() == (run / "export" / name).read_bytes()


def test_the_count_notices_a_whole_network(tmp_path, monkeypatch):
    """As every process built it, and the first exported it, before there were shares."""
    monkeypatch.setattr(World, "shares", lambda self: None)
    (processes,) = hold([make_config(tmp_path / "new", {"name": "tiny"})])
    whole = sum(sizes())
    assert all(started > whole for started, _, _ in processes)
    assert processes[0][2] > 2 * whole


def test_values_that_one_process_cannot_use_end_all(tmp_path, start_file, capfd):
    tensors = load_file(start_file)
    tensors["head.head.bias"][-1] = torch.nan  # of the second process's rows
    broken = tmp_path / "broken.safetensors"
    with safe_open(start_file, "pt") as file:
        save_file(tensors, broken, file.metadata())
    config = from_file(make_config(tmp_path / "run", {"name": "tiny"}, {"steps": 1}), broken)
    finish(start(config, ACCELERATE_USE_FSDP="true"), code=2)
    assert capfd.readouterr().err.count("holds NaN or infinite values in head.head.bias") == 2
