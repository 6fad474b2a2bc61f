"""A run on a manifest resumed by another number of processes says which batches change."""

import json
import logging
from pathlib import Path
from typing import Any

from cached_world import BUCKETS, build, settings_for, write_small_world
from processes import finish, make_config, start

from training.config import TrainConfig
from training.loop import train


def config_of(out: Path, data: Any, start_from: Path, steps: int) -> TrainConfig:
    part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1}
    config = make_config(out, part, {"steps": steps})
    return config.model_copy(update={"init": config.init.model_copy(update={"from_": start_from})})


def test_batches_are_recorded_and_changed_ones_are_named(tmp_path: Path, tiny_folder: Path, caplog: Any) -> None:
    buckets = BUCKETS.model_copy(update={"max_tokens": 18})  # a clip and its reference in each process
    data = settings_for(write_small_world(tmp_path / "world", 4), tiny_folder, buckets=buckets)
    assert build(data)
    out, weights = tmp_path / "run", tiny_folder / "transformer.safetensors"
    finish(start(config_of(out, data, weights, 1)))
    state = json.loads((out / "checkpoints/step-00000001/state.json").read_text())
    assert state["progress"]["batches"] == {"48x32x5": 2}
    caplog.set_level(logging.WARNING)
    train(config_of(out, data, weights, 2))
    assert "From step 1 on a step takes another number of clips, of all processes together: 48x32x5 2, now 1." in (
        caplog.text
    )
    caplog.clear()
    train(config_of(out, data, weights, 3))
    assert "another number of clips" not in caplog.text
