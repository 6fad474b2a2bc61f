"""Memory modes on a CPU: the same frames in each, weights where they are used, encoders that are gone afterwards."""

import copy
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders import on_demand
from contextanyone_core.encoders.text import TextEncoder, load_text_encoder
from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.generation import load
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings, LatentSampler
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.rope import _cached_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.offload import FP8, StreamedTransformer, store_in_fp8, stream_text_encoder
from contextanyone_core.runtime.options import Execution, Video
from contextanyone_core.sampling.guidance import make_guidance
from contextanyone_core.shapes import VideoShape
from contextanyone_core.weights.safetensors_file import read_header

PROMPT = TwoStagePrompt("A woman in the park.", "She waves.")
PICTURES = [torch.linspace(-1, 1, 3 * 40 * 30).view(1, 3, 40, 30), torch.full((1, 3, 20, 20), 0.3)]
CONFIG = ContextAnyoneConfig.tiny()


def settings(pipeline: ContextAnyonePipeline, guidance: str = "dual", side: int = 32) -> GenerationSettings:
    chosen = make_guidance(guidance, pipeline.config)
    return GenerationSettings(num_frames=5, width=side, height=side, steps=2, guidance=chosen)


@pytest.fixture
def pipelines(tiny_folder):
    """A pipeline of the tiny stack in a memory mode."""
    return lambda memory, **more: ContextAnyonePipeline.from_folder(
        tiny_folder, execution=Execution(memory=memory, **more)
    )


def redrawn(pipeline: ContextAnyonePipeline) -> list[torch.Tensor]:
    """What the reference stream makes of both pictures."""
    chosen = settings(pipeline)
    references = [pipeline.dual_encoder.encode(picture, chosen.size) for picture in PICTURES]
    return pipeline.reconstruct(pipeline.conditions(references, PROMPT), chosen)


def test_every_mode_makes_the_same_video(pipelines):
    high = pipelines("high")
    wanted = high.generate(PICTURES, PROMPT, settings(high))
    plain = high.generate([], PROMPT, settings(high))
    for memory, tolerance in (("balanced", 1e-5), ("low", 0.5)):
        pipeline = pipelines(memory)
        for _ in range(2):  # the second time nothing is left of the first
            made = pipeline.generate(PICTURES, PROMPT, settings(pipeline))
            assert (made.latents - wanted.latents).abs().max() < tolerance
        for ours, theirs in zip(redrawn(pipeline), redrawn(high), strict=True):
            assert (ours - theirs).abs().max() < tolerance
        made = pipeline.generate([], PROMPT, settings(pipeline))
        assert (made.latents - plain.latents).abs().max() < tolerance
    assert pipelines("auto").execution.memory == "high"  # a CPU


def test_the_miniature_in_every_mode():
    made = {}
    for memory in ("high", "balanced", "low"):
        pipeline = ContextAnyonePipeline.from_folder(MINIATURE, execution=Execution(memory=memory))
        made[memory] = pipeline.generate(PICTURES[:1], PROMPT, settings(pipeline, "cfg", side=64)).images
    assert (made["balanced"] - made["high"]).abs().max() < 1e-4
    error = ((made["low"] - made["high"]) / 2).square().mean()
    assert 0 < error < 10 ** (-20 / 10)  # 20 dB; benchmarks.shortcuts measures it


def test_balanced_goes_with_compiled_blocks(pipelines):
    assert pipelines("balanced", compile=True).execution.compile
    with pytest.raises(InputError, match="exclude each other"):
        pipelines("low", compile=True)


