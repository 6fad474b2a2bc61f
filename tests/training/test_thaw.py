"""Parameters that thaw at a step: untouched before it, trained like the rest from it on, exact resume across it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_part
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.config import TrainConfig, parse_config
from training.loop import train
from training.patterns import matches
from training.planning.plan import plan_run
from training.planning.text import plan_text
from training.planning.trace import _numbered
from training.state import Checkpoint, CheckpointStore
from training.trainable import TrainSettings, choose_trained
from training.trainer import build_trainer

assert tiny_part.__name__  # lists its part
THAW = {"blocks.*.ffn.*": 2, "blocks.0.self_attn.*": 4}


def make_config(out: Path, thaw: dict[str, int], optimizer: str = "adamw", **run: Any) -> TrainConfig:
    fixed = {"name": "t", "steps": 6, "save_every": 3, "sample_every": 99, "threads": 1, "workers": 0, "trackers": []}
    optim = {"lr": 1e-3, "warmup_steps": 0, "weight_decay": 0.5, "schedule": "constant", "optimizer": optimizer}
    part = {"name": "tiny", "train": {"only": ["blocks.*"], "thaw": thaw}}
    return parse_config({"run": fixed | {"out": out} | run, "optim": optim, "part": part})


def latest(out: Path) -> Checkpoint:
    checkpoint = CheckpointStore(out / "checkpoints").load_latest()
    assert checkpoint is not None
    return checkpoint


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_has_no_update_no_decay_and_no_state(tmp_path: Path, optimizer: str) -> None:
    trainer = build_trainer(make_config(tmp_path, THAW, optimizer), None)
    for step in range(6):
        before = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
        trainer.step(trainer.part.batch(step))
        waiting = [f"transformer.{pattern}" for pattern, thawed_at in THAW.items() if step < thawed_at]
        for name, parameter in trainer.trained.items():
            frozen = matches(name, waiting)
            assert frozen == torch.equal(parameter, before[name]) or "_img" in name or "emphasize" in name
            if frozen:
                assert not trainer.optimizer.state.get(parameter)
                assert torch.equal(trainer.ema.tensors[name], before[name])


def test_bias_correction_starts_at_the_thaw(tmp_path: Path) -> None:
    trainer = build_trainer(make_config(tmp_path, THAW), None)
    for step in range(6):
        trainer.step(trainer.part.batch(step))
    counts = {"blocks.1.self_attn.q": 6, "blocks.1.ffn.0": 4, "blocks.0.self_attn.q": 2}
    for name, count in counts.items():
        assert trainer.optimizer.state[trainer.trained[f"transformer.{name}.weight"]]["step"] == count


def test_the_gradients_of_what_is_frozen_do_not_count_in_the_norm(tmp_path: Path) -> None:
    """The first step's norm is that of a run which never trains them."""
    thawing = build_trainer(make_config(tmp_path, {"blocks.*.ffn.*": 2}), None)
    without = make_config(tmp_path, {})
    train_settings = TrainSettings(only=("blocks.*",), freeze=("blocks.*.ffn.*",))
    part = without.part.model_copy(update={"train": train_settings})
    frozen = build_trainer(without.model_copy(update={"part": part}), None)
    first, second = (trainer.step(trainer.part.batch(0)) for trainer in (thawing, frozen))
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-6)
    for name, parameter in frozen.trained.items():
        assert torch.equal(parameter, thawing.trained[name])


def test_the_gradients_of_what_is_frozen_are_not_computed(tmp_path: Path) -> None:
    """A step before the thaw has the FLOPs of a run which never trains them, one after it those of all."""
    config = make_config(tmp_path, {})
    kept = TrainSettings(only=("blocks.*",), freeze=("blocks.*.ffn.*",))
    never = config.model_copy(update={"part": config.part.model_copy(update={"train": kept})})
    found = []
    for settings in (make_config(tmp_path, {"blocks.*.ffn.*": 2}), never, config):
        trainer = build_trainer(settings, None)
        found.append([])
        for step in range(4):
            with FlopCounterMode(display=False) as counter:
                trainer.step(trainer.part.batch(step))
            found[-1].append(counter.get_total_flops())
    thawing, without, everything = found
    assert thawing == without[:2] + everything[2:]
    assert without[0] < everything[0]


def test_a_run_cut_around_the_thaw_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train(make_config(tmp_path / "straight", THAW))
    for steps in (1, 2, 3, 5, 6):  # before, at and after a thaw
        train(make_config(tmp_path / "cut", THAW, steps=steps))
    straight, cut = latest(tmp_path / "straight"), latest(tmp_path / "cut")
    for file, tensors in straight.tensors.items():
        assert tensors.keys() == cut.tensors[file].keys()
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, cut.tensors[file][name])] == []


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    train(make_config(tmp_path, THAW, steps=1))
    with pytest.raises(InputError, match=r"other settings \(part\.train\.thaw"):
        train(make_config(tmp_path, THAW | {"blocks.*.ffn.*": 3}))


def test_a_plan_says_what_is_trained_when() -> None:
    network = ContextAnyoneTransformer(ContextAnyoneConfig.miniature(), device="meta")
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    train_settings = {"only": ["blocks.*"], "thaw": THAW}
    part = {"name": "transformer", "num_frames": 1, "size": 32, "explicit_attention": True, "train": train_settings}
    plan = plan_run(parse_config({"run": {"name": "t", "steps": 6}, "part": part}))
    blocks, late, later = (
        sum(size for name, size in sizes.items() if matches(name, patterns))
        for patterns in (["blocks.*"], ["blocks.*.ffn.*"], ["blocks.0.self_attn.*"])
    )
    assert plan.trained() == {0: blocks - late - later, 2: blocks - later, 4: blocks}
    assert plan.cost.ema == 4 * blocks  # memory is that of the widest step, the last ones
    assert "B from step 2" in plan_text(plan, {})


@pytest.mark.parametrize(
    ("pattern", "numbered"),
    [
        ("blocks.*.ffn.0.*", False),
        ("*.emphasize_attn.*", False),
        ("time_embedding.0.*", False),
        ("blocks.1*", True),
        ("blocks.?.ffn.*", True),
        ("blocks.[01].*", True),
        ("*.5.ffn.*", True),
        ("*s.5.*", True),
    ],
)
def test_patterns_that_tell_blocks_apart(pattern: str, numbered: bool) -> None:
    assert _numbered(pattern) == numbered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thaw": {"blocks.9.*": 5}}, r"thaw has the pattern blocks\.9\.\*, which matches nothing that is trained"),
        ({"only": ["head.*"], "thaw": {"blocks.*": 5}}, "which matches nothing that is trained; one is head"),
        ({"thaw": {"*": 5}}, "leaves nothing to train in the first step"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_trained(ContextAnyoneTransformer(ContextAnyoneConfig.tiny()), TrainSettings(**settings))


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        TrainSettings(thaw={"blocks.*": 0})
