"""Pose and start frame as input channels: absent they are nothing, present they are the video's alone."""

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceCache, ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.name_tables import rename, transformer_table

NARROW = ContextAnyoneConfig.tiny()
WIDE = replace(NARROW, condition_dim=32)
SIZE = (3, 4, 6)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch=2):
    return draw(batch, 16, *SIZE), torch.linspace(900, 30, batch), draw(batch, NARROW.text_len, NARROW.text_dim)


def references(batch=2):
    text = draw(batch, NARROW.text_len, NARROW.text_dim, seed=3)
    return ReferenceInputs([draw(batch, 16, 1, 4, 6, seed=4)], text, [draw(batch, 5, NARROW.image_dim, seed=5)])


def condition(batch=2, frames=1):
    return VideoCondition(draw(batch, 16, *SIZE, seed=6), draw(batch, 16, frames, *SIZE[1:], seed=7))


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(WIDE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def narrow(wide):
    model = ContextAnyoneTransformer(NARROW)
    state = wide.state_dict()
    state["patch_embedding.weight"] = state["patch_embedding.weight"][:, :16]
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("given", [None, VideoCondition()])
@pytest.mark.parametrize("with_references", [False, True])
def test_without_conditions_it_is_the_narrow_model_bit_for_bit(wide, narrow, given, with_references):
    pictures = references() if with_references else None
    found = wide(*inputs(), references=pictures, condition=given)
    wanted = narrow(*inputs(), references=pictures)
    assert torch.equal(found.velocity, wanted.velocity)
    if with_references:
        assert torch.equal(found.reference_output[0], wanted.reference_output[0])


def test_zeros_are_absent(wide, narrow):
    zeros = VideoCondition(torch.zeros(2, 16, *SIZE), torch.zeros(2, 16, 1, *SIZE[1:]))
    wanted = narrow(*inputs()).velocity
    assert torch.allclose(wide(*inputs(), condition=zeros).velocity, wanted, atol=1e-4)
    for name in ("pose", "start"):
        alone = replace(condition(), **{name: None})
        zeroed = replace(condition(), **{name: getattr(zeros, name)})
        found = wide(*inputs(), condition=alone).velocity
        assert torch.equal(found, wide(*inputs(), condition=zeroed).velocity)
        assert not torch.allclose(found, wanted, atol=1e-2)


def test_zero_slices_say_nothing(narrow):
    model = ContextAnyoneTransformer(WIDE)
    state = narrow.state_dict()
    old = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = torch.cat([old, old.new_zeros(len(old), 32, *old.shape[2:])], dim=1)
    model.load_state_dict(state)
    with torch.no_grad():
        found = model(*inputs(), references=references(), condition=condition()).velocity
    assert torch.allclose(found, narrow(*inputs(), references=references()).velocity, atol=1e-4)


def test_conditions_never_change_the_reference_stream(wide):
    cache = wide.encode_references(references())
    with_them = wide(*inputs(), references=references(), condition=condition())
    without = wide(*inputs(), references=references())
    assert torch.equal(with_them.reference_output[0], without.reference_output[0])
    assert torch.equal(with_them.velocity, wide(*inputs(), cache=cache, condition=condition()).velocity)
    assert not torch.allclose(with_them.velocity, without.velocity, atol=1e-2)


def test_the_start_fills_the_first_frames_and_a_batch_of_one_serves_all(wide):
    given = condition(frames=2)
    padded = torch.cat([given.start, torch.zeros(2, 16, 1, *SIZE[1:])], dim=2)
    found = wide(*inputs(), condition=given).velocity
    assert torch.equal(found, wide(*inputs(), condition=replace(given, start=padded)).velocity)
    one = VideoCondition(given.pose[:1], given.start[:1])
    repeated = VideoCondition(one.pose.repeat(2, 1, 1, 1, 1), one.start.repeat(2, 1, 1, 1, 1))
    assert torch.equal(wide(*inputs(), condition=one).velocity, wide(*inputs(), condition=repeated).velocity)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (
            VideoCondition(pose=draw(2, 16, 2, 4, 6)),
            r"pose latents have shape \(2, 16, 2, 4, 6\).*\(batch, 16, 3, 4, 6\)",
        ),
        (VideoCondition(pose=draw(2, 8, *SIZE)), "pose latents have shape"),
        (VideoCondition(pose=draw(3, 16, *SIZE)), "batch of 3, the video's of 2"),
        (VideoCondition(start=draw(2, 16, 4, 4, 6)), "start latents have shape.*1 to 3"),
        (VideoCondition(start=draw(2, 16, 0, 4, 6)), "start latents have shape"),
        (VideoCondition(start=draw(2, 16, 4, 6)), "start latents have shape"),
    ],
)
def test_what_does_not_fit_is_refused(wide, given, hint):
    with pytest.raises(ShapeError, match=hint):
        wide(*inputs(), condition=given)


