"""The first-block cache: what it skips, against a plain restatement, and that runs and passes do not mix."""

from dataclasses import replace

import pytest
import torch

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import Conditions, ContextAnyonePipeline, GenerationSettings, LatentSampler
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.compile import compile_blocks
from contextanyone_core.runtime.options import Execution
from contextanyone_core.runtime.step_cache import check_step_cache
from contextanyone_core.sampling.guidance import make_guidance
from contextanyone_core.sampling.reference_modes import SeparateStream, TemporalConcatenation

CONFIG = replace(ContextAnyoneConfig.tiny(), num_layers=4)
STEPS = 12


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def conditions(seed: int = 1) -> Conditions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text, negative = (draw(1, CONFIG.text_len, CONFIG.text_dim) for _ in range(2))
    return Conditions(text, negative, ReferenceInputs([draw(1, 16, 1, 4, 4)], text, [draw(1, 3, CONFIG.image_dim)]))


def sample(model, threshold: float | None, guidance: str = "cfg", seed: int = 1, mode=SeparateStream) -> torch.Tensor:
    chosen = make_guidance(guidance, CONFIG, guidance_scale=2.0)
    settings = GenerationSettings(num_frames=5, width=32, height=32, steps=STEPS, guidance=chosen)
    sampler = LatentSampler(model, mode, execution=Execution(step_cache=threshold))
    return sampler.sample_latents(conditions(seed), settings, sampler.noise([seed], settings))


class Restated:
    """The same shortcut without any hook: the blocks' loop written out, one memory for each pass of a step."""

    def __init__(self, model: ContextAnyoneTransformer, threshold: float, each_step: int):
        self.kept: dict[int, tuple] = {}
        self.computed = self.passes = 0
        self.each_step = each_step
        blocks, first = list(model.blocks), model.blocks[0].forward

        def forward(x, stream, cache, *rest, mode="video"):
            if mode == "reference":
                return first(x, stream, cache, *rest, mode=mode)
            key = self.passes % each_step
            self.passes += 1
            out = first(x, stream, cache, *rest)
            update = out - x
            if key in self.kept:
                before, others = self.kept[key]
                if (update - before).abs().mean() / before.abs().mean() <= threshold:
                    self.skip = True
                    return out + others
            self.skip, self.computed, self.key, self.update, self.out = False, self.computed + 1, key, update, out
            return out

        def rest_of(block, last):
            inner = block.forward

            def forward(x, *args, mode="video"):
                if mode == "reference":
                    return inner(x, *args, mode=mode)
                if self.skip:
                    return x
                out = inner(x, *args)
                if last:
                    self.kept[self.key] = (self.update, out - self.out)
                return out

            return forward

        blocks[0].forward = forward
        for index, block in enumerate(blocks[1:], start=1):
            block.forward = rest_of(block, index == len(blocks) - 1)


@pytest.mark.parametrize(
    ("guidance", "mode"), [("cfg", SeparateStream), ("dual", SeparateStream), ("dual", TemporalConcatenation)]
)
def test_it_is_the_plain_restatement(model, guidance, mode):
    threshold = 0.1
    whole = sample(model, None, guidance, mode=mode)
    cached = [sample(model, threshold, guidance, mode=mode) for _ in range(2)]
    torch.manual_seed(0)
    other = ContextAnyoneTransformer(CONFIG).requires_grad_(False).eval()
    other.load_state_dict(model.state_dict())
    restated = Restated(other, threshold, {"cfg": 2, "dual": 3}[guidance])
    wanted = sample(other, None, guidance, mode=mode)
    assert restated.each_step < restated.computed < restated.passes
    assert torch.equal(cached[0], wanted)
    assert torch.equal(cached[1], wanted)  # nothing is left of the run before
    assert 0 < (cached[0] - whole).abs().max() < 0.5 * whole.abs().max()


def test_a_threshold_that_nothing_is_below_changes_nothing(model):
    whole = sample(model, None)
    assert torch.equal(sample(model, 1e-9), whole)


def test_it_goes_with_compiled_blocks(model):
    torch._dynamo.reset()
    compile_blocks(model, backend="eager")
    compiled = sample(model, 0.1)
    torch.manual_seed(0)
    plain = ContextAnyoneTransformer(CONFIG).requires_grad_(False).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(compiled, sample(plain, 0.1), atol=1e-5)


def test_a_transformer_of_one_block_has_nothing_to_skip():
    with pytest.raises(InputError, match="has one block"):
        check_step_cache(ContextAnyoneTransformer(replace(CONFIG, num_layers=1)))


@pytest.mark.parametrize("memory", ["high", "balanced"])
def test_from_folder(tiny_folder, memory):
    pipeline = ContextAnyonePipeline.from_folder(tiny_folder, execution=Execution(step_cache=0.5, memory=memory))
    settings = GenerationSettings(num_frames=1, width=32, height=32, steps=4)
    given = pipeline.conditions([], TwoStagePrompt("A woman.", ""))
    latents = pipeline.sample_latents(given, settings, pipeline.noise([0], settings))
    assert torch.isfinite(latents).all()


def test_the_command(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--weights", str(tiny_folder), "--frames", "1", "--size", "32x32", "--steps", "2"]
    words += ["--first", "A woman.", "--out", "o.webp"]
    assert cli.main([*words, "--step-cache", "0.1"]) == 0
    assert read_metadata(tmp_path / "o.webp")["execution"]["step_cache"] == 0.1
    assert cli.main(words) == 0
    assert read_metadata(tmp_path / "o.webp")["execution"]["step_cache"] is None
    capsys.readouterr()
    for more, hint in (
        (("--step-cache", "0"), "above 0 and at most 1"),
        (("--step-cache", "nan"), "above 0 and at most 1"),
        (("--step-cache",), "expected one argument"),
        (("--step-cach", "0.1"), "Did you mean --step-cache?"),
        (("--step-cache", "0.1", "--memory", "low"), "exclude each other"),
        (("--step-cache", "0.1", "--model", "vace"), "--model vace leave it out"),
    ):
        assert cli.main([*words, *more]) == 2
        err = capsys.readouterr().err
        assert hint in err
        assert err.count("\n") == 1
