"""The transformer's laws: who reads whom, what emphasis and the cache do, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import autocast, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.model.losses import dual_guidance_loss, reconstruction
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer

CONFIG = ContextAnyoneConfig.tiny()
BATCH = 2


def make_model(seed=0, random=True, config=CONFIG):
    """A tiny model; `random` fills every weight, those that start at zero included."""
    torch.manual_seed(seed)
    model = ContextAnyoneTransformer(config)
    if random:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model().requires_grad_(False)


def make_inputs(seed=1, batch=BATCH, size=(3, 4, 6)):
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 16, *size, generator=random)
    timesteps = torch.linspace(900, 30, batch)
    return latents, timesteps, torch.randn(batch, CONFIG.text_len, CONFIG.text_dim, generator=random)


def make_references(sizes=((4, 6), (4, 6)), seed=2, batch=BATCH, **changes):
    random = torch.Generator().manual_seed(seed)
    given = ReferenceInputs(
        latents=[torch.randn(batch, 16, 1, *size, generator=random) for size in sizes],
        text_embeds=torch.randn(batch, CONFIG.text_len, CONFIG.text_dim, generator=random),
        image_embeds=[torch.randn(batch, 5, CONFIG.image_dim, generator=random) for _ in sizes],
    )
    return replace(given, **changes)


SIZES = pytest.mark.parametrize("sizes", [((4, 6),), ((4, 6), (4, 6)), ((4, 6), (2, 8), (6, 2))])


@SIZES
def test_shapes(model, sizes):
    inputs = make_inputs()
    references = make_references(sizes)
    output = model(*inputs, references=references)
    assert output.velocity.shape == inputs[0].shape
    assert [tuple(item.shape) for item in output.reference_output] == [(BATCH, 16, 1, *size) for size in sizes]
    assert model(*inputs).reference_output is None


def test_a_fresh_model_is_zero_and_its_new_parts_change_nothing():
    model = make_model(random=False)
    inputs, references = make_inputs(), make_references()
    nn.init.normal_(model.head.head.weight)  # else every velocity is zero
    with torch.no_grad():
        fresh = model(*inputs, references=references).velocity
        assert torch.equal(fresh, model(*inputs, references=references, emphasis=0.0).velocity)
        assert torch.equal(fresh, model(*inputs, references=references, emphasis=3.0).velocity)
        assert torch.equal(fresh, model(*inputs, references=replace(references, image_embeds=[])).velocity)
        assert not torch.equal(fresh, model(*inputs).velocity)  # self-attention does read the reference


def test_fresh_emphasize_attention_and_clip_branch_learn():
    model = make_model(random=False)
    nn.init.normal_(model.head.head.weight)
    for step in range(2):  # after one step the zero layers are no longer zero, and what lies before them learns
        model.zero_grad()
        model(*make_inputs(), references=make_references()).velocity.square().mean().backward()
        names = ("emphasize_attn.o", "v_img") if step == 0 else ("emphasize_attn.q", "emphasize_attn.v", "k_img")
        for name in names:
            assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if f"{name}.weight" in n), name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0


def test_emphasis_zero_is_the_block_without_it(model):
    plain = ContextAnyoneTransformer(replace(CONFIG, emphasize=False))
    kept = {name: value for name, value in model.state_dict().items() if "emphasize" not in name}
    plain.load_state_dict(kept)
    inputs, references = make_inputs(), make_references()
    with torch.no_grad():
        expected = plain(*inputs, references=references)
    output = model(*inputs, references=references, emphasis=0.0)
    assert torch.equal(output.velocity, expected.velocity)
    assert all(torch.equal(a, b) for a, b in zip(output.reference_output, expected.reference_output, strict=True))
    assert not torch.allclose(model(*inputs, references=references).velocity, expected.velocity, atol=1e-3)


def test_the_video_never_changes_the_reference_stream(model):
    references = make_references()
    one = model(*make_inputs(seed=1), references=references).reference_output
    other = model(*make_inputs(seed=7, size=(5, 2, 8)), references=references, emphasis=0.3).reference_output
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    latents, timesteps, text = (tensor.requires_grad_() for tensor in make_inputs())
    output = model(latents, timesteps, text, references=references)
    assert not any(item.requires_grad for item in output.reference_output)  # nothing of the video is in its graph
    assert output.velocity.requires_grad


@SIZES
def test_a_reference_reads_only_itself(model, sizes):
    references = make_references(sizes)
    for latents in references.latents:
        latents.requires_grad_()
    output = model(*make_inputs(), references=references).reference_output
    for index, item in enumerate(output):
        grads = torch.autograd.grad(item.square().sum(), references.latents, retain_graph=True, allow_unused=True)
        reads = [grad is not None and bool(grad.any()) for grad in grads]
        assert reads == [other == index for other in range(len(sizes))]


@pytest.mark.parametrize("sizes", [((4, 6), (4, 6)), ((4, 6), (2, 8))])
def test_the_order_of_references_does_not_change_each_ones_stream(model, sizes):
    references = make_references(sizes)
    turned = replace(references, latents=references.latents[::-1], image_embeds=references.image_embeds[::-1])
    output = model(*make_inputs(), references=references).reference_output
    other = model(*make_inputs(), references=turned).reference_output[::-1]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(output, other, strict=True))


def test_the_video_reads_references_clip_tokens_and_both_prompts(model):
    inputs, references = make_inputs(), make_references()
    base = model(*inputs, references=references).velocity
    changes = {
        "latents": [references.latents[0], references.latents[1] + 1],
        "image_embeds": [references.image_embeds[0], references.image_embeds[1] + torch.randn(5, CONFIG.image_dim)],
        "text_embeds": references.text_embeds + 1,
        "timesteps": torch.full((BATCH,), 80.0),
        "gap": 3.5,
    }
    for name, value in changes.items():
        changed = model(*inputs, references=replace(references, **{name: value})).velocity
        assert not torch.allclose(changed, base, atol=1e-4), name


def test_clip_tokens_never_reach_the_reference_stream(model):
    references = make_references()
    with_clip = model(*make_inputs(), references=references).reference_output
    without = model(*make_inputs(), references=replace(references, image_embeds=[])).reference_output
    assert all(torch.equal(a, b) for a, b in zip(with_clip, without, strict=True))


@SIZES
@pytest.mark.parametrize("emphasis", [0.0, 1.0, 1.7])
def test_cached_equals_uncached_bit_for_bit(model, sizes, emphasis):
    references = make_references(sizes)
    cache = model.encode_references(references)
    for seed in (1, 5):
        inputs = make_inputs(seed)
        cached = model(*inputs, cache=cache, emphasis=emphasis)
        uncached = model(*inputs, references=references, emphasis=emphasis)
        assert torch.equal(cached.velocity, uncached.velocity)
        assert cached.reference_output is None


def test_a_cache_of_one_serves_any_batch(model):
    latents, timesteps, text = make_inputs(batch=1)
    cache = model.encode_references(make_references(batch=1)).to(dtype=torch.float32)
    one = model(latents, timesteps, text, cache=cache).velocity
    three = model(latents.repeat(3, 1, 1, 1, 1), timesteps.repeat(3), text.repeat(3, 1, 1), cache=cache).velocity
    assert torch.allclose(three, one.expand_as(three), atol=1e-5)


def test_samples_of_a_batch_do_not_mix(model):
    inputs, references = make_inputs(), make_references()
    together = model(*inputs, references=references)
    second = replace(
        references,
        latents=[item[1:] for item in references.latents],
        text_embeds=references.text_embeds[1:],
        image_embeds=[item[1:] for item in references.image_embeds],
    )
    alone = model(*(tensor[1:] for tensor in inputs), references=second)
    assert torch.allclose(together.velocity[1:], alone.velocity, atol=1e-5)
    assert torch.allclose(together.reference_output[0][1:], alone.reference_output[0], atol=1e-5)


def test_reconstruction_of_a_clean_reference_has_a_gradient():
    model, references = make_model(random=False), make_references(timesteps=torch.zeros(BATCH))
    latents, timesteps, text = make_inputs()
    output = model(latents, timesteps, text, references=references)
    rebuilt = [reconstruction(*pair) for pair in zip(references.latents, output.reference_output, strict=True)]
    targets = [latents[:, :, :1] for _ in rebuilt]
    loss = dual_guidance_loss(output.velocity, latents, rebuilt, targets, reference_weight=0.1)
    (grad,) = torch.autograd.grad(loss.reference.sum(), model.head.head.weight)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("given", ["references", "cache", "neither"])
def test_compiles_as_one_graph(given):
    model = make_model(config=replace(CONFIG, num_layers=1)).requires_grad_(False)  # further blocks are the same graph
    references = make_references(((4, 6), (2, 8)))
    extra = {"references": references} if given == "references" else {}
    if given == "cache":
        extra = {"cache": model.encode_references(references), "emphasis": 0.5}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = make_inputs()
    assert torch.allclose(compiled(*inputs, **extra).velocity, model(*inputs, **extra).velocity, atol=1e-6)


def test_trains_under_bfloat16_autocast():
    model = make_model()
    inputs, references = make_inputs(), make_references()
    exact = model(*inputs, references=references)
    with autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs, references=references)
    assert output.velocity.dtype == output.reference_output[0].dtype == torch.float32
    assert torch.allclose(output.velocity, exact.velocity, atol=3e-2)
    (output.velocity.square().mean() + output.reference_output[0].square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_runs_with_bfloat16_weights(model):
    low = make_model().to(torch.bfloat16)
    latents, timesteps, text = make_inputs()
    references = make_references()
    low_references = replace(
        references,
        latents=[item.bfloat16() for item in references.latents],
        text_embeds=references.text_embeds.bfloat16(),
        image_embeds=[item.bfloat16() for item in references.image_embeds],
    )
    with torch.no_grad():
        velocity = low(latents.bfloat16(), timesteps, text.bfloat16(), references=low_references).velocity
    assert velocity.dtype == torch.bfloat16
    exact = model(latents, timesteps, text, references=references).velocity
    assert (velocity.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_runs_on_a_device_without_autocast():
    model = ContextAnyoneTransformer(CONFIG, device="meta")
    latents, timesteps, text = (tensor.to("meta") for tensor in make_inputs())
    assert model(latents, timesteps, text).velocity.shape == latents.shape


def test_a_preview_in_inference_mode_does_not_spoil_training():
    model, inputs = make_model(), make_inputs(size=(2, 6, 10))
    with torch.inference_mode():
        model(*inputs)
    model(*inputs).velocity.sum().backward()  # the kept rotary table must be no inference tensor


def test_layers_and_attention_are_injected():
    made, calls = [], []

    def layer(kind):
        def build(*args, device=None, dtype=None, **kwargs):
            made.append((kind, device, dtype))
            return getattr(nn, kind)(*args, device=device, dtype=dtype, **kwargs)

        return staticmethod(build)

    class Ops:
        Linear, Conv3d, LayerNorm, RMSNorm = (layer(kind) for kind in ("Linear", "Conv3d", "LayerNorm", "RMSNorm"))

    def counting(q, k, v, heads):
        calls.append(heads)
        return torch_attention(q, k, v, heads)

    model = ContextAnyoneTransformer(CONFIG, Ops, counting, device="cpu", dtype=torch.float64)
    assert {kind for kind, _, _ in made} == {"Linear", "Conv3d", "LayerNorm", "RMSNorm"}
    assert {(device, dtype) for _, device, dtype in made} == {("cpu", torch.float64)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    model = ContextAnyoneTransformer(CONFIG, nn, counting)
    model(*make_inputs(), references=make_references())
    # a block: self and text for the references; self, text, CLIP and Emphasize-Attention for the video
    assert calls == [CONFIG.num_heads] * 6 * CONFIG.num_layers
    calls.clear()
    model(*make_inputs(), attention=torch_attention)
    assert calls == []


def test_a_model_without_clip_branch():
    model = make_model(config=replace(CONFIG, image_dim=None))
    references = make_references()
    assert model(*make_inputs(), references=replace(references, image_embeds=[])).velocity.isfinite().all()
    with pytest.raises(ShapeError, match="no CLIP branch"):
        model(*make_inputs(), references=references)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": []}, "leave references out"),
        ({"latents": [torch.zeros(BATCH, 16, 2, 4, 6)]}, "2 latent frames"),
        ({"latents": [torch.zeros(BATCH, 16, 1, 4, 5)]}, "multiples"),
        ({"text_embeds": torch.zeros(BATCH, 3, CONFIG.text_dim)}, "padded with zeros"),
        ({"image_embeds": [torch.zeros(BATCH, 5, 7)]}, "image_embeds"),
    ],
)
def test_wrong_references_are_refused(model, changes, message):
    with pytest.raises(ShapeError, match=message):
        model(*make_inputs(), references=make_references(**changes))


@pytest.mark.parametrize("other", [1, 3])
def test_batches_of_other_sizes_are_refused(model, other):
    """A batch of 1 would be repeated without a word, another one end in torch's words."""
    latents, timesteps, text = make_inputs()
    with pytest.raises(ShapeError, match=rf"text_embeds are a batch of {other}, the latents a batch of 2"):
        model(latents, timesteps, make_inputs(batch=other)[2])
    for times in (torch.ones(other), torch.tensor(5.0), torch.ones(BATCH, 1)):
        with pytest.raises(ShapeError, match=r"timesteps have shape .*; needed is \(2,\)"):
            model(latents, times, text)
        with pytest.raises(ShapeError, match=r"timesteps have shape .*; needed is \(2,\)"):
            model.encode_references(make_references(timesteps=times))
    odd, good = make_references(batch=other), make_references()
    for changes in (
        {"latents": [good.latents[0], odd.latents[1]]},
        {"text_embeds": odd.text_embeds},
        {"image_embeds": [good.image_embeds[0], odd.image_embeds[1]]},
    ):
        with pytest.raises(ShapeError, match=f"are a batch of {other}, the latents a batch of 2"):
            model.encode_references(make_references(**changes))


def test_a_cache_of_batch_1_serves_any_batch_and_no_other_does(model):
    latents, timesteps, text = make_inputs()
    alone = make_references(batch=1)
    cache = model.encode_references(alone)
    assert torch.equal(
        model(latents, timesteps, text, cache=cache).velocity,
        model(latents, timesteps, text, references=alone).velocity,
    )
    with pytest.raises(ShapeError, match="references are a batch of 3"):
        model(latents, timesteps, text, references=make_references(batch=3))
    with pytest.raises(ShapeError, match="references are a batch of 2"):
        model(latents[:1], timesteps[:1], text[:1], cache=model.encode_references(make_references()))


def test_wrong_inputs_are_refused(model):
    latents, timesteps, text = make_inputs()
    with pytest.raises(ShapeError, match="latents have shape"):
        model(latents[:, :3], timesteps, text)
    with pytest.raises(ShapeError, match="text_embeds have shape"):
        model(latents, timesteps, text[..., :5])
    references = make_references()
    with pytest.raises(InputError, match="give one of the two"):
        model(latents, timesteps, text, references=references, cache=model.encode_references(references))
