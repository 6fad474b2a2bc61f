"""LoRAs in every form in circulation: the same update, merged, and nothing left out in silence."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.lora import Lora, load_lora, merge_loras, save_lora
from contextanyone_core.weights.lora_updates import LowRank
from contextanyone_core.weights.name_tables import transformer_table
from contextanyone_core.weights.recognition import recognise

CONFIG = ContextAnyoneConfig.tiny()
RANK = 3
MODULES = ("blocks.0.self_attn.q", "blocks.1.cross_attn.v", "blocks.0.ffn.2", "blocks.1.emphasize_attn.o")
DIFFERENCES = (
    "blocks.0.self_attn.q.bias",
    "blocks.1.norm3.weight",
    "blocks.0.self_attn.norm_k.weight",
    "head.modulation",
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def updates(model):
    """Module -> (down, up), and parameter -> difference."""
    torch.manual_seed(1)
    pairs = {}
    for name in MODULES:
        out, into = model.get_submodule(name).weight.shape
        pairs[name] = (torch.randn(RANK, into), 0.1 * torch.randn(out, RANK))
    return pairs, {name: 0.1 * torch.randn(model.get_parameter(name).shape) for name in DIFFERENCES}


def run(model):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text = draw(1, CONFIG.text_len, CONFIG.text_dim)
    references = ReferenceInputs([draw(1, 16, 1, 4, 4)], text, [draw(1, 3, CONFIG.image_dim)])
    with torch.no_grad():
        return model(draw(1, 16, 2, 4, 4), torch.tensor([600.0]), text, references=references).velocity


def changed(model, updates, strength, scale=1.0):
    """The velocity of a model whose weights were changed by hand."""
    pairs, differences = updates
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, (down, up) in pairs.items():
        state[f"{name}.weight"] += strength * scale * up @ down
    for name, difference in differences.items():
        state[name] += strength * difference
    other = ContextAnyoneTransformer(CONFIG).eval()
    other.load_state_dict(state)
    return run(other)


def keys(form, name):
    """(down, up, alpha) of a module in a form."""
    theirs = transformer_table(2)[name]
    flat = name.replace(".", "_")
    stem, down, up = {
        "lora_A": (f"diffusion_model.{name}", "lora_A", "lora_B"),
        "lora_down": (f"diffusion_model.{name}", "lora_down", "lora_up"),
        "plain": (name, "lora_A", "lora_B"),
        "musubi": (f"lora_unet_{flat}", "lora_down", "lora_up"),
        "fun": (f"lora_unet__{flat}", "lora_down", "lora_up"),
        "diffusers": (f"transformer.{theirs}", "lora_A", "lora_B"),
        "peft": (f"base_model.model.{theirs}", "lora_A", "lora_B"),
    }[form]
    return f"{stem}.{down}.weight", f"{stem}.{up}.weight", f"{stem}.alpha"


def write(path, form, updates, alpha=None):
    pairs, differences = updates
    tensors = {}
    for name, (down, up) in pairs.items():
        first, second, third = keys(form, name)
        tensors |= {first: down, second: up} | ({} if alpha is None else {third: torch.tensor(alpha)})
    for name, difference in differences.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "modulation":
            module, leaf = name, "weight"
        stem = keys(form, module)[2].removesuffix(".alpha") if module in transformer_table(2) else module
        tensors[stem + {"weight": ".diff", "bias": ".diff_b"}[leaf]] = difference
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("form", ["lora_A", "lora_down", "plain", "musubi", "fun", "diffusers", "peft"])
def test_every_form_gives_the_same_update(model, updates, tmp_path, form, alpha):
    path = write(tmp_path / "lora.safetensors", form, updates, alpha)
    assert recognise(path).kind == "LoRA"
    lora = load_lora(path, model)
    assert lora.unknown == []
    assert lora.updates.keys() == updates[0].keys()
    assert lora.differences.keys() == updates[1].keys()
    before = run(model)
    wanted = changed(model, updates, 0.7, 1.0 if alpha is None else alpha / RANK)
    assert not torch.allclose(before, wanted, atol=1e-3)
    merge_loras(model, [(lora, 0.7)])
    assert torch.allclose(run(model), wanted, atol=1e-4)


def test_several_at_once_add_up(model, updates, tmp_path):
    pairs, differences = updates
    first = load_lora(write(tmp_path / "a.safetensors", "lora_A", (pairs, {})), model)
    second = load_lora(write(tmp_path / "b.safetensors", "musubi", (pairs, differences), 3.0), model)
    doubled = {name: (down, 1.5 * up) for name, (down, up) in pairs.items()}
    wanted = changed(model, (doubled, {name: 0.5 * value for name, value in differences.items()}), 1.0)
    merge_loras(model, [(first, 1.0), (second, 0.5)])
    assert torch.allclose(run(model), wanted, atol=1e-4)


def test_convolutions_have_updates_too(model, tmp_path):
    shape = model.patch_embedding.weight.shape
    down, up = torch.randn(RANK, *shape[1:]), 0.1 * torch.randn(shape[0], RANK, 1, 1, 1)
    name = "diffusion_model.patch_embedding"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "c.safetensors")
    before = model.patch_embedding.weight.clone()
    merge_loras(model, [(load_lora(tmp_path / "c.safetensors", model), 1.0)])
    wanted = before + (up.flatten(1) @ down.flatten(1)).view(shape)
    assert torch.allclose(model.patch_embedding.weight, wanted, atol=1e-6)


def test_unknown_keys_are_reported(model, updates, tmp_path, caplog):
    path = write(tmp_path / "lora.safetensors", "lora_A", updates)
    strange = {
        "lora_te_text_model_layers_0_q.lora_down.weight": torch.ones(2, 2),
        "diffusion_model.blocks.7.ffn.0.lora_A.weight": torch.ones(2, 2),
        "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(2, 48),
    }
    save_file(load_file(path) | strange, path)
    with caplog.at_level(logging.WARNING):
        lora = load_lora(path, model)
    assert sorted(lora.unknown) == sorted(strange)
    assert "3 keys are not used" in caplog.text


def pair(module):
    """An update of a square weight."""
    return {f"{module}.lora_A.weight": torch.ones(2, 48), f"{module}.lora_B.weight": torch.ones(48, 2)}


def test_alpha_may_stand_in_the_header(model, tmp_path):
    """As diffusers' `save_lora_weights` keeps PEFT's config: alpha, some modules' own, rsLoRA's root of the rank."""
    path = tmp_path / "pytorch_lora_weights.safetensors"
    q, k = ("transformer.blocks.0.attn1.to_q", "transformer.blocks.1.attn1.to_k")
    config = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"blocks.1.attn1.to_k": 1}}
    for more, scales in (({}, (4.0, 0.5)), ({"transformer.use_rslora": True}, (8 / 2**0.5, 1 / 2**0.5))):
        save_file(pair(q) | pair(k), path, metadata={"lora_adapter_metadata": json.dumps(config | more)})
        found = load_lora(path, model).updates
        assert [found[f"blocks.{i}.self_attn.{x}"].scale for i, x in ((0, "q"), (1, "k"))] == pytest.approx(scales)
    for text in ("{", "[]", '{"transformer.lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": [1]}'):
        save_file(pair(q), path, metadata={"lora_adapter_metadata": text})
        with pytest.raises(CheckpointError, match="lora_adapter_metadata in its header is not readable"):
            load_lora(path, model)


def test_modulations_of_a_distilled_lora(model, tmp_path):
    path = tmp_path / "lightx2v.safetensors"
    block, head = torch.randn(1, 6, 48), torch.randn(1, 2, 48)
    save_file({"diffusion_model.blocks.1.diff_m": block, "diffusion_model.head.diff_m": head}, path)
    assert recognise(path).kind == "LoRA"
    lora, before = load_lora(path, model), {name: value.clone() for name, value in model.state_dict().items()}
    assert lora.unknown == []
    merge_loras(model, [(lora, 0.5)])
    for name, difference in (("blocks.1.modulation", block), ("head.modulation", head)):
        assert torch.allclose(model.state_dict()[name], before[name] + 0.5 * difference, atol=1e-6)


def test_what_does_not_fit_is_refused(model, tmp_path):
    path = tmp_path / "lora.safetensors"
    name = "diffusion_model.blocks.0.self_attn.q"
    for tensors, message in (
        ({"x.lora_A.weight": torch.ones(2, 2)}, "no LoRA for this transformer"),
        ({f"{name}.lora_A.weight": torch.ones(2, 5120), f"{name}.lora_B.weight": torch.ones(48, 2)}, r"\(48, 5120\)"),
        ({f"{name}.diff_b": torch.ones(7)}, r"self_attn\.q\.bias is \(7,\)"),
        ({f"{name}.diff_b": torch.full((48,), float("nan"))}, "NaN"),
        (pair(name) | {f"{name}.lora_A.weight": torch.full((2, 48), float("nan"))}, r"NaN.*self_attn\.q \(down\)"),
        (pair(name) | {f"{name}.alpha": torch.tensor(float("nan"))}, r"NaN.*self_attn\.q \(alpha\)"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            load_lora(path, model)


def test_ours_are_saved_in_comfyuis_form(model, updates, tmp_path):
    pairs, differences = updates
    lora = Lora("mine", {name: LowRank(down, up, 0.5) for name, (down, up) in pairs.items()}, differences)
    save_lora(tmp_path / "mine.safetensors", lora, dtype=torch.float32, extra={"trigger": "ohwx"})
    stored = load_file(tmp_path / "mine.safetensors")
    assert all(key.startswith("diffusion_model.") for key in stored)
    assert stored["diffusion_model.blocks.1.emphasize_attn.o.lora_A.weight"].shape == (RANK, CONFIG.dim)
    assert stored["diffusion_model.blocks.0.self_attn.q.alpha"] == 0.5 * RANK
    assert {"diffusion_model.blocks.0.self_attn.q.diff_b", "diffusion_model.head.modulation.diff"} <= stored.keys()
    again = load_lora(tmp_path / "mine.safetensors", model)
    assert again.unknown == []
    wanted = changed(model, updates, 1.0, 0.5)
    merge_loras(model, [(again, 1.0)])
    assert torch.allclose(run(model), wanted, atol=1e-4)
