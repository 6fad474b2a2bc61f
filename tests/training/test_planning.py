"""Plans: FLOPs equal torch's own count, memory is what a real step allocates, presets can be planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import autocast
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.rope import forget_tables
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.sampling.flow import sample_sigmas
from contextanyone_core.weights.checkpoint import save_transformer
from training.config import InitSettings, OptimSettings, load_config, parse_config
from training.data.buckets import Bucket, BucketSettings
from training.data.settings import DataSettings
from training.flops import backward_flops, forward_flops
from training.optim import make_optimizer
from training.parts import manifest, transformer
from training.parts.objective import loss_terms
from training.parts.transformer_base import TransformerTraining
from training.plan import main
from training.planning.cards import CARDS, card_of
from training.planning.density import Levels, density, quarters, share_below
from training.planning.plan import RECOMPUTE, _recomputing, clip_tokens, model_config, plan_run
from training.planning.text import plan_text
from training.planning.trace import StepCost, StepShape, _inputs, run_step, trace_step
from training.planning.worlds import ways_to_share
from training.settings import MINIATURE, presets

TINY = ContextAnyoneConfig.tiny()
WAN = ContextAnyoneConfig.wan_1_3b()
FULL_SIZE = StepShape(Bucket(81, 480, 832), 1, 257)
OPTIM = OptimSettings()


def settings(**given: object) -> manifest.Settings:
    return manifest.Settings(data=DataSettings(manifest=Path("none.jsonl")), **given)


def counted(config: ContextAnyoneConfig, grid: tuple[int, int, int], tokens: int) -> tuple[int, int]:
    """FLOPs of forward and backward pass as FlopCounterMode counts them on the meta device."""
    with torch.device("meta"):
        model = ContextAnyoneTransformer(config)
        text = torch.zeros(1, config.text_len, config.text_dim)
        reference = torch.zeros(1, 16, 1, *grid[1:])
        inputs = ReferenceInputs([reference], text, [torch.zeros(1, tokens, config.image_dim)])
        with FlopCounterMode(display=False) as counter:
            output = model(torch.zeros(1, 16, *grid), torch.zeros(1), text, references=inputs)
            forward = counter.get_total_flops()
            (output.velocity.sum() + output.reference_output[0].sum()).backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize(
    ("config", "grid", "tokens"),
    [(TINY, (3, 4, 6), 5), (replace(WAN, num_layers=2), (21, 60, 104), 257)],
    ids=["tiny", "full size, two of thirty equal blocks"],
)
def test_flops_equal_torchs_own_count_on_the_meta_device(config, grid, tokens):
    video, reference = grid[0] * grid[1] * grid[2] // 4, [grid[1] * grid[2] // 4]
    passes = (forward_flops(config, video, reference, tokens), backward_flops(config, video, reference, tokens))
    assert passes == counted(config, grid, tokens)


def test_a_traced_step_has_the_flops_of_the_arithmetic():
    """And what a fused kernel or a checkpoint computes again, which the arithmetic leaves out."""
    video, reference, tokens, batch = 18, [6], 5, 2
    shape = StepShape(Bucket(9, 32, 48), batch, tokens)
    forward = batch * forward_flops(TINY, video, reference, tokens)
    once = batch * backward_flops(TINY, video, reference, tokens)
    explicit = run_step(TINY, settings(explicit_attention=True), shape, OPTIM, bf16=False)
    # A timestep is embedded once for each sample, the products of a reference's cache likewise.
    assert (explicit.forward_flops, explicit.backward_flops) == (forward, once)
    products = video * (video + 6) + video * (12 + tokens + 6) + 6 * (6 + 12)
    attention = 4 * TINY.dim * products * TINY.num_layers * batch
    costs = {
        kind: run_step(TINY, settings(recompute=kind), shape, OPTIM, bf16=False)
        for kind in ("none", "full", "selective")
    }
    assert costs["none"].backward_flops == once + attention // 2
    again = costs["full"].backward_flops - costs["none"].backward_flops
    outside = forward_flops(replace(TINY, num_layers=1), video, reference, tokens) * 2 - forward_flops(
        TINY, video, reference, tokens
    )
    assert again == forward - batch * outside
    assert costs["selective"].backward_flops == costs["full"].backward_flops - attention


def test_a_traced_step_with_condition_channels_has_the_flops_of_the_arithmetic():
    config, shape = replace(TINY, condition_dim=32), StepShape(Bucket(9, 32, 48), 2, 5)
    explicit = run_step(config, settings(explicit_attention=True), shape, OPTIM, bf16=False)
    passes = (2 * forward_flops(config, 18, [6], 5), 2 * backward_flops(config, 18, [6], 5))
    assert (explicit.forward_flops, explicit.backward_flops) == passes
    assert passes[0] > 2 * forward_flops(TINY, 18, [6], 5)


class PeakOfStorages(TorchDispatchMode):
    """Adds up all storages that are alive after each operation, in another way than the plan's own tracker."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves((result, args)):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self.alive[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def fake_peak(config: ContextAnyoneConfig, given: manifest.Settings, shape: StepShape) -> int:
    """Bytes of weights and of everything a second step with its optimizer's state allocates, the EMA left out."""
    forget_tables()
    with FakeTensorMode():
        part = TransformerTraining(given, ContextAnyoneTransformer(config, device="cpu"))
        optimizer = make_optimizer(part.parameter_groups(), OPTIM)
        clips, draws, texts = _inputs(config, shape)
        for _ in range(2):
            with PeakOfStorages() as tracker:
                for state in optimizer.state.values():
                    for tensor in state.values():
                        tensor.view(-1)  # lets the tracker meet it
                with autocast("cpu", torch.bfloat16):
                    loss = loss_terms(part.transformer, given, clips, draws, texts).total.mean()
                loss.backward()
                del loss
                torch.nn.utils.clip_grad_norm_(part.transformer.parameters(), 1.0)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    forget_tables()
    return tracker.peak


