"""The same run on several processes: memory of each and what it sends, for the usual ways of sharing, by arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.planning.trace import StepCost

NODE = 8  # processes that share fast links


class Share(NamedTuple):
    """One way of sharing: bytes of memory, bytes sent by a process in a step within its node and between nodes."""

    name: str
    memory: int
    within: int
    between: int


def ways_to_share(
    cost: StepCost, model: ContextAnyoneConfig, world: int, batches: int = 1, *, bf16: bool
) -> list[Share]:
    """DDP, FSDP2 over all processes and, on several nodes, HSDP: sharded within a node, copied between nodes.

    Gradients travel in float32. FSDP2 gathers each block once for the forward and once more for the backward pass, or
    once where it keeps what it gathered (`fsdp_reshard_after_forward: false`), in bf16 if the run computes in it, and
    the rest of the network once in float32, as tests/training/test_gathers.py counts. Full nodes of eight are assumed.

    Args:
        cost: of one process alone.
        batches: of a step (`optim.accumulate`), each of which is sent for.
    """
    if world == 1:
        return [Share("one process", cost.peak, 0, 0)]
    trained, nodes = cost.ema, -(-world // NODE)
    reduced = batches * (2 * trained * (world - 1) // world)  # a ring: every byte is sent twice
    ways = [Share("DDP", cost.peak + trained, *_links(reduced, nodes))]
    gathered = gathered_bytes(cost, model, bf16=bf16)
    for passes, name in ((2, f"FSDP2 over {world}"), (1, f"FSDP2 over {world}, kept")):
        sent = batches * _sharded_traffic(cost, gathered, passes, world)
        ways.append(Share(name, sharded(cost, gathered, model, passes, world), *_links(sent, nodes)))
    if nodes > 1:
        within = batches * _sharded_traffic(cost, gathered, 2, NODE)
        between = batches * (2 * trained // NODE * (nodes - 1) // nodes)
        memory = sharded(cost, gathered, model, 2, NODE)
        ways.append(Share(f"HSDP, {nodes} nodes of {NODE}", memory, within, between))
    return ways


class Gathered(NamedTuple):
    """Bytes of all blocks, and of what lies outside them, as FSDP2 gathers them."""

    blocks: int
    rest: int


def gathered_bytes(cost: StepCost, model: ContextAnyoneConfig, *, bf16: bool) -> Gathered:
    """Of the network, LoRA included."""
    network = ContextAnyoneTransformer(model, device="meta")
    inside = sum(parameter.numel() for parameter in network.blocks.parameters())
    rest = 4 * (sum(parameter.numel() for parameter in network.parameters()) - inside)
    blocks = cost.weights - rest
    return Gathered(blocks // 2 if bf16 else blocks, rest)


def sharded(cost: StepCost, gathered: Gathered, model: ContextAnyoneConfig, passes: int, parts: int) -> int:
    """Bytes of one process where weights, gradients, optimizer and EMA are split into `parts`.

    Whole are two blocks at a time, or all where they are gathered in one of the two passes only, and the rest.
    """
    states = cost.weights + cost.ema + cost.optimizer + cost.ema  # all gradients, which are as large as the EMA
    blocks = gathered.blocks if passes == 1 else 2 * gathered.blocks // model.num_layers
    return states // parts + blocks + gathered.rest + cost.activations


def _sharded_traffic(cost: StepCost, gathered: Gathered, passes: int, parts: int) -> int:
    """Of one batch: the gathers, and the gradients once."""
    return (passes * gathered.blocks + gathered.rest + cost.ema) * (parts - 1) // parts


def _links(sent: int, nodes: int) -> tuple[int, int]:
    """A ring over all processes uses the links between nodes as much as those within."""
    return (sent, 0) if nodes == 1 else (sent, sent)