def test_low_needs_a_device_with_fp8():
    with pytest.raises(InputError, match="mps does not have; use --memory balanced"):
        load.load_components(
            MINIATURE, torch.device("mps"), torch.float32, MODELS["contextanyone"], Execution(memory="low")
        )


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(replace(CONFIG, num_layers=3)).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def run(model) -> list[torch.Tensor]:
    """A pass with references through their cache, and one without."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text, latents, timesteps = draw(1, CONFIG.text_len, CONFIG.text_dim), draw(1, 16, 2, 4, 4), torch.tensor([600.0])
    references = ReferenceInputs([draw(1, 16, 1, 4, 4)], text, [draw(1, 3, CONFIG.image_dim)])
    with torch.no_grad():
        cache = model.encode_references(references)
        both = [model(latents, timesteps, text, cache=given).velocity for given in (cache, None)]
        return [*both, *cache.outputs]


@pytest.fixture
def watched(monkeypatch):
    """Weights that rest are NaN, so that whoever reads one shows; gives the most blocks that were there at once."""
    here: dict[int, list[torch.Tensor]] = {}
    most = [0]

    def tensors(group):
        return [p for module in group.modules for p in module.parameters()] + list(group.parameters)

    def onload(group):
        if id(group) in here:
            for tensor, value in zip(tensors(group), here.pop(id(group)), strict=True):
                tensor.data = value
        blocks[id(group)] = len(group.modules) == 1
        most[0] = max(most[0], sum(blocks.values()))

    def offload(group):
        if id(group) not in here:
            here[id(group)] = [tensor.data for tensor in tensors(group)]
            for tensor in tensors(group):
                tensor.data = torch.full_like(tensor, float("nan"))
        blocks.pop(id(group), None)

    blocks: dict[int, bool] = {}
    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", onload)
    monkeypatch.setattr(ModuleGroup, "_offload_to_memory", offload)
    return most


def test_a_streamed_transformer_reads_no_weight_that_rests(model, watched):
    wanted = run(model)
    model = StreamedTransformer(model, torch.device("cpu"))
    assert torch.isnan(model.blocks[0].self_attn.q.weight).all()
    assert torch.isnan(model.patch_embedding.weight).all()
    for _ in range(2):
        for ours, theirs in zip(run(model), wanted, strict=True):
            assert torch.equal(ours, theirs)
    assert watched == [1]
    assert torch.isnan(model.blocks[2].ffn[0].weight).all()


@pytest.mark.parametrize("room", [True, False])
def test_a_text_encoder_without_room_on_the_card_is_streamed(tiny_folder, monkeypatch, room):
    path, streamed = tiny_folder / "text_encoder.safetensors", []
    monkeypatch.setattr(on_demand, "free_bytes", lambda _: 1 << (40 if room else 10))
    monkeypatch.setattr(on_demand, "stream_text_encoder", lambda *to: streamed.append(to) or stream_text_encoder(*to))
    encoder = on_demand.load_fitting_text_encoder(path, torch.float32, torch.device("cpu"))
    assert len(streamed) == (0 if room else 1)
    wanted = load_text_encoder(path).encode(["She waves."])
    for _ in range(2):
        torch.testing.assert_close(encoder.encode(["She waves."]), wanted)


def test_a_balanced_transformer_is_on_the_card_while_it_works(model):
    sampler = LatentSampler(model, device=torch.device("meta"), execution=Execution(memory="balanced"))
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    for _ in range(2):
        with sampler._weights_on_device():
            assert all(parameter.is_meta for parameter in model.parameters())
        for name, value in model.state_dict().items():
            assert value.data_ptr() == before[name][0]  # never copied
            assert torch.equal(value, before[name][1])


def test_weights_come_back_where_the_card_is_too_small(model, monkeypatch):
    sampler = LatentSampler(model, device=torch.device("meta"), execution=Execution(memory="balanced"))
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}

    def too_large(device):
        model.blocks[0].to(device)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "to", too_large)
    with pytest.raises(torch.OutOfMemoryError), sampler._weights_on_device():
        pass
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before


def test_rotary_tables_leave_the_card_with_the_weights(model):
    sampler = LatentSampler(model, execution=Execution(memory="balanced"))
    with sampler._weights_on_device():
        run(model)
        assert _cached_table.cache_info().currsize
    assert not _cached_table.cache_info().currsize


def test_what_references_leave_rests_on_the_cpu(model):
    model = StreamedTransformer(model, torch.device("cpu"))
    text = torch.zeros(1, CONFIG.text_len, CONFIG.text_dim)
    cache = model.encode_references(ReferenceInputs([torch.zeros(1, 16, 1, 4, 4)], text, []))
    assert {part.device.type for block in cache.blocks for part in block.self_attn} == {"cpu"}


def test_fp8_keeps_the_matrices_of_the_blocks_only(model):
    wanted = run(model)
    store_in_fp8(model, torch.float32)
    stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert stored["blocks.1.self_attn.q.weight"] == stored["blocks.2.ffn.0.weight"] == FP8
    kept = ("patch_embedding.weight", "head.head.weight", "blocks.0.modulation", "blocks.0.norm3.weight")
    assert {stored[name] for name in (*kept, "blocks.0.self_attn.norm_q.weight")} == {torch.float32}
    for ours, theirs in zip(run(model), wanted, strict=True):
        assert 0 < (ours - theirs).abs().max() < 0.15 * theirs.abs().max()


def test_encoders_are_read_once_for_all_prompts_and_gone_afterwards(pipelines, monkeypatch):
    seen = []

    def spy(load):
        def loaded(*args):
            encoder = load(*args)
            assert [model for model in seen if model() is not None] == []  # one at a time
            seen.append(weakref.ref(encoder.model))
            return encoder

        return loaded

    for name in ("load_text_encoder", "load_image_encoder"):
        monkeypatch.setattr(on_demand, name, spy(getattr(on_demand, name)))
    pipeline = pipelines("balanced")
    assert seen == []
    prompts = [PROMPT, TwoStagePrompt("A man.", "")]
    pipeline.encode_ahead(prompts, pipeline.own_negative, pictures=True)
    assert len(seen) == 1
    for prompt in prompts:
        pipeline.generate(PICTURES[:1], prompt, settings(pipeline, "cfg"))
    assert len(seen) == 2  # the picture is the same in both
    pipeline.generate(PICTURES[1:], PROMPT, settings(pipeline, "cfg"))
    assert len(seen) == 3
    assert [model() for model in seen] == [None] * 3


def test_tiles_are_for_decoding_alone(pipelines):
    high, tiled = pipelines("high"), pipelines("balanced")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 1, 36, 40, generator=generator)  # 288 x 320 pixels
    images = torch.rand(1, 3, 1, 288, 320, generator=generator)
    assert torch.equal(high.vae.encode(images), tiled.vae.encode(images))
    whole, blended = high.vae.decode(latents), tiled.vae.decode(latents)
    assert whole.shape == blended.shape
    assert not torch.equal(whole, blended)
    assert torch.equal(high.vae.encode(images), tiled.vae.encode(images))


@pytest.mark.parametrize(("free", "mode"), [(80 << 30, "high"), (12_000_000, "balanced"), (1_000_000, "low")])
def test_auto_takes_the_first_that_fits(tiny_folder, monkeypatch, caplog, free, mode):
    monkeypatch.setattr(load, "free_bytes", lambda device: free)
    execution = Execution(memory="auto", video=Video(VideoShape(5, 32, 32)))
    stages = {}
    monkeypatch.setattr(load, "stage_bytes", lambda mode, *_: stages[mode])
    stages |= {"high": {"a": 20_000_000}, "balanced": {"a": 9_000_000, "b": 1}, "low": {"a": 2_000_000}}
    given = (tiny_folder, torch.device("cpu"), torch.float32, MODELS["contextanyone"], execution)
    assert load.settle_memory(*given) == mode
    assert ("memory: " in caplog.text) is (mode != "high")


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ("text_encoder", "vae", "is a umt5-encoder file; a wan-vae file"),
        ("vae", "transformer", "is a wan-vae file; a transformer"),
    ],
)
def test_files_of_other_kinds_are_told_before_the_memory_is_planned(tiny_folder, tmp_path, wrong, right, words):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "weights"))
    shutil.copy(folder / f"{wrong}.safetensors", folder / f"{right}.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load.model_sizes(folder, MODELS["contextanyone"])


@pytest.mark.parametrize(
    ("part", "key"),
    [("text_encoder", "text_len"), ("text_encoder", "d_model"), ("image_encoder", "image_size"), ("vae", "base_dim")],
)
def test_a_config_that_lacks_a_key_is_told_in_every_mode(tiny_folder, tmp_path, part, key):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "weights"))
    file = folder / f"{part}.safetensors"
    metadata = read_header(file).metadata
    config = json.loads(metadata["config"])
    del config[key]
    save_file(load_file(file), file, metadata | {"config": json.dumps(config)})
    place = (torch.float32, torch.device("cpu"))
    read = {
        "text_encoder": lambda: on_demand.OnDemandTextEncoder(file, *place),
        "image_encoder": lambda: on_demand.OnDemandImageEncoder(file, *place),
        "vae": lambda: load.model_sizes(folder, MODELS["contextanyone"]),
    }
    with pytest.raises(CheckpointError, match=f"missing {key}, unknown nothing"):
        read[part]()


def test_the_command(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--weights", str(tiny_folder), "--frames", "1", "--size", "32x32", "--steps", "1"]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"first": f"A woman {i}."}) for i in range(2)))
    for memory in ("auto", "low"):
        assert cli.main([*words, "--prompts", "p.jsonl", "--memory", memory, "--out", "."]) == 0
        found = read_metadata(tmp_path / "clip-002.mp4")["execution"]["memory"]
        assert found == {"auto": "high", "low": "low"}[memory]
    capsys.readouterr()
    for more, hint in (
        (("--memory", "lo"), "Did you mean low?"),
        (("--memory", "low", "--compile"), "exclude each other"),
        (("--memory", "balanced", "--model", "vace"), "--memory balanced is for the models on our transformer"),
    ):
        assert cli.main([*words, "--first", "A.", "--out", "o.webp", *more]) == 2
        err = capsys.readouterr().err
        assert hint in err
        assert err.count("\n") == 1


@pytest.fixture
def elsewhere(monkeypatch):
    """The meta device as a card: weights go there without their data, and come back as they were."""
    here: dict[int, list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]] = {}

    def owned(group):
        return [leaf._parameters for module in group.modules for leaf in module.modules()]

    def onload(group):
        here.setdefault(id(group), [(owner, dict(owner)) for owner in owned(group)])
        for owner in owned(group):
            moved = {name: value.to("meta") for name, value in owner.items() if value is not None}
            owner.update({name: torch.nn.Parameter(value, requires_grad=False) for name, value in moved.items()})

    def offload(group):
        for owner, values in here.pop(id(group), []):
            owner.update(values)

    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", onload)
    monkeypatch.setattr(ModuleGroup, "_offload_to_memory", offload)
    monkeypatch.setattr(torch, "meta", torch.cpu, raising=False)  # where diffusers looks for streams
    return torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Tells where tensors of two devices meet, which the meta device itself lets pass."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        moves = operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        assert moves or len({x.device for x in given}) < 2, operation
        if moves and given[0].is_meta and (kwargs or {}).get("device") == torch.device("cpu"):
            return torch.zeros(given[0].shape, dtype=kwargs["dtype"])  # there are no data to bring back
        if operation is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False
        return operation(*args, **(kwargs or {}))


def test_everything_of_a_streamed_model_meets_on_the_card(model, elsewhere, tiny_text):
    model = StreamedTransformer(model, elsewhere)
    text = torch.zeros(1, CONFIG.text_len, CONFIG.text_dim, device=elsewhere)
    references = ReferenceInputs(
        [torch.zeros(1, 16, 1, 4, 4, device=elsewhere)], text, [torch.zeros(1, 3, CONFIG.image_dim, device=elsewhere)]
    )
    encoder = copy.deepcopy(tiny_text.model).requires_grad_(False)
    stream_text_encoder(encoder, elsewhere)
    streamed = TextEncoder(encoder, tiny_text.spiece_model, tiny_text.text_len, device=elsewhere)
    assert streamed.device == elsewhere
    latents, timesteps = torch.zeros(1, 16, 2, 4, 4, device=elsewhere), torch.zeros(1, device=elsewhere)
    with OneDevice(), torch.no_grad():
        cache = model.encode_references(references)
        velocities = [model(latents, timesteps, text, cache=given).velocity for given in (cache, None)]
        embeds = streamed.encode(["A woman.", "A man walks."])
    assert {part.device.type for block in cache.blocks for part in block.self_attn} == {"cpu"}
    assert {tensor.device for tensor in (*velocities, *cache.outputs, embeds)} == {elsewhere}
    assert encoder.shared.weight.device.type == model.blocks[0].ffn[0].weight.device.type == "cpu"