def test_a_narrow_model_refuses_them_and_says_what_to_do(narrow):
    with pytest.raises(InputError, match=r"no condition channels.*contextanyone init from Wan2\.1-Fun-1\.3B-Control"):
        narrow(*inputs(), condition=condition())


@pytest.mark.parametrize("value", [16, 48, -32, True, "32", None])
def test_other_widths_are_refused(value):
    with pytest.raises(InputError, match=r"condition_dim is .* 0, or 32"):
        replace(NARROW, condition_dim=value)


def test_a_config_without_the_key_is_narrow():
    values = NARROW.to_dict()
    assert values.pop("condition_dim") == 0
    assert ContextAnyoneConfig.from_dict(values) == NARROW
    assert ContextAnyoneConfig.from_dict(WIDE.to_dict()) == WIDE


@pytest.mark.parametrize("given", [None, condition()], ids=["without", "with"])
def test_it_compiles_whole(given):
    torch._dynamo.reset()
    model = ContextAnyoneTransformer(replace(WIDE, num_layers=1)).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    wanted = model(*inputs(), condition=given).velocity  # test_transformer.py compiles the reference stream
    whole = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(whole(*inputs(), condition=given).velocity, wanted, atol=1e-5)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_a_fun_control_file_gives_the_velocities_of_diffusers_network(control_file, start, clip):
    """Fun's own input, all 48 channels at once, and its CLIP tokens of zeros where there is no picture."""
    ours = load_transformer(control_file, plain=True)
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=48, out_channels=16, text_dim=64, ffn_dim=512,
        num_layers=2, image_dim=48, added_kv_proj_dim=256,
    )  # fmt: skip
    theirs.load_state_dict(rename(load_file(control_file), transformer_table(2)))
    latents, text, timesteps = draw(2, 16, *SIZE), draw(2, 512, 64), torch.tensor([700.0, 40.0])
    pose, first = draw(2, 16, *SIZE, seed=8), draw(2, 16, 1, *SIZE[1:], seed=9)
    image = torch.zeros(2, 16, *SIZE)
    if start:
        image[:, :, :1] = first
    tokens = torch.zeros(2, 257, 48) if clip else None
    with torch.no_grad():
        wanted = theirs(torch.cat([latents, pose, image], dim=1), timesteps, text, tokens, return_dict=False)[0]
        cache = None
        if tokens is not None:  # CLIP tokens without a reference stream: its keys left out
            kept = ours.encode_references(ReferenceInputs([first], text, [tokens]))
            blocks = [
                block._replace(self_attn=type(block.self_attn)(*(part[:, :0] for part in block.self_attn)))
                for block in kept.blocks
            ]
            cache = ReferenceCache(blocks, [])
        given = VideoCondition(pose, first if start else None)
        found = ours(latents, timesteps, text, cache=cache, condition=given).velocity
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.1


class HostConv3d(nn.Conv3d):
    """A host's own layer: it takes all of its channels or none."""


class HostLayers:
    Linear, LayerNorm, RMSNorm, Conv3d = nn.Linear, nn.LayerNorm, nn.RMSNorm, HostConv3d


def test_a_hosts_own_layers_get_zeros(wide, narrow):
    model = ContextAnyoneTransformer(WIDE, HostLayers)
    model.load_state_dict(wide.state_dict())
    model.eval().requires_grad_(False)
    found = model(*inputs(), references=references()).velocity
    assert torch.allclose(found, narrow(*inputs(), references=references()).velocity, atol=1e-4)
    found = model(*inputs(), condition=condition()).velocity
    assert torch.equal(found, wide(*inputs(), condition=condition()).velocity)
