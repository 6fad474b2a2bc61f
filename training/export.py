"""Export a run's newest checkpoint, also while it trains: `python training/export.py RUN --out FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, output_folder, run_command

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def export_run(run: Path, out: Path, dtype: str | None = None, *, ema: bool = True, pose_lora: bool = False) -> None:
    """Write the shipped files of a run's newest checkpoint into out, on the CPU. The run's folder is only read.

    What the part is built from must be there as in training: its encoders, `init.from`, and the manifest's cache; a
    pool need not be.

    Args:
        dtype: one of `DTYPES`; None for the part's own, fp16.
        ema: the average of the weights; else the weights themselves.
        pose_lora: write the change of a widened Wan T2V as a LoRA file instead (`training.pose_lora`).

    Raises:
        InputError: run is not the folder of a run, or has no checkpoint yet, or its part has no other dtype, or the
            run is none for a pose LoRA.
    """
    import torch  # late, with all that follows: --help shall be quick

    from training.config import load_config
    from training.distributed import one_process
    from training.pose_lora import export_pose_lora
    from training.state import CheckpointStore
    from training.trainer import build_trainer, run_record

    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is not the folder of a run: it has no config.yaml.")
    checkpoint = CheckpointStore(run / "checkpoints").load_latest(optimizer=False)
    if checkpoint is None:
        raise InputError(f"{run} has no checkpoint yet.")
    output_folder("--out", out)
    trainer = build_trainer(load_config(run / "config.yaml"), checkpoint, one_process().alone())
    chosen = None if dtype is None else getattr(torch, DTYPES[dtype])
    written = out
    if pose_lora:
        record = run_record(trainer.config, trainer.progress, trainer.part) | ({} if ema else {"ema": False})
        with trainer.shown(ema=ema):
            written = export_pose_lora(trainer.part, out, record, chosen or torch.float16)
    else:
        trainer.export(out, chosen, ema=ema)
    sys.stdout.write(f"{written}: step {checkpoint.progress.step}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="export.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/miniature-vae")
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported files")
    parser.add_argument("--dtype", choices=DTYPES, help="of the transformer's files (fp16)")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="the averaged weights (the default), or not"
    )
    parser.add_argument(
        "--pose-lora",
        action="store_true",
        help="of a run that widened Wan T2V: a LoRA file, with which stock Wan T2V follows poses",
    )
    options = parser.parse_args(argv)
    given = {"ema": options.ema, "pose_lora": options.pose_lora}
    return run_command("export.py", lambda: export_run(options.run, options.out, options.dtype, **given))


if __name__ == "__main__":
    sys.exit(main())
