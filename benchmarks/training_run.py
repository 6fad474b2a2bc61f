"""Training at full size on one card, compared with its plan: random weights, and a cache of made-up clips.

    python -m benchmarks.training_run                            # a card of 80 GB, under ten minutes, 35 GB of disk
    python -m benchmarks.training_run --device cpu --small       # the same code at tiny size: measures nothing

configs/contextanyone_1.3b.yaml on clips of 832x480x81: time of a step and peak memory beside `training/plan.py`, MFU,
what a checkpoint costs the step that saves, `--steps` steps whose loss must fall, and the same step compiled.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import GIB, describe_device, describe_versions
from benchmarks.options import make_folders, tell
from benchmarks.report import markdown_table
from contextanyone_core.atomic_file import write_text
from contextanyone_core.cli.parsing import Parser, device_name, whole
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.runtime.devices import check_device, free_cached
from training.commands import run_command
from training.config import TrainConfig, load_config
from training.data.buckets import Bucket
from training.data.cache import CachedRow, CacheIndex, write_index
from training.data.encode import RowKeys
from training.data.settings import DataSettings
from training.data.shards import Entry, ShardStore, key_of
from training.distributed import World
from training.parts import manifest
from training.planning.cards import CARDS, card_of
from training.planning.plan import clip_tokens, model_config, plan_run
from training.saving import Saver
from training.settings import PRESETS
from training.speed import Speedometer, peak_memory
from training.state import CheckpointStore
from training.trainer import Trainer, build_trainer

_ROWS, _WARM_UP, _MEASURED = 8, 3, 8
_TIME_WITHIN, _MEMORY_WITHIN = 0.25, 0.10  # of the plan


def measure(options: Namespace) -> dict[str, Any]:
    """Measure everything; returns the content of the JSON.

    Raises:
        InputError: the device does not exist, or a folder cannot be made.
        OSError: the disk is full.
    """
    device = torch.device(options.device)
    check_device(device)
    make_folders(options)
    with tempfile.TemporaryDirectory(prefix="contextanyone-training-", dir=options.scratch) as name:
        folder = Path(name)
        config = run_config(folder, options)
        write_clips(config)
        cost = plan_run(config).cost
        card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        rate = (card or CARDS["H100"]).rate(bf16=True)
        tell(f"plan: {cost.peak / GIB:.1f} GiB, {(cost.forward_flops + cost.backward_flops) / rate:.2f} s a step")
        found: dict[str, Any] = {"plan": {"peak_gib": cost.peak / GIB, "listed_card": card is not None}}
        found["plan"]["seconds"] = (cost.forward_flops + cost.backward_flops) / rate
        found |= _eager(config, device, folder / "checkpoints")
        found["compiled"] = _compiled(run_config(folder, options, "part.compile=true"), device)
    described = {"schema": 1, "title": "A training step beside its plan", "versions": describe_versions()}
    described |= {"machine": describe_device(device), "small": options.small, "config": config.to_dict()}
    return described | found | {"judged": _judged(found, device, small=options.small)}


def run_config(folder: Path, options: Namespace, *changes: str) -> TrainConfig:
    """configs/contextanyone_1.3b.yaml on the made-up clips, one clip in a step of one process."""
    size, frames, model = ("64x64", 5, "miniature") if options.small else ("832x480", 81, "wan_1_3b")
    given = {"run.out": folder / "run", "run.steps": options.steps, "run.trackers": "[]", "init.from": "null"}
    given |= {"part.data.manifest": folder / "clips.jsonl", "part.data.cache": folder / "cache", "part.model": model}
    given |= {"part.data.encoders": folder, "part.data.buckets.sizes": f"[{size}]", "part.data.buckets.budget": 1}
    given |= {"part.data.buckets.frames": f"[{frames}]", "part.data.buckets.max_tokens": "null"}
    given |= {"optim.lr": 1e-4, "optim.warmup_steps": 10}  # so that a hundred steps show something
    given |= {"precision": "fp32" if options.device == "cpu" else "bf16"}  # many processors have no bf16
    words = [f"{key}={value}" for key, value in given.items()]
    return load_config(PRESETS / "contextanyone_1.3b.yaml", [*words, *changes])


def write_clips(config: TrainConfig) -> None:
    """A cache of clips that no encoder made: smooth random latents, random texts and CLIP tokens."""
    assert isinstance(config.part, manifest.Settings)
    data, model = config.part.data, model_config(config)
    data.manifest.write_text("clips that no encoder made\n", encoding="utf-8")
    (bucket,) = (Bucket(data.buckets.frames[0], *shape) for shape in data.buckets.shapes())
    generator = torch.Generator().manual_seed(0)
    rows = [_write_row(data, model, clip_tokens(model), bucket, number, generator) for number in range(_ROWS)]
    statistics_of_vae = (model.latents_mean, model.latents_std)
    empty = _random(generator, 1, model.text_dim)
    ShardStore(data.cache / "text").write({"empty": {"text_embeds": empty}})
    write_index(data, CacheIndex(rows, [], {}, "empty", *statistics_of_vae))


def _write_row(
    data: DataSettings,
    model: ContextAnyoneConfig,
    tokens: int,
    bucket: Bucket,
    number: int,
    generator: torch.Generator,
) -> CachedRow:
    def smooth(frames: int, height: int, width: int) -> torch.Tensor:
        coarse = torch.randn(1, model.in_dim, -(-frames // 4), height // 4, width // 4, generator=generator)
        return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0].half()

    frames, *sides = bucket.latents(model)
    clip, picture, text = (key_of(row=number, kind=kind) for kind in ("clip", "reference", "text"))
    reference: Entry = {"latents": smooth(1, *sides)}
    if model.image_dim is not None:
        reference["image_embeds"] = _random(generator, tokens, model.image_dim)
    ShardStore(data.cache / "clip").write({clip: {"latents": smooth(frames, *sides)}})
    ShardStore(data.cache / "reference").write({picture: reference})
    ShardStore(data.cache / "text").write(
        {text: {"text_embeds": _random(generator, model.text_len // 2, model.text_dim)}}
    )
    return CachedRow(f"clip {number}", bucket, RowKeys(clip, picture, None, text, text))


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator).half()


def _eager(config: TrainConfig, device: torch.device, checkpoints: Path) -> dict[str, Any]:
    """A whole run of `run.steps`, in which some steps are timed and some save."""
    trainer = _build(config, device)
    losses: list[float] = []
    found: dict[str, Any] = {"eager": _steps(trainer, _WARM_UP + _MEASURED, losses)}
    found["save"] = _save(trainer, checkpoints)
    losses += [record["loss"] for record in _run(trainer, max(config.run.steps - trainer.progress.step, 1))]
    tell(f"loss: {losses[0]:.3f} to {losses[-1]:.3f}")
    return found | {"losses": losses}


def _compiled(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    return _steps(_build(config, device), _WARM_UP + _MEASURED, [])


def _build(config: TrainConfig, device: torch.device) -> Trainer:
    """A trainer with new weights, on a device that holds nothing else."""
    gc.collect()  # of the trainer before, whose parts know each other
    free_cached(device)
    began = time.monotonic()
    trainer = build_trainer(config, None, World(0, 1, device))
    tell(f"built in {time.monotonic() - began:.0f} s")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return trainer


def _run(trainer: Trainer, count: int) -> Iterator[dict[str, Any]]:
    """Steps with references, one after the other, with the speed of each."""
    speed = Speedometer(trainer.part, trainer.device, bf16=True)
    for _ in range(count):
        batch, samples = trainer.part.batch(trainer.progress.step), trainer.progress.samples
        began = time.monotonic()
        record = trainer.step(batch)
        seconds = time.monotonic() - began
        yield (
            record | {"seconds": seconds} | speed.describe([batch], record, trainer.progress.samples - samples, seconds)
        )


def _steps(trainer: Trainer, count: int, losses: list[float]) -> dict[str, Any]:
    """Time, MFU and peak memory; the first steps, which compile and allocate, are not counted. Appends the losses."""
    records = list(_run(trainer, count))
    losses += [record["loss"] for record in records]
    used = [record for record in records[_WARM_UP:] if "reference" in record] or records[_WARM_UP:]
    found = {
        "seconds": statistics.median(record["seconds"] for record in used),
        "first_seconds": records[0]["seconds"],
        "mfu": statistics.median(record["mfu"] for record in used),
        "peak_gib": peak_memory(trainer.device) / GIB,
    }
    tell(f"step {found['seconds']:.3g} s, MFU {found['mfu']:.1%}, peak {found['peak_gib']:.1f} GiB")
    return found


def _save(trainer: Trainer, folder: Path) -> dict[str, float]:
    """What a checkpoint costs: the step during which it is copied, as a ratio to one before, and the whole time.

    The first save allocates the memory of its copies; the second is measured.
    """
    found: dict[str, float] = {}
    with Saver(CheckpointStore(folder), trainer.world) as saver:
        trainer.before_update = saver.wait_for_copies
        for _ in range(2):
            (plain,) = _run(trainer, 1)
            began = time.monotonic()
            saver.start(trainer.progress, trainer.tensors())
            held = time.monotonic() - began
            (saving,) = _run(trainer, 1)
            saver.finish()
            found = {"held_seconds": held, "step_ratio": (held + saving["seconds"]) / plain["seconds"]}
            found["whole_seconds"] = time.monotonic() - began
    trainer.before_update = lambda: None
    tell(f"save: {found['whole_seconds']:.1f} s beside the training, its step {found['step_ratio']:.3f} of another")
    return found


def _judged(found: dict[str, Any], device: torch.device, *, small: bool) -> dict[str, bool | None]:
    """Whether the bounds hold; None where nothing can be said: at tiny size, on a CPU, on a card that has no row."""
    plan, eager, losses = found["plan"], found["eager"], found["losses"]
    tenth = max(1, len(losses) // 10)
    falls = statistics.mean(losses[-tenth:]) < statistics.mean(losses[:tenth])
    if small or device.type != "cuda":
        return {"time": None, "memory": None, "loss": None if small else falls}
    time_holds = abs(eager["seconds"] / plan["seconds"] - 1) <= _TIME_WITHIN if plan["listed_card"] else None
    memory_holds = abs(eager["peak_gib"] / plan["peak_gib"] - 1) <= _MEMORY_WITHIN
    return {"time": time_holds, "memory": memory_holds, "loss": falls}


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    plan, rows = found["plan"], []
    for name in ("eager", "compiled"):
        row = found[name]
        rows.append((name, f"{row['seconds']:.3g}", f"{row['mfu']:.1%}", f"{row['peak_gib']:.1f}"))
    rows.append(("plan", f"{plan['seconds']:.3g}", "", f"{plan['peak_gib']:.1f}"))
    save, losses = found["save"], found["losses"]
    words = {True: "yes", False: "no", None: "not judged"}
    judged = ", ".join(f"{name}: {words[held]}" for name, held in found["judged"].items())
    return "\n".join(
        [
            f"# {found['title']}\n",
            markdown_table(("step", "seconds", "MFU", "peak GiB"), rows),
            f"A checkpoint takes {save['whole_seconds']:.1f} s beside the training; the step that saves takes "
            f"{save['step_ratio']:.3f} of another. Loss over {len(losses)} steps: {losses[0]:.3f} to {losses[-1]:.3f}.",
            f"Within the bounds: {judged}.\n",
        ]
    )


def write_result(options: Namespace) -> None:
    """Measure, and write the JSON and the table."""
    found, out = measure(options), options.out
    write_text(out / "training_run.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "training_run.md", table(found))
    sys.stdout.write(table(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("benchmarks.training_run", lambda: write_result(_options(argv)))


def _options(argv: Sequence[str] | None) -> Namespace:
    parser = Parser(prog="python -m benchmarks.training_run", description=__doc__)
    add = parser.add_argument
    add("--device", type=device_name, default="cuda", help="cuda (default), cuda:1, cpu")
    add("--small", action="store_true", help="tiny network and clips: shows that everything runs")
    add("--steps", type=whole(1, 100_000), default=100, help="of the run whose loss must fall (100)")
    add("--scratch", type=Path, help="for the clips and a checkpoint; the system's own if not given")
    add("--out", type=Path, default="outputs/benchmarks", metavar="FOLDER", help="for the JSON and the table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
