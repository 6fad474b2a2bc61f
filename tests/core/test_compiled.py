"""Attention kernels by name and the compiled block: the same values, one graph for every block."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.generation.pipeline import Conditions, ContextAnyonePipeline, GenerationSettings, LatentSampler
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime import kernels
from contextanyone_core.runtime.compile import compile_blocks
from contextanyone_core.runtime.options import Execution
from contextanyone_core.sampling.guidance import make_guidance

CONFIG = replace(ContextAnyoneConfig.tiny(), num_layers=4)
CARD = torch.device("cuda")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def conditions(references: int = 1) -> Conditions:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text, negative = (draw(1, CONFIG.text_len, CONFIG.text_dim) for _ in range(2))
    latents = [draw(1, 16, 1, 4, 4) for _ in range(references)]
    tokens = [draw(1, 3, CONFIG.image_dim) for _ in range(references)]
    return Conditions(text, negative, ReferenceInputs(latents, text, tokens) if references else None)


def sample(model, given: Conditions, guidance: str = "cfg", frames: int = 5) -> torch.Tensor:
    chosen = make_guidance(guidance, CONFIG, guidance_scale=3.0)
    settings = GenerationSettings(num_frames=frames, width=32, height=32, steps=3, guidance=chosen)
    sampler = LatentSampler(model)
    return sampler.sample_latents(given, settings, sampler.noise([0], settings))


class Counting:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_every_block_runs_the_same_three_graphs_and_gives_the_same_values(model):
    torch._dynamo.reset()
    runs = [(conditions(), "cfg"), (conditions(), "dual"), (conditions(0), "cfg"), (conditions(3), "cfg")]
    wanted = [sample(model, *run) for run in runs]
    backend = Counting()
    compile_blocks(model, backend=backend)
    counts = []
    for run, values in zip(runs, wanted, strict=True):
        assert torch.allclose(sample(model, *run), values, atol=1e-5)
        counts.append(backend.graphs)
    # cfg: the reference stream, with a cache, without. Then nothing new, nothing new, three references instead of one.
    assert counts == [3, 3, 3, 5]
    sample(model, conditions(), frames=9)
    assert backend.graphs == 7


def test_from_folder_compiles_and_says_so(tiny_folder):
    pipeline = ContextAnyonePipeline.from_folder(tiny_folder, execution=Execution(compile=True, attention="auto"))
    assert pipeline.execution == Execution(compile=True, attention="sdpa")
    assert all("forward" in vars(block) for block in pipeline.transformer.blocks)


def test_without_a_compiler_it_is_told_before_anything_is_loaded(tmp_path):
    absent = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with absent, pytest.raises(MissingDependencyError, match=r"a C\+\+ compiler.*g\+\+"):
        ContextAnyonePipeline.from_folder(tmp_path, execution=Execution(compile=True))


@pytest.mark.nightly
def test_compiled_by_inductor(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    words = ["generate", "--weights", str(tiny_folder), "--frames", "1", "--size", "32x32", "--steps", "2"]
    assert cli.main([*words, "--first", "A woman.", "--compile", "--out", "o.webp"]) == 0
    assert read_metadata(tmp_path / "o.webp")["execution"]["compile"] is True


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for the two packages, which need a card: torch's attention behind their signatures."""

    def flash_attn_func(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def sageattn(q, k, v, tensor_layout="HND"):
        assert tensor_layout == "NHD"
        return flash_attn_func(q, k, v)

    for name, function in (("flash_attn", flash_attn_func), ("sageattention", sageattn)):
        module = ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["flash", "sage"])
def test_kernels_of_packages_are_the_same_attention(packages, model, name):
    chosen, attention = kernels.make_attention(name, CARD, torch.bfloat16)
    assert chosen == name
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 12) for length in (5, 7, 7))
    assert torch.allclose(attention(q, k, v, 3), torch_attention(q, k, v, 3), atol=1e-6)
    wanted = sample(model, conditions())
    model.attention = attention
    assert torch.allclose(sample(model, conditions()), wanted, atol=1e-5)
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    assert torch.allclose(sample(model, conditions()), wanted, atol=1e-5)


def test_auto_takes_flash_where_it_can_work(packages):
    assert kernels.make_attention("auto", CARD, torch.bfloat16)[0] == "flash"
    for device, dtype in ((CARD, torch.float32), (torch.device("cpu"), torch.bfloat16)):
        assert kernels.make_attention("auto", device, dtype) == ("sdpa", torch_attention)


@pytest.mark.parametrize(("name", "command"), [("flash", "pip install flash-attn"), ("sage", "pip install sageatt")])
def test_what_cannot_be_had_says_how(monkeypatch, name, command):
    module = kernels._PACKAGES[name][0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"not installed. Run: {command}"):
        kernels.make_attention(name, CARD, torch.bfloat16)
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(MissingDependencyError, match="does not work with this torch"):
        kernels.make_attention(name, CARD, torch.float16)
    assert kernels.make_attention("auto", CARD, torch.bfloat16)[0] == "sdpa"
    with pytest.raises(InputError, match="cuda in bfloat16 or float16; given are cpu and float32"):
        kernels.make_attention(name, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--attention", "flahs"), "Did you mean flash?"),
        (("--attention", "flash"), "given are cpu and float32"),
        (("--attention", "sage", "--dtype", "bfloat16"), "given are cpu and bfloat16"),
        (("--attention", "flash", "--model", "vace"), "--model vace leave it out"),
        (("--compile", "--model", "vace"), "--model vace leave it out"),
        (("--compil",), "Did you mean --compile?"),
    ],
)
def test_refusals(tiny_folder, tmp_path, monkeypatch, capsys, words, hint):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "--weights", str(tiny_folder), "--first", "A.", "--out", "o.webp", *words]) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert err.count("\n") == 1
