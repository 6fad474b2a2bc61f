"""Plans of personal models: memory is what real steps of their presets allocate, and the prior's passes are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import autocast
from torch.distributed._tools.mem_tracker import MemTracker

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.config import InitSettings, OptimSettings, load_config
from training.data.buckets import Bucket
from training.data.settings import DataSettings
from training.optim import make_optimizer
from training.parts import manifest
from training.parts.objective import prior_step
from training.parts.transformer_base import TransformerTraining
from training.planning.plan import model_config
from training.planning.trace import StepShape, _inputs, planned_loss, run_step


class LoraTracker(MemTracker):
    """torch's, for a network of which only a LoRA is trained, and which a step may run more than once."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.track_external(network)

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)  # frozen weights take none

    def _pre_fw_hook(self, module, inputs):
        if module is self.network and not self._mod_tracker.is_bw:
            self.reset_mod_stats()
        super()._pre_fw_hook(module, inputs)


def own_prior(part, inputs):
    clips, draws, texts = inputs
    return prior_step(part.transformer, clips, draws, texts[0])[0].mean()


STILLS, CLIPS = (StepShape(Bucket(length, 64, 64, 0), count, 0) for length, count in ((1, 5), (9, 2)))


@pytest.mark.parametrize(
    ("preset", "loss", "shape"),
    [
        ("personal_1.3b", planned_loss, STILLS),
        ("personal_1.3b", own_prior, CLIPS),
        ("personal_miniature", planned_loss, CLIPS),
    ],
    ids=["stage 1", "prior", "prior beside and regions"],
)
def test_memory_of_a_personal_models_step(preset, loss, shape):
    """The second of two real steps of a preset at small width, by MemTracker: of either stage, and of the prior's."""
    run = load_config(Path(f"training/configs/{preset}.yaml"))
    wide = model_config(run.model_copy(update={"init": InitSettings()}))
    sizes = {"dim": 128, "ffn_dim": 256, "num_heads": 2, "num_layers": 2, "text_dim": 64, "text_len": 24}
    config = replace(wide, **sizes, image_dim=None, emphasize=False, condition_dim=32)
    part = TransformerTraining(run.part, ContextAnyoneTransformer(config))
    optimizer, tracker = make_optimizer(part.parameter_groups(), run.optim), LoraTracker(part.transformer)
    tracker.track_external(optimizer)
    inputs = _inputs(config, shape, anchored=False, regions=run.part.regions != "none")
    with tracker:
        for _ in range(2):
            with autocast("cpu", torch.bfloat16):
                total = loss(part, inputs)
            total.backward()
            del total
            torch.nn.utils.clip_grad_norm_([p for p in part.transformer.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    planned = run_step(config, run.part, shape, run.optim, bf16=True)
    assert planned.peak - planned.ema == pytest.approx(peak["Total"], rel=0.1)


def test_the_prior_and_regions_are_planned():
    """A step of its own has a forward pass more; beside another it has two, and a backward pass."""
    shape = StepShape(Bucket(9, 32, 48, 0), 2, 0)
    lora = {"lora": {"targets": ["blocks.*.cross_attn.q"], "full": []}}
    data = DataSettings(manifest=Path("none.jsonl"), prior_class="woman")
    zuv = {"name": "zuv", "class": "woman", "caption": "A zuv woman"}
    config = replace(ContextAnyoneConfig.tiny(), emphasize=False, image_dim=None)

    def cost(**given):
        part = manifest.Settings(data=data, anchor="none", explicit_attention=True, train=lora, personal=zuv, **given)
        return run_step(config, part, shape, OptimSettings(), bf16=False)

    plain, own, beside = cost(), cost(prior=0.25), cost(prior_beside=0.5)
    without_lora = plain.forward_flops - 2 * 2 * 18 * 2 * config.dim * 32 * config.num_layers
    assert own.forward_flops == plain.forward_flops + without_lora // 4
    assert own.backward_flops == plain.backward_flops
    assert beside.forward_flops == plain.forward_flops + (plain.forward_flops + without_lora) // 2
    assert beside.backward_flops == plain.backward_flops * 3 // 2
    assert beside.peak > plain.peak
    assert cost(regions="mask").forward_flops > plain.forward_flops
