"""In which precision a run computes: what `precision: auto` is on the devices of its processes."""

import logging
from pathlib import Path

import torch

from contextanyone_core.runtime.processor import SLOW_HERE, is_slow
from training.config import TrainConfig, load_config
from training.distributed import World

_LOG = logging.getLogger(__name__)


def settle_precision(config: TrainConfig, world: World, saved: Path | None) -> TrainConfig:
    """The configuration with `fp32` or `bf16` in place of `auto`; the log states which, and warns where bf16 is slow.

    `auto` is what the run began with, else bf16 if every process's device computes in it. All processes must call.

    Args:
        saved: the run's own config.yaml where it goes on; None is a new run.
    """
    slow = world.any(is_slow(torch.bfloat16, world.device))[0]
    precision = config.precision
    if precision == "auto" and saved is not None and saved.is_file():
        precision = load_config(saved).precision
    if precision == "auto":
        precision = "fp32" if slow else "bf16"
    if world.first and config.precision == "auto":
        _LOG.info("precision: auto is %s here.", precision)
    if world.first and precision == "bf16" and slow:
        _LOG.warning("precision is bf16, %s", SLOW_HERE)
    return config.model_copy(update={"precision": precision})