@pytest.mark.parametrize(("recompute", "accumulate"), [("none", 1), ("selective", 1), ("none", 2)])
def test_memory_of_a_real_small_step(recompute, accumulate):
    """The second of two real steps, with the optimizer's state, as torch's MemTracker has it; the EMA left out."""
    config = replace(ContextAnyoneConfig.miniature(), num_layers=2)
    shape, given = StepShape(Bucket(9, 64, 64), 2, 65), settings(recompute=recompute)
    if accumulate > 1:  # little but gradients, which then are there in the forward pass already
        shape = StepShape(Bucket(1, 32, 32), 1, 65)
    part = TransformerTraining(given, ContextAnyoneTransformer(config))
    optimizer, tracker = make_optimizer(part.parameter_groups(), OPTIM), MemTracker()
    tracker.track_external(part.transformer, optimizer)
    inputs = _inputs(config, shape)
    with tracker:
        for _ in range(2):
            for _ in range(accumulate):
                tracker.reset_mod_stats()
                with autocast("cpu", torch.bfloat16):
                    loss = loss_terms(part.transformer, given, *inputs).total.mean()
                loss.backward()
                del loss
            torch.nn.utils.clip_grad_norm_(part.transformer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    optim = OptimSettings(accumulate=accumulate)
    planned = run_step(config, given, shape, optim, bf16=True)
    assert planned.peak - planned.ema == pytest.approx(peak["Total"], rel=0.1)


def test_memory_at_full_width():
    """Two of the thirty blocks; the plan's further blocks are held by the test below."""
    config, given = replace(WAN, num_layers=2), settings(recompute="selective")
    planned = run_step(config, given, FULL_SIZE, OPTIM, bf16=True)
    assert planned.peak - planned.ema == pytest.approx(fake_peak(config, given, FULL_SIZE), rel=0.1)


def test_further_blocks_cost_what_the_fourth_does():
    config, shape = replace(TINY, num_layers=6), StepShape(Bucket(9, 32, 48), 2, 5)
    for given in (settings(recompute="full"), settings(train={"only": ["*emphasize*"]})):
        planned, whole = (call(config, given, shape, OPTIM, bf16=True) for call in (trace_step, run_step))
        assert planned.forward_flops == whole.forward_flops
        assert planned.backward_flops == whole.backward_flops
        assert (planned.weights, planned.optimizer, planned.ema) == (whole.weights, whole.optimizer, whole.ema)
        assert planned.peak == pytest.approx(whole.peak, rel=0.02)


@pytest.mark.parametrize(
    "train", [{"only": ["blocks.5.*"]}, {"only": ["*.5.ffn.*"]}, {"thaw": {"blocks.5.*": 100}}], ids=str
)
def test_patterns_that_name_blocks_are_run_in_full(train):
    config, shape = replace(TINY, num_layers=6), StepShape(Bucket(1, 32, 32), 1, 5)
    given = settings(train=train)
    assert trace_step(config, given, shape, OPTIM, bf16=False) == run_step(config, given, shape, OPTIM, bf16=False)


def test_clip_tokens_are_those_of_the_network_that_is_trained():
    """The miniature of init.from, where part.model is what it is without one."""
    config = load_config(Path("training/configs/miniature/manifest.yaml"))
    assert config.part.model == "wan_1_3b"
    mini = model_config(config)
    tower = load_image_encoder(MINIATURE / "image_encoder.safetensors")
    assert clip_tokens(mini) == tower.encode(torch.zeros(1, 3, tower.image_size, tower.image_size)).shape[1] == 65
    assert [clip_tokens(each) for each in (WAN, replace(WAN, image_dim=None))] == [257, 0]


def test_a_plan_offers_no_recomputation_that_the_trainer_refuses():
    lora = {"train": {"lora": {"offload": True}}}
    kinds = {
        "all": settings(),
        "written out": settings(explicit_attention=True),
        "offloaded": settings(recompute="full", **lora),
        "offloaded and compiled": settings(recompute="full", compile=True, **lora),
    }
    found = {name: [kind for kind in RECOMPUTE if _recomputing(given, kind)] for name, given in kinds.items()}
    assert found == {
        "all": ["none", "selective", "full"],
        "written out": ["none", "full"],
        "offloaded": ["selective", "full"],
        "offloaded and compiled": ["full"],
    }


def test_memory_is_that_of_the_widest_step(tmp_path, monkeypatch):
    """Stills of nearly the FLOPs of a clip have more tokens: the memory is theirs, the FLOPs are the clip's."""
    monkeypatch.setattr("training.planning.plan.RECOMPUTE", ("none",))  # the others take twice as long
    monkeypatch.setattr("training.planning.plan.clip_tokens", lambda model: 257)
    start = tmp_path / "start.safetensors"
    save_transformer(start, ContextAnyoneTransformer(TINY), dtype=torch.float32)
    sizes = BucketSettings(sizes=("32x32",), frames=(1, 33), budget=2.0)
    part = manifest.Settings(data=DataSettings(manifest=Path("none.jsonl"), buckets=sizes), explicit_attention=True)
    given = {"run": {"name": "t", "steps": 1}, "init": {"from": str(start)}, "part": part.model_dump(mode="json")}
    plan = plan_run(parse_config(given))
    assert plan.shape.bucket == Bucket(33, 32, 32)
    assert plan.widest.bucket == Bucket(1, 32, 32)
    clip, stills = (trace_step(TINY, part, shape, OPTIM, bf16=False) for shape in (plan.shape, plan.widest))
    assert stills.peak > 1.1 * clip.peak
    assert stills.forward_flops < clip.forward_flops
    assert stills.backward_flops < clip.backward_flops
    flops = {"forward_flops": clip.forward_flops, "backward_flops": clip.backward_flops}
    assert plan.cost == replace(stills, **flops)


def test_a_step_that_accumulates_takes_and_sends_more(capsys):
    one, three = (
        plan_run(load_config(Path("training/configs/debug.yaml"), [f"optim.accumulate={n}"]), 8) for n in (1, 3)
    )
    assert three.gpu_hours(1e15) == pytest.approx(3 * one.gpu_hours(1e15))
    assert three.cost.forward_flops == one.cost.forward_flops
    for once, thrice in zip(one.ways(), three.ways(), strict=True):
        assert (thrice.within, thrice.between) == (3 * once.within, 3 * once.between)
    assert "3 batches a step" in plan_text(three, CARDS)
    assert "a step" not in plan_text(one, CARDS).partition("The costliest")[2].partition("\n")[0]
    everything = sum(p.numel() for p in ContextAnyoneTransformer(one.model, device="meta").parameters())
    checkpoint = 16 * everything  # float32 weights, their average and two moments
    assert one.checkpoint_bytes() == pytest.approx(checkpoint, rel=1e-3)
    assert one.disk_bytes().checkpoints == pytest.approx(3 * checkpoint, rel=1e-3)  # two kept, one being written
    assert f"Disk: a checkpoint {checkpoint / 1e9:.1f} GB, 2 kept" in plan_text(one, CARDS)


def test_what_is_frozen_costs_less():
    shape = StepShape(Bucket(9, 32, 48), 2, 5)
    everything, new = (
        run_step(TINY, given, shape, OPTIM, bf16=True)
        for given in (settings(), settings(train={"only": ["*emphasize*"]}))
    )
    assert new.backward_flops < everything.backward_flops
    assert new.optimizer < everything.optimizer / 2
    assert new.weights == everything.weights


@pytest.mark.parametrize("kind", ["logit_normal", "uniform", "cosmap"])
@pytest.mark.parametrize(("shift", "uniform"), [(1.0, 0.0), (3.0, 0.1), (2.0, 0.2), (5.0, 1.0)])
def test_density_is_that_of_the_sampler(shift, uniform, kind):
    generator, levels = torch.Generator().manual_seed(0), Levels(shift, uniform, kind)
    drawn = sample_sigmas(40000, shift=shift, uniform=uniform, distribution=kind, generator=generator)
    for index, share in enumerate(quarters(levels)):
        inside = ((drawn * 4).long().clamp(max=3) == index).float().mean().item()
        assert inside == pytest.approx(share, abs=0.01)
    for sigma in (0.1, 0.5, 0.9):
        step = 1e-5
        slope = (share_below(sigma + step, levels) - share_below(sigma - step, levels)) / (2 * step)
        assert density(sigma, levels) == pytest.approx(slope, rel=1e-4)


def test_a_sharded_run_needs_less_of_each_process():
    cost = StepCost(10, 20, 4 << 30, 1 << 30, 8 << 30, 4 << 30, 6 << 30)
    assert [way.name for way in ways_to_share(cost, WAN, 1, bf16=True)] == ["one process"]
    ddp, fsdp, kept, hsdp = ways_to_share(cost, WAN, 32, bf16=True)
    assert ddp.memory == cost.peak + cost.ema
    assert fsdp.memory < hsdp.memory < ddp.memory
    assert fsdp.memory < kept.memory < ddp.memory
    assert kept.within < fsdp.within
    assert hsdp.between < ddp.between


@pytest.mark.parametrize("bf16", [False, True])
def test_fsdp_gathers_every_block_twice_and_the_rest_once(bf16):
    """As test_gathers.py counts; the gradients are reduced once, where DDP sends them twice."""
    network = ContextAnyoneTransformer(WAN, device="meta")
    weights, inside = (4 * sum(p.numel() for p in module.parameters()) for module in (network, network.blocks))
    world, rest, blocks = 8, weights - inside, inside // 2 if bf16 else inside
    cost = StepCost(10, 20, weights, 1 << 30, 8 << 30, weights, 6 << 30)
    ddp, fsdp, kept = ways_to_share(cost, WAN, world, bf16=bf16)
    assert ddp.within == 2 * weights * (world - 1) // world
    assert fsdp.within == (2 * blocks + rest + weights) * (world - 1) // world
    assert kept.within == (blocks + rest + weights) * (world - 1) // world
    states = 2 * weights + cost.optimizer + cost.ema
    assert fsdp.memory == states // world + 2 * blocks // WAN.num_layers + rest + cost.activations
    assert kept.memory == states // world + blocks + rest + cost.activations


def test_cards_are_found_by_the_devices_name():
    assert card_of("NVIDIA H100 80GB HBM3") == CARDS["H100"]
    assert card_of("NVIDIA A100-SXM4-80GB") == CARDS["A100"]
    assert card_of("NVIDIA GeForce RTX 3060") == CARDS["3060"]
    for other in ("4090 Laptop GPU", "4090 D", "4070 Ti", "4070 SUPER"):
        assert card_of(f"NVIDIA GeForce RTX {other}") is None


def plannable() -> list[Path]:
    kinds = (manifest.Settings, transformer.Settings)
    return [path for path in presets() if isinstance(load_config(path).part, kinds)]


@pytest.mark.parametrize("path", plannable(), ids=lambda path: path.stem)
def test_every_preset_of_a_transformer_can_be_planned(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where neither weights nor data are
    config = load_config(path)
    monkeypatch.setattr("training.planning.plan.RECOMPUTE", (config.part.recompute,))  # the others take twice as long
    plan = plan_run(config)
    assert plan.cost.peak > plan.cost.weights
    assert plan.gpu_hours(1e15) > 0


def test_phantom_is_planned_on_the_network_that_it_trains(tmp_path, monkeypatch):
    phantom = next(path for path in presets() if path.stem == "phantom")
    config = load_config(phantom)
    monkeypatch.chdir(tmp_path)  # without the file of init.from
    fresh = model_config(config)
    assert (fresh.emphasize, fresh.image_dim) == (False, None)
    start = tmp_path / "start.safetensors"
    save_transformer(start, ContextAnyoneTransformer(TINY), dtype=torch.float32)
    started = model_config(config.model_copy(update={"init": InitSettings.model_validate({"from": start})}))
    assert started == replace(TINY, emphasize=False, image_dim=None)
    (flops,) = plan_run(config).buckets.flops.values()
    assert flops == forward_flops(fresh, 5 * 64 + 64)  # one stream, whose last frame is the reference


def test_the_command(tmp_path, monkeypatch, capsys):
    config = Path("training/configs/debug.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(config), "--card", "A100", "--gpus", "16", "--plot", "density.png"]) == 0
    said = capsys.readouterr().out
    for word in ("64x64x1", "activations", "HSDP, 2 nodes of 8", "A100", "Noise levels"):
        assert word in said
    assert "H100" not in said
    assert Image.open("density.png").size == (640, 320)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "H10"], "--card is H10; known are"),
        (["--gpus", "0"], "--gpus is 0"),
        (["--set", "part.train.only=[nothing]"], "matches no parameter"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["--config", "training/configs/debug.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_parts_have_no_plan(capsys):
    assert main(["--config", "training/configs/miniature/vae.yaml"]) == 2
    assert "plans are made for the parts manifest and transformer" in capsys.readouterr().err
