"""DoRA, LoHa, LoKr, rsLoRA and biases as PEFT and LyCORIS write them: PEFT's own weights, or refused by name."""

import json

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights import lora_keys
from contextanyone_core.weights.lora import load_lora, merge_loras

CONFIG = ContextAnyoneConfig.tiny()
TARGETS = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.emphasize_attn.o"]
Q = "blocks.0.self_attn.q"


def transformer():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


class Wrapped(torch.nn.Module):
    """PEFT's models have a forward of their own; only the weights count here."""

    def __init__(self):
        super().__init__()
        self.blocks = transformer().blocks
        self.patch_embedding = transformer().patch_embedding


METHODS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS),
    "rslora": peft.LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=TARGETS),
    "own alpha": peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=TARGETS, alpha_pattern={Q: 3}, rank_pattern={"blocks.1.ffn.0": 2}
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=16, use_dora=True, target_modules=TARGETS),
    "bias": peft.LoraConfig(r=4, lora_alpha=16, lora_bias=True, target_modules=TARGETS),
    "loha": peft.LoHaConfig(r=4, alpha=16, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=2, alpha=16, target_modules=TARGETS),
    "lokr, both small": peft.LoKrConfig(r=2, alpha=6, decompose_both=True, target_modules=TARGETS),
    "lokr, both whole": peft.LoKrConfig(r=64, alpha=16, target_modules=TARGETS),
    "convolution": peft.LoraConfig(r=4, lora_alpha=16, use_dora=True, target_modules=["patch_embedding"]),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT's own, of biases that it wrote itself
@pytest.mark.parametrize("method", METHODS)
def test_a_peft_folder_gives_pefts_own_weights(method, tmp_path):
    adapted = peft.get_peft_model(Wrapped(), METHODS[method])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if any(word in name for word in ("lora_A", "lora_B", "hada_", "lokr_")):
                parameter.normal_(std=0.3)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape))
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload().state_dict()
    model, before = transformer(), transformer().state_dict()
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora = load_lora(path, model)
        assert lora.unknown == []
    merge_loras(model, [(lora, 1.0)])
    changed = [name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)]
    kinds = 2 if method == "bias" else 1
    assert len(changed) == kinds * len(METHODS[method].target_modules)
    for name, value in merged.items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_a_dora_whose_file_has_no_norms_is_refused(tmp_path):
    peft.get_peft_model(Wrapped(), METHODS["dora"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "magnitude" not in name}, path)
    for place in (tmp_path, path):
        with pytest.raises(CheckpointError, match="use_dora, and the file has no lora_magnitude_vector"):
            load_lora(place, transformer())


def lycoris(method, dora=None):
    """What LyCORIS writes for one module, and the difference that its formula gives."""
    torch.manual_seed(2)
    stem = f"lycoris_{Q.replace('.', '_')}"
    a, b, c, d = torch.randn(48, 3), torch.randn(3, 48), torch.randn(48, 3), torch.randn(3, 48)
    if method == "loha":
        parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
        full = (a @ b) * (c @ d) * 6 / 3
    elif method == "lokr":
        one, two = torch.randn(6, 4), torch.randn(8, 12)
        parts, full = {"lokr_w1": one, "lokr_w2": two}, torch.kron(one, two)  # alpha counts where there is a rank
    else:
        parts, full = {"lora_down": b, "lora_up": a}, a @ b * 6 / 3
    parts = {f"{name}.weight" if "lora" in name else name: tensor for name, tensor in parts.items()}
    if dora is not None:
        parts["dora_scale"] = dora
    return {f"{stem}.{name}": tensor for name, tensor in (parts | {"alpha": torch.tensor(6.0)}).items()}, full


