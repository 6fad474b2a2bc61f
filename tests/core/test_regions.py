"""Mask-guided attention: equal to a dense mask, nothing where no region is, and nobody else's text."""

from dataclasses import replace

import pytest
import torch
from torch import autocast, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.generation.conditions import Conditions, condition_at, stack_conditions
from contextanyone_core.generation.pipeline import GenerationSettings, LatentSampler
from contextanyone_core.model.attention import CrossAttention, torch_attention
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import InContextReferences, ReferenceInputs
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.compile import compile_blocks
from contextanyone_core.sampling.guidance import DualGuidance
from contextanyone_core.sampling.reference_modes import InContext, TemporalConcatenation

CONFIG = replace(ContextAnyoneConfig.tiny(), condition_dim=32)
SIZE = (3, 4, 6)
TOKENS = 3 * 2 * 3
NAMED = ((1, 2, 3), (0, 5, 6), (4,))
"""What names the person in the texts of a batch of three: one span, two, and one of another length."""


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def soft_person(batch=3, seed=9):
    return torch.rand((batch, 1, *SIZE), generator=torch.Generator().manual_seed(seed))


def inputs(batch=3):
    return draw(batch, 16, *SIZE), torch.linspace(900, 30, batch), draw(batch, CONFIG.text_len, CONFIG.text_dim)


def within(regions):
    return VideoCondition(regions=regions)


