"""What FSDP2 gathers in a step, counted on two processes: each block once for both streams, in each pass, in bf16."""

from typing import Any

import pytest
import tiny_part
import torch
from processes import difference, finish, in_each, load, make_config, start
from torch.utils._python_dispatch import TorchDispatchMode

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.saving import Buffers, copy_own
from training.state import Writers
from training.tensor_files import Rows
from training.trainer import Trainer

assert tiny_part.__name__  # it lists its part


class Gathers(TorchDispatchMode):
    """The tensors that all-gathers fill, by their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.c10d._allgather_base_.default:
            self.sizes.append(args[0].nbytes)
        return operation(*args, **(kwargs or {}))


def _steps(trainer: Trainer) -> list[list[int]]:
    """What each of two steps gathered, with a reference and without: the bytes of blocks and rest."""
    world, counts = trainer.world, []
    for step in range(2):
        with Gathers() as gathers:
            record = trainer.step(trainer.part.batch(step))
        assert ("reference" in record) == (step == 0)
        counts.append(gathers.sizes)
    with Gathers() as gathers:  # a checkpoint gathers nothing: every process copies its own rows
        writers = Writers(world.rank, world.size, world.gather)
        copies = copy_own(trainer.tensors(), writers, None, Buffers())
    assert gathers.sizes == []
    shards = {file: [rows for rows in named.values() if isinstance(rows, Rows)] for file, named in copies.items()}
    sizes = [sum(rows.tensor.numel() for rows in shards[file]) for file in ("model", "ema", "optimizer")]
    whole = sum(parameter.numel() for parameter in trainer.trained.values())
    assert sizes[:2] == [sizes[0]] * 2
    assert sum(world.total(*sizes[:1])) == whole
    assert max(sizes) <= 1.02 * 2 * whole / world.size
    return counts


@pytest.mark.parametrize(
    ("precision", "recompute", "keeps", "gathers"),
    [("fp32", "none", "true", 2), ("bf16", "full", "true", 2), ("bf16", "none", "false", 1)],
)
def test_every_block_is_gathered_once_for_each_pass(tmp_path, precision, recompute, keeps, gathers):
    config = make_config(tmp_path, {"name": "tiny", "recompute": recompute}).model_copy(update={"precision": precision})
    with_reference, without = in_each(_steps, config, ACCELERATE_USE_FSDP="true", FSDP_RESHARD_AFTER_FORWARD=keeps)
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    blocks = sum(parameter.numel() for parameter in network.blocks.parameters())
    rest = sum(parameter.numel() for parameter in network.parameters()) - blocks
    width = 4 if precision == "fp32" else 2
    for sizes in (with_reference, without):
        assert len(sizes) == 1 + gathers * len(network.blocks)
        padding = 1.02  # of rows that two processes cannot halve
        assert gathers * width * blocks + 4 * rest <= sum(sizes) <= padding * (gathers * width * blocks + 4 * rest)


def test_bf16_shares_equal_whole_networks_in_bf16(tmp_path):
    """DDP casts each float32 weight where it is used, FSDP2 gathers it in bf16; masters are float32 in both."""
    optim = {"lr": 1e-3, "schedule": "constant"}
    found = []
    for name, environment in (("whole", {}), ("shares", {"ACCELERATE_USE_FSDP": "true"})):
        config = make_config(tmp_path / name, {"name": "tiny"}, {"steps": 3}, **optim)
        finish(start(config.model_copy(update={"precision": "bf16"}), **environment))
        found.append(load(tmp_path / name, 3))
    whole, shares = found
    assert all(tensor.dtype == torch.float32 for tensor in shares.tensors["model"].values())
    assert difference(shares.tensors["model"], whole.tensors["model"]) < 1e-2
