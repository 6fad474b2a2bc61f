"""A plan as text and tables."""

from __future__ import annotations

from collections.abc import Mapping

from training.data.buckets import BucketPlan
from training.planning.cards import EXPECTED_RATE, GIB, Card
from training.planning.density import quarters
from training.planning.plan import RunPlan
from training.planning.trace import StepShape


def plan_text(plan: RunPlan, cards: Mapping[str, Card]) -> str:
    """The whole plan."""
    parts = [_network(plan), _bucket_table(plan), _step_table(plan), _world_table(plan), _card_table(plan, cards)]
    parts.append(_disk(plan))
    return "\n".join([*parts, _levels(plan)])


def _network(plan: RunPlan) -> str:
    model, config = plan.model, plan.config
    precision = "fp32" if config.precision == "fp32" else "bf16"
    trained, everything = plan.cost.ema / 4e9, plan.parameters / 1e9
    return (
        f"{config.run.name}: width {model.dim}, {model.num_layers} blocks, {everything:.3f} B parameters, "
        f"{trained:.3f} B of them trained; {precision}, {config.optim.optimizer}; "
        f"{config.run.steps} steps on {plan.world} process{'es' if plan.world > 1 else ''}\n{_thawing(plan)}"
    )


def _thawing(plan: RunPlan) -> str:
    """How many parameters are trained when; memory and FLOPs below are those of all, from the first step on."""
    if not plan.settings.train.thaw:
        return ""
    stages = [f"{count / 1e9:.3f} B from step {step}" for step, count in plan.trained().items()]
    return f"Trained: {', '.join(stages)}; every step is counted like the last ones\n"


def _bucket_table(plan: RunPlan) -> str:
    if plan.from_data:
        return "Buckets of the cached rows:\n" + plan.buckets.table()
    return "Buckets that the configuration allows:\n" + _possible_buckets(plan.buckets)


def _possible_buckets(buckets: BucketPlan) -> str:
    costliest = max(buckets.flops.values())
    lines = [f"{'bucket':>14} {'batch':>6} {'TFLOP':>9} {'cost':>6}"]
    for bucket, batch in buckets.batch.items():
        flops = buckets.flops[bucket]
        lines.append(f"{bucket!s:>14} {batch:>6} {flops / 1e12:>9.3f} {flops / costliest:>6.3f}")
    return "\n".join(lines) + "\n"


def _step_table(plan: RunPlan) -> str:
    """FLOPs of the costliest step and memory of the widest, for every kind of activation checkpointing."""
    anchored = plan.settings.anchor == "reference"
    heads = ("recompute", "forward", "backward", "weights", "gradients", "optimizer", "EMA", "activations", "all")
    lines = [
        f"The costliest batch is {_described(plan.shape)} with{'' if anchored else 'out'} a reference on each process, "
        f"the one with the most tokens {_described(plan.widest)}"
        f"{f'; {plan.batches} batches a step' if plan.batches > 1 else ''}",
        "(TFLOP of the former; GiB at the widest moment of either):",
        f"{heads[0]:>11}" + "".join(f"{head:>12}" for head in heads[1:]),
    ]
    for kind, cost in plan.costs.items():
        flops = (cost.forward_flops, cost.backward_flops)
        memory = (cost.weights, cost.gradients, cost.optimizer, cost.ema, cost.activations, cost.peak)
        cells = [f"{value / 1e12:>12.3f}" for value in flops] + [f"{value / GIB:>12.2f}" for value in memory]
        mark = "* " if kind == plan.settings.recompute else "  "
        lines.append(f"{mark}{kind:>9}" + "".join(cells))
    return "\n".join([*lines, "* as configured", ""])


def _described(shape: StepShape) -> str:
    return f"{shape.clips} {'clip' if shape.clips == 1 else 'clips'} of {shape.bucket}"


def _world_table(plan: RunPlan) -> str:
    lines = [f"{'shared by':>22} {'GiB each':>9} {'sent GB':>8} {'between nodes GB':>17}"]
    for way in plan.ways():
        cells = f"{way.name:>22} {way.memory / GIB:>9.1f} {way.within / 1e9:>8.1f} {way.between / 1e9:>17.1f}"
        lines.append(cells)
    return "\n".join(lines) + "\n"


def _card_table(plan: RunPlan, cards: Mapping[str, Card]) -> str:
    lines = [
        f"At {EXPECTED_RATE:.0%} of each card's peak, without communication:",
        f"{'card':>8} {'step s':>9} {'hours':>9} {'GPU-hours':>10}   memory",
    ]
    least = min(way.memory for way in plan.ways())
    for name, card in cards.items():
        rate = card.rate(bf16=plan.config.precision != "fp32")
        hours = plan.gpu_hours(rate)
        room = "fits" if least <= card.memory * GIB else f"needs {least / GIB:.1f} GiB, the card has {card.memory}"
        lines.append(f"{name:>8} {plan.step_seconds(rate):>9.3g} {hours / plan.world:>9.3g} {hours:>10.3g}   {room}")
    return "\n".join(lines) + "\n"


def _disk(plan: RunPlan) -> str:
    """What the run writes; the host memory of offloaded blocks and of a process's share of a checkpoint."""
    size, kept, disk = plan.checkpoint_bytes() / 1e9, plan.config.run.keep_last, plan.disk_bytes()
    entry = plan.entry_bytes(plan.shape.bucket) / 1e6
    rows = f"; the cache's rows at most {disk.cache / 1e9:.1f} GB" if plan.from_data else ""
    blocks = f"Host memory of the offloaded blocks: {plan.cost.host / 1e9:.1f} GB in each process, pinned\n"
    share = f", {size / plan.world:.1f} GB with FSDP2" if plan.world > 1 else ""
    return (
        f"Disk: a checkpoint {size:.1f} GB, {kept} kept and one being written {disk.checkpoints / 1e9:.1f} GB; export "
        f"{disk.export / 1e9:.1f} GB; a cached clip of {plan.shape.bucket} at most {entry:.1f} MB{rows}; in all "
        f"{disk.total / 1e9:.1f} GB{'' if plan.from_data else ' and the cache'}\n"
        f"{blocks if plan.cost.host else ''}"
        f"Host memory while a checkpoint is written: {size:.1f} GB in the process that writes{share}\n"
    )


def _levels(plan: RunPlan) -> str:
    shares = ", ".join(f"{share:.1%}" for share in quarters(plan.levels))
    return f"Noise levels by quarter of sigma, the cleanest first: {shares}\n"