def references(batch=3):
    text = draw(batch, CONFIG.text_len, CONFIG.text_dim, seed=3)
    return ReferenceInputs([draw(batch, 16, 1, 4, 6, seed=4)], text, [draw(batch, 5, CONFIG.image_dim, seed=5)])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = ContextAnyoneTransformer(CONFIG)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def dense(module, x, text, image, person, named):
    """The same with scores of every pair, a mask of minus infinity, and the two regions mixed by their shares."""
    heads = lambda t: t.unflatten(-1, (module.heads, -1)).transpose(1, 2)  # noqa: E731
    q, (k, v) = heads(module.queries(x)), map(heads, module.keys_values(text))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.zeros(len(x), 1, 1, text.shape[1], dtype=torch.bool)
    for index, tokens in enumerate(named):
        hidden[index, ..., list(tokens)] = True
    shares = person[:, None]  # b 1 n 1
    weights = shares * scores.softmax(-1) + (1 - shares) * scores.masked_fill(hidden, -torch.inf).softmax(-1)
    read = (weights @ v).transpose(1, 2).flatten(-2)
    if image is not None:
        ki, vi = map(heads, image)
        read = read + ((q @ ki.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ vi).transpose(1, 2).flatten(-2)
    return module.o(read)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("named", [NAMED, (NAMED[0],) * 3, (NAMED[0], (), NAMED[0])])
def test_it_is_a_dense_mask_with_its_gradients(hard, with_image, named):
    torch.manual_seed(2)
    module = CrossAttention(CONFIG.dim, CONFIG.num_heads, 1e-6, True, nn)
    person = soft_person().round() if hard else soft_person()
    guide = Regions(person, named).guide(inputs()[0], CONFIG.patch_size, CONFIG.text_len)
    shares = person.unflatten(3, (2, 2)).unflatten(5, (3, 2)).mean((4, 6)).reshape(3, TOKENS, 1)
    assert torch.allclose(guide.person, shares)
    given = [draw(3, TOKENS, CONFIG.dim), draw(3, CONFIG.text_len, CONFIG.dim, seed=3), draw(3, 5, CONFIG.dim, seed=4)]
    found, wanted = [], []
    for run, kept in (
        (lambda *a: module(*a, torch_attention, guide), found),
        (lambda *a: dense(module, *a, shares, named), wanted),
    ):
        x, text, pictures = (tensor.clone().requires_grad_() for tensor in given)
        module.zero_grad()
        out = run(x, text, module.image_keys_values(pictures) if with_image else None)
        (out * draw(*out.shape, seed=8)).sum().backward()
        kept += [out, x.grad, text.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert len(found) == len(wanted) > 10
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_without_a_region_or_a_name_it_is_the_model_bit_for_bit(model):
    plain = model(*inputs(), references=references())
    everywhere, nowhere = torch.ones(3, 1, *SIZE), torch.zeros(3, 1, *SIZE)
    for regions in (Regions(nowhere, ((),)), Regions(everywhere, NAMED), Regions(nowhere[:1], ((), (), ()))):
        found = model(*inputs(), references=references(), condition=within(regions))
        assert torch.equal(found.velocity, plain.velocity)
        assert torch.equal(found.reference_output[0], plain.reference_output[0])
    assert not torch.allclose(
        model(*inputs(), condition=within(Regions(nowhere, NAMED))).velocity, plain.velocity, atol=1e-3
    )


def test_a_background_everywhere_never_reads_the_name(model):
    latents, times, text = inputs()
    other = text.clone()
    for index, tokens in enumerate(NAMED):
        other[index, list(tokens)] = 7.0
    nobody = Regions(torch.zeros(1, 1, *SIZE), NAMED)
    one, two = (model(latents, times, given, condition=within(nobody)).velocity for given in (text, other))
    assert torch.equal(one, two)
    half = Regions(soft_person(), NAMED)
    one, two = (model(latents, times, given, condition=within(half)).velocity for given in (text, other))
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("named", [NAMED, ((1, 2), (), (3, 4))])
def test_samples_of_a_batch_do_not_mix_and_one_serves_all(model, named):
    latents, times, text = inputs()
    person, cache = soft_person(), model.encode_references(references())
    together = model(latents, times, text, references=references(), condition=within(Regions(person, named))).velocity
    assert torch.equal(
        together, model(latents, times, text, cache=cache, condition=within(Regions(person, named))).velocity
    )
    for index in range(3):
        one = slice(index, index + 1)
        shown = replace(
            references(),
            latents=[references().latents[0][one]],
            text_embeds=references().text_embeds[one],
            image_embeds=[references().image_embeds[0][one]],
        )
        alone = Regions(person[one], (named[index],))
        found = model(latents[one], times[one], text[one], references=shown, condition=within(alone)).velocity
        assert torch.allclose(found, together[one], atol=1e-5)
    repeated = Regions(person[:1].repeat(3, 1, 1, 1, 1), (NAMED[0],) * 3)
    served = model(latents, times, text, condition=within(Regions(person[:1], NAMED[:1]))).velocity
    assert torch.equal(served, model(latents, times, text, condition=within(repeated)).velocity)


def test_an_attention_of_the_call_serves_both_regions_and_no_mask_is_used(model):
    calls = []

    def noted(q, k, v, heads):
        calls.append((q.shape[1], k.shape[1]))
        return torch_attention(q, k, v, heads)

    regions = Regions(soft_person(), (NAMED[0],))
    found = model(*inputs(), references=references(), condition=within(regions), attention=noted).velocity
    assert torch.equal(found, model(*inputs(), references=references(), condition=within(regions)).velocity)
    texts = [keys for queries, keys in calls if queries == TOKENS and keys in (CONFIG.text_len, CONFIG.text_len - 3)]
    assert texts == [CONFIG.text_len, CONFIG.text_len - 3] * CONFIG.num_layers


def test_it_runs_in_bfloat16(model):
    regions = Regions(soft_person(), NAMED)
    wanted = model(*inputs(), references=references(), condition=within(regions)).velocity
    with autocast("cpu", torch.bfloat16):
        rough = model(*inputs(), references=references(), condition=within(regions)).velocity
    assert torch.allclose(rough.float(), wanted, atol=0.05 * float(wanted.abs().max()))


def test_it_runs_compiled_in_one_graph():
    torch.manual_seed(0)
    config = replace(CONFIG, num_layers=1)
    plain, compiled = (ContextAnyoneTransformer(config).requires_grad_(False) for _ in range(2))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(compiled, backend="eager")
    given = within(Regions(soft_person(), NAMED[:1]))
    wanted = plain(*inputs(), condition=given).velocity
    assert torch.allclose(compiled(*inputs(), condition=given).velocity, wanted, atol=1e-6, rtol=1e-5)


def test_dropped_texts_have_no_region(model):
    latents, times, text = inputs()
    regions = Regions(soft_person(), NAMED)
    assert regions.keep_names([True, False, True]).named == (NAMED[0], (), NAMED[2])
    assert Regions(soft_person(1), NAMED[:1]).keep_names([False, True]).named == ((), NAMED[0])
    found = model(latents, times, text, condition=within(regions.keep_names([True, False, True]))).velocity
    assert torch.allclose(found[1], model(latents, times, text).velocity[1], atol=1e-6)
    assert torch.allclose(found[::2], model(latents, times, text, condition=within(regions)).velocity[::2], atol=1e-6)


@pytest.mark.parametrize(
    ("regions", "hint"),
    [
        (Regions(torch.ones(3, 1, 3, 2, 3), NAMED), r"regions have shape \(3, 1, 3, 2, 3\).*\(batch, 1, 3, 4, 6\)"),
        (Regions(torch.ones(3, *SIZE), NAMED), "regions have shape"),
        (Regions(torch.ones(2, 1, *SIZE), NAMED), "batch of 2 masks, the latents of 3"),
        (Regions(torch.ones(3, 1, *SIZE), NAMED[:2]), "batch of 2 texts, the latents of 3"),
        (Regions(torch.ones(3, 1, *SIZE), ((CONFIG.text_len,),)), "names? the tokens"),
        (Regions(torch.ones(3, 1, *SIZE), (tuple(range(CONFIG.text_len)),)), "all but one"),
    ],
)
def test_regions_that_do_not_fit_are_refused(model, regions, hint):
    with pytest.raises(ShapeError, match=hint):
        model(*inputs(), condition=within(regions))


def test_models_with_references_in_the_videos_stream_refuse_regions(model):
    regions = Regions(soft_person(), NAMED)
    with pytest.raises(InputError, match="leave the regions out"):
        model(*inputs(), references=InContextReferences([draw(3, 16, 1, 4, 6)]), condition=within(regions))
    for mode in (TemporalConcatenation, InContext):
        with pytest.raises(InputError, match="leave them out"):
            mode(model, references()).velocity(*inputs(), with_reference=True, condition=within(regions))


def conditions(batch=1, **more):
    text, negative = (
        draw(batch, CONFIG.text_len, CONFIG.text_dim),
        draw(batch, CONFIG.text_len, CONFIG.text_dim, seed=2),
    )
    return Conditions(text, negative, references(batch), **more)


def test_only_passes_with_the_prompt_have_regions_while_the_pose_acts(model):
    seen = []
    sampler = LatentSampler(model)
    settings = GenerationSettings(
        num_frames=9, width=48, height=32, steps=4, sampler="euler", pose_window=(0.0, 0.5),
        guidance=DualGuidance(2.0, 3.0),
    )  # fmt: skip
    regions = Regions(soft_person(1), NAMED[:1])
    given = conditions(video=VideoCondition(draw(1, 16, *SIZE, seed=6), regions=regions))
    hook = model.register_forward_pre_hook(
        lambda _, __, options: seen.append(options.get("condition").regions is not None), with_kwargs=True
    )
    try:
        found = sampler.sample_latents(given, settings, sampler.noise([0], settings))
    finally:
        hook.remove()
    assert seen == [True, False, False] * 2 + [False] * 6  # prompt, negative with reference, negative
    without = sampler.sample_latents(
        replace(given, video=replace(given.video, regions=None)), settings, sampler.noise([0], settings)
    )
    assert not torch.allclose(found, without, atol=1e-3)
    nameless = replace(given, video=replace(given.video, regions=Regions(regions.person, ((),))))
    assert torch.equal(sampler.sample_latents(nameless, settings, sampler.noise([0], settings)), without)


def test_regions_are_left_out_with_the_pose_and_act_alone_in_every_step():
    regions = Regions(soft_person(1), NAMED[:1])
    posed = VideoCondition(draw(1, 16, *SIZE), draw(1, 16, 1, 4, 6), regions)
    assert condition_at(posed, 0.0, 0.7, (0.0, 0.5)).regions is regions
    for share, strength in ((0.6, 1.0), (0.0, 0.0)):
        assert condition_at(posed, share, strength, (0.0, 0.5)) == VideoCondition(start=posed.start)
    assert condition_at(within(regions), 0.9, 0.0, (0.0, 0.5)).regions is regions


def test_videos_of_a_batch_may_have_none(model):
    regions = Regions(soft_person(1), NAMED[:1])
    stacked = stack_conditions([conditions(video=within(regions)), conditions(), conditions(video=within(regions))])
    assert stacked.video.regions.named == (NAMED[0], (), NAMED[0])
    assert torch.equal(stacked.video.regions.person[::2], regions.person.repeat(2, 1, 1, 1, 1))
    assert stack_conditions([conditions(), conditions()]).video is None
    with pytest.raises(ShapeError, match="regions of one shape"):
        stack_conditions(
            [conditions(video=within(regions)), conditions(video=within(Regions(torch.ones(1, 1, 1, 4, 6), ((),))))]
        )
