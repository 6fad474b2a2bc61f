"""The same run on several processes: memory of each and what it sends, for the usual ways of sharing, by arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from contextanyone_core.config import ContextAnyoneConfig
from training.planning.trace import StepCost

NODE = 8  # processes that share fast links


class Share(NamedTuple):
    """One way of sharing: bytes of memory, bytes sent by a process in a step within its node and between nodes."""

    name: str
    memory: int
    within: int
    between: int


def ways_to_share(cost: StepCost, model: ContextAnyoneConfig, world: int, batches: int = 1) -> list[Share]:
    """DDP, FSDP2 over all processes and, on several nodes, HSDP: sharded within a node, copied between nodes.

    Everything travels in float32, also where a run computes in bf16. FSDP2 gathers weights for the forward and once
    more for the backward pass, two blocks at a time. Full nodes of eight are assumed.

    Args:
        cost: of one process alone.
        batches: of a step (`optim.accumulate`), each of which is sent for.
    """
    if world == 1:
        return [Share("one process", cost.peak, 0, 0)]
    trained, nodes = cost.ema, -(-world // NODE)
    reduced = batches * (2 * trained * (world - 1) // world)  # a ring: every byte is sent twice
    ways = [Share("DDP", cost.peak + trained, *_links(reduced, nodes))]
    sent = batches * _sharded_traffic(cost, world)
    ways.append(Share(f"FSDP2 over {world}", sharded(cost, model, world), *_links(sent, nodes)))
    if nodes > 1:
        within = batches * _sharded_traffic(cost, NODE)
        between = batches * (2 * trained // NODE * (nodes - 1) // nodes)
        ways.append(Share(f"HSDP, {nodes} nodes of {NODE}", sharded(cost, model, NODE), within, between))
    return ways


def sharded(cost: StepCost, model: ContextAnyoneConfig, parts: int) -> int:
    """Bytes of one process where weights, gradients, optimizer and EMA are split into `parts`."""
    states = cost.weights + cost.ema + cost.optimizer + cost.ema  # all gradients, which are as large as the EMA
    gathered = 2 * cost.weights // model.num_layers
    return states // parts + gathered + cost.activations


def _sharded_traffic(cost: StepCost, parts: int) -> int:
    """Of one batch."""
    return (2 * cost.weights + cost.ema) * (parts - 1) // parts


def _links(sent: int, nodes: int) -> tuple[int, int]:
    """A ring over all processes uses the links between nodes as much as those within."""
    return (sent, 0) if nodes == 1 else (sent, sent)
