"""What the commands about the shipped model have in common: their options, and the model with its cache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from contextanyone_core.errors import InputError
from training.commands import Parser, output_folder

if TYPE_CHECKING:
    from contextanyone_core.generation.pipeline import GenerationSettings
    from evaluation.shipped.cells import Studio

_SETTINGS = Path(__file__).resolve().parents[2] / "training" / "configs" / "miniature" / "evaluate.yaml"


def parser(prog: str, description: str | None) -> Parser:
    """A parser with the common options."""
    made = Parser(prog=prog, description=description, allow_abbrev=False)
    made.add_argument("--out", type=Path, required=True, help="folder of the results, made if needed")
    made.add_argument("--work", type=Path, default=Path("runs/shipped"), help="cache of measured clips (runs/shipped)")
    made.add_argument("--seed", type=int, default=0, help="which test characters (0)")
    made.add_argument("--count", type=int, default=32, help="how many (32)")
    made.add_argument("--config", type=Path, default=_SETTINGS, help="as of training/evaluate.py; its model and sizes")
    made.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="weights=FOLDER")
    return made


def open_studio(arguments: argparse.Namespace) -> tuple[Studio, GenerationSettings, list[int]]:
    """The model with its cache, the settings that all cells start from, and the test seeds.

    Raises:
        InputError, CheckpointError: an option or a file cannot be used.
    """
    import torch

    from evaluation.shipped.cells import Studio
    from training.evaluation.characters import first_seed
    from training.evaluation.models import load_models, measuring_device
    from training.evaluation.settings import load_settings

    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; it must be at least 0.")
    if not 2 <= arguments.count < 1_000_000:
        raise InputError(f"--count is {arguments.count}; it must be at least 2, below a million.")
    settings = load_settings(arguments.config, arguments.set)
    output_folder("--out", arguments.out)
    work = output_folder("--work", arguments.work)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    settings = settings.settled(measuring_device())
    studio = Studio(load_models(settings), work, settings.batch_size)
    start = first_seed(arguments.seed)
    return studio, settings.generation(), list(range(start, start + arguments.count))
