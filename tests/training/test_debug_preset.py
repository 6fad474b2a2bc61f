"""The debug preset: as short as documented, and it runs."""

import json
from pathlib import Path

from training.config import load_config
from training.settings import presets
from training.train import main

PRESET = next(path for path in presets() if path.name == "debug.yaml")


def test_it_has_what_a_first_look_needs() -> None:
    run = load_config(PRESET).run
    assert run.steps >= 40
    assert run.save_every == 5
    assert run.sample_every < run.steps


def test_it_runs_and_goes_on(tmp_path: Path) -> None:
    """A few of its steps, on fewer pairs; a checkpoint is kept and the samples are there."""
    changes = [f"run.out={tmp_path / 'run'}", f"part.pools={tmp_path / 'pools'}", "part.pairs=4", "run.trackers=[]"]
    changes += ["run.save_every=1", "run.sample_every=2"]
    for steps in (1, 2):
        assert main(["--config", str(PRESET), "--set", *changes, f"run.steps={steps}"]) == 0
    out = tmp_path / "run"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert (out / "checkpoints/latest").read_text() == "step-00000002\n"
    assert list((out / "samples/step-00000002").glob("*.png"))
    assert (out / "export/transformer.safetensors").is_file()