@pytest.mark.parametrize("method", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("side", [None, 0, 1])
def test_lycoris_files_follow_its_formulas(method, side, tmp_path):
    model, weight = transformer(), transformer().get_submodule(Q).weight
    dora = None if side is None else torch.rand((48, 1) if side == 0 else (1, 48)) + 0.5
    tensors, full = lycoris(method, dora)
    save_file(tensors, tmp_path / "lycoris.safetensors")
    wanted = weight + full
    if dora is not None:
        wanted = wanted * dora / wanted.norm(dim=1 - side, keepdim=True)
    lora = load_lora(tmp_path / "lycoris.safetensors", model)
    merge_loras(model, [(lora, 0.25)])
    torch.testing.assert_close(model.get_submodule(Q).weight, weight + 0.25 * (wanted - weight), atol=1e-5, rtol=1e-5)


def pair(stem, rank=2, up_rank=None):
    return {f"{stem}.lora_A.weight": torch.ones(rank, 48), f"{stem}.lora_B.weight": torch.ones(48, up_rank or rank)}


FULL = f"diffusion_model.{Q}"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair(FULL, 4, 2), r"ranks 4 \(down, \(4, 48\)\) and 2 \(up, \(48, 2\)\)"),
        (
            pair(FULL) | pair("lora_unet_blocks_0_self_attn_q"),
            "both the same part of an update of blocks.0",
        ),
        (pair(FULL) | pair(f"model.{FULL}"), "both the same part"),
        (pair(FULL) | {f"{FULL}.lora_A.second.weight": torch.ones(2, 48)}, "both the same part"),
        (
            pair(FULL) | {f"{FULL}.lora_mid.weight": torch.ones(2, 2, 1, 1)},
            r"decomposition \(LoCon\), which is not",
        ),
        (pair(FULL) | {f"{FULL}.hada_t1": torch.ones(2, 2, 1, 1)}, "Tucker decomposition"),
        (pair(FULL) | {f"{FULL}.bias": torch.ones(48)}, "a bias that was trained in full"),
        ({f"{FULL}.oft_blocks": torch.ones(2, 2, 2)}, "OFT, which is not supported"),
        ({f"{FULL}.a1.weight": torch.ones(2, 2)}, "GLoRA"),
        (pair(FULL) | {f"{FULL}.something": torch.ones(2)}, "no part of an update that this version knows"),
        (
            pair(FULL) | {f"{FULL}.dora_scale": torch.ones(7)},
            r"lengths of \S+ are \(7,\), the weight is \(48, 48\)",
        ),
        (pair(FULL) | {f"{FULL}.lora_magnitude_vector": torch.ones(7)}, "DoRA's lengths"),
        (pair(FULL) | lycoris("loha")[0], "holds a LoRA and a LoHa of blocks.0.self_attn.q"),
        (pair(FULL) | {f"{FULL}.lora_B.bias": torch.ones(3)}, r"difference of \S+q\.bias is \(3,\)"),
        (
            pair(FULL) | {f"{FULL}.lora_B.bias": torch.ones(48), f"{FULL}.diff_b": torch.ones(48)},
            "changes the bias of blocks.0.self_attn.q by two keys",
        ),
        (
            {
                "diffusion_model.head.diff_m": torch.ones(1, 2, 48),
                "diffusion_model.head.modulation.diff": torch.ones(1, 2, 48),
            },
            "changes head.modulation by two keys",
        ),
    ],
)
def test_what_would_be_applied_in_part_is_refused_by_name(tensors, message, tmp_path):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lora(tmp_path / "odd.safetensors", transformer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not readable as PEFT's config"),
        ('{"r": 4}', "not readable as PEFT's config"),
        ('{"r": 4, "lora_alpha": 1e999}', "not readable as PEFT's config"),
        ('{"r": 4, "lora_alpha": 8, "peft_type": "OFT"}', "is of 'OFT'; LORA"),
        ('{"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}', "changes the base's weights"),
        ('{"r": 4, "lora_alpha": 8, "alpha_pattern": {"blocks\\\\.[01].*": 3}}', "a regular expression"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(config, message, tmp_path):
    save_file(pair(f"base_model.model.{Q}"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_lora(tmp_path, transformer())


def test_a_config_beside_another_file_is_not_its_own(tmp_path):
    """ComfyUI's folder of LoRAs may hold an adapter_config.json of somebody else."""
    save_file(pair(FULL), tmp_path / "mine.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    assert load_lora(tmp_path / "mine.safetensors", transformer()).updates[Q].scale == 1


def test_names_of_wrapped_modules(tmp_path):
    """torch.compile and FSDP put their own words into the names of modules."""
    save_file(pair("_orig_mod.blocks.0._fsdp_wrapped_module.self_attn._orig_mod.q"), tmp_path / "w.safetensors")
    assert list(load_lora(tmp_path / "w.safetensors", transformer()).updates) == [Q]


@pytest.fixture(scope="module")
def network():
    return transformer()


SIDES = st.sampled_from(
    [(), (0,), (1,), (2, 2), (2, 48), (48, 2), (48,), (48, 1), (1, 48), (3, 48), (4, 6), (12, 8), (0, 48)]
)
PARTS = st.sampled_from([f"{name}.weight" if name.startswith("lora_") else name for name in lora_keys._PARTS])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(PARTS, SIDES, max_size=6))
def test_any_parts_of_any_shapes_are_applied_or_refused(network, tmp_path, parts):
    save_file({f"{FULL}.{name}": torch.ones(shape) for name, shape in parts.items()}, tmp_path / "any.safetensors")
    try:
        lora = load_lora(tmp_path / "any.safetensors", network)
    except CheckpointError:
        return
    before = network.get_submodule(Q).weight.clone()
    merge_loras(network, [(lora, 0.0)])
    assert torch.equal(network.get_submodule(Q).weight, before)


def test_generate_takes_a_peft_folder(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(pair(f"base_model.model.{Q}"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8, "peft_type": "LORA"}))
    stored = load_file(folder / "adapter_model.safetensors")
    scaled = {name: tensor * (4 if "lora_B" in name else 1) for name, tensor in stored.items()}
    save_file(scaled, "scaled.safetensors")
    small = ["--frames", "1", "--size", "32x32", "--steps", "1", "--guidance-scale", "1", "--first", "A woman."]
    for lora, out in (("adapter", "a.webp"), ("adapter:1", "b.webp"), ("scaled.safetensors", "c.webp")):
        words = ["generate", "--weights", str(tiny_folder), *small, "--lora", lora, "--out", out]
        assert cli.main(words) == 0, capsys.readouterr().err
    pixels = [Image.open(name).convert("RGB").tobytes() for name in ("a.webp", "b.webp", "c.webp")]
    assert pixels[0] == pixels[1] == pixels[2]
