"""VAE, umT5 and CLIP in every public form: Wan's .pth, ComfyUI's single file, diffusers' folder."""

import math

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from contextanyone_core import cli
from contextanyone_core.config import WAN_LATENTS_MEAN
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import SPIECE, load_text_encoder, read_tokenizer
from contextanyone_core.encoders.vae import load_vae
from contextanyone_core.errors import CheckpointError
from contextanyone_core.weights.name_tables import vae_from_diffusers
from contextanyone_core.weights.naming import IMAGE_ENCODER, TEXT_ENCODER, VAE
from contextanyone_core.weights.recognition import recognise

FORMS = ("original", "comfyui", "folder")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8, z_dim=16).eval()


@pytest.mark.parametrize("form", FORMS)
def test_the_vae(vae, tmp_path, form):
    path = tmp_path
    names = vae_from_diffusers(vae.state_dict())
    if form == "original":
        path = tmp_path / "Wan2.1_VAE.pth"
        torch.save(names, path)
    elif form == "comfyui":
        path = tmp_path / "wan_2.1_vae.safetensors"
        save_file(names, path)
    else:
        vae.save_pretrained(tmp_path)
    found = recognise(path)
    assert (found.kind, found.family) == (VAE, "Wan 2.1")
    loaded = load_vae(path)
    assert loaded.config.latents_mean == pytest.approx(list(WAN_LATENTS_MEAN))
    images = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.encode(images).latent_dist.mode(), vae.encode(images).latent_dist.mode())


@pytest.fixture(scope="module")
def umt5(tiny_text):
    torch.manual_seed(0)
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=tiny_text.model.config.vocab_size,
            d_model=64,
            d_ff=96,
            d_kv=16,
            num_heads=4,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def original_umt5(model):
    """Wan's original names, spelled out."""
    state = model.state_dict()
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for layer in range(2):
        attention, block = f"encoder.block.{layer}.layer.0", f"blocks.{layer}"
        forward = f"encoder.block.{layer}.layer.1.DenseReluDense"
        names |= {f"{block}.attn.{part}.weight": f"{attention}.SelfAttention.{part}.weight" for part in "qkvo"}
        names |= {
            f"{block}.pos_embedding.embedding.weight": f"{attention}.SelfAttention.relative_attention_bias.weight",
            f"{block}.norm1.weight": f"{attention}.layer_norm.weight",
            f"{block}.norm2.weight": f"encoder.block.{layer}.layer.1.layer_norm.weight",
            f"{block}.ffn.gate.0.weight": f"{forward}.wi_0.weight",
            f"{block}.ffn.fc1.weight": f"{forward}.wi_1.weight",
            f"{block}.ffn.fc2.weight": f"{forward}.wo.weight",
        }
    return {name: state[theirs].clone() for name, theirs in names.items()}


@pytest.mark.parametrize("form", [*FORMS, "scaled"])
def test_umt5(umt5, tiny_text, spiece_model, tmp_path, form):
    path, tolerance = tmp_path / "text_encoder", 1e-6
    path.mkdir()
    tokens = torch.frombuffer(bytearray(spiece_model), dtype=torch.uint8)
    state = {name: value for name, value in umt5.state_dict().items() if "embed_tokens" not in name}
    if form == "original":
        path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
        torch.save(original_umt5(umt5), path)
        (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
        (tmp_path / "google" / "umt5-xxl" / "spiece.model").write_bytes(spiece_model)
    elif form == "comfyui":
        path = tmp_path / "umt5_xxl_fp16.safetensors"
        save_file(state | {SPIECE: tokens}, path)
    elif form == "scaled":
        path, tolerance = tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", 0.3
        for name in [name for name in state if "SelfAttention" in name and not name.endswith("bias.weight")]:
            scale = state[name].abs().max() / 448
            state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
            state[name.removesuffix("weight") + "scale_weight"] = scale
        save_file(state | {SPIECE: tokens, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, path)
    else:
        umt5.save_pretrained(path, max_shard_size="50KB")
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer" / "spiece.model").write_bytes(spiece_model)
    found = recognise(path)
    assert (found.kind, found.family) == (TEXT_ENCODER, "umT5 of width 64")
    loaded = load_text_encoder(path)
    assert loaded.text_len == 512
    prompt = "A woman is standing in the park."
    ids = torch.tensor(tiny_text.tokenize([prompt]))
    with torch.no_grad():
        wanted = umt5(input_ids=ids).last_hidden_state
    got = loaded.encode([prompt])[:, : ids.shape[1]]
    assert torch.allclose(got, wanted, atol=tolerance)
    assert cli.main(["inspect", str(path)]) == 0


def test_umt5_without_a_tokenizer_says_where_it_belongs(umt5, tmp_path):
    torch.save(original_umt5(umt5), tmp_path / "t5.pth")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*spiece\.model"):
        load_text_encoder(tmp_path / "t5.pth")


def test_a_tokenizer_that_was_not_downloaded_is_one_line(umt5, spiece_model, tmp_path):
    torch.save(original_umt5(umt5), tmp_path / "t5.pth")
    for content in (b"version https://git-lfs.github.com/spec/v1", b"", spiece_model[:100]):
        (tmp_path / "spiece.model").write_bytes(content)
        for read in (load_text_encoder, read_tokenizer):
            with pytest.raises(CheckpointError, match=r"is no SentencePiece model; download umT5's spiece\.model"):
                read(tmp_path / "t5.pth")


def test_a_tokenizer_of_another_vocabulary_is_refused(umt5, spiece_model, tmp_path):
    state = original_umt5(umt5)
    state["token_embedding.weight"] = state["token_embedding.weight"][:100].clone()
    torch.save(state, tmp_path / "t5.pth")
    (tmp_path / "spiece.model").write_bytes(spiece_model)
    for read in (load_text_encoder, read_tokenizer):
        with pytest.raises(CheckpointError, match=r"knows 100 tokens and its tokenizer has \d+"):
            read(tmp_path / "t5.pth")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=28, patch_size=14, hidden_size=160, intermediate_size=320, num_hidden_layers=2,
        num_attention_heads=2, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def plain_names(model):
    return {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}


def original_clip(model):
    """Wan's original names, spelled out: fused queries, keys and values, a text tower beside."""
    state = plain_names(model)
    names = {
        "visual.cls_embedding": state["embeddings.class_embedding"][None, None],
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "visual.head": torch.zeros(160, 32),
        "textual.token_embedding.weight": torch.zeros(10, 8),
        "log_scale": torch.zeros(()),
    }
    for leaf in ("weight", "bias"):
        names[f"visual.pre_norm.{leaf}"] = state[f"pre_layrnorm.{leaf}"]
        names[f"visual.post_norm.{leaf}"] = state[f"post_layernorm.{leaf}"]
        for layer in range(2):
            theirs, block = f"encoder.layers.{layer}", f"visual.transformer.{layer}"
            parts = [state[f"{theirs}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            names[f"{block}.attn.to_qkv.{leaf}"] = torch.cat(parts)
            names[f"{block}.attn.proj.{leaf}"] = state[f"{theirs}.self_attn.out_proj.{leaf}"]
            names[f"{block}.norm1.{leaf}"] = state[f"{theirs}.layer_norm1.{leaf}"]
            names[f"{block}.norm2.{leaf}"] = state[f"{theirs}.layer_norm2.{leaf}"]
            names[f"{block}.mlp.0.{leaf}"] = state[f"{theirs}.mlp.fc1.{leaf}"]
            names[f"{block}.mlp.2.{leaf}"] = state[f"{theirs}.mlp.fc2.{leaf}"]
    return names


@pytest.mark.parametrize("form", FORMS)
def test_clip(clip, tmp_path, form):
    path = tmp_path
    if form == "original":
        path = tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
        torch.save(original_clip(clip), path)
    elif form == "comfyui":
        path = tmp_path / "clip_vision_h.safetensors"
        state = {f"vision_model.{name}": value for name, value in plain_names(clip).items()}
        save_file(state | {"visual_projection.weight": torch.zeros(32, 160)}, path)
    else:
        clip.save_pretrained(tmp_path)
    assert recognise(path).kind == IMAGE_ENCODER
    encoder = load_image_encoder(path)
    images = torch.rand(1, 3, 28, 28) * 2 - 1
    loaded = {name.removeprefix("vision_model."): value for name, value in encoder.model.state_dict().items()}
    assert all(torch.equal(loaded[name], value) for name, value in plain_names(clip).items())
    assert encoder.encode(images).shape == (1, 1 + math.isqrt(4) ** 2, 160)
    assert cli.main(["inspect", str(path)]) == 0


def test_another_clip_is_refused(tmp_path):
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(1024)}, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="not those of a whole clip-vision"):
        load_image_encoder(tmp_path / "clip.safetensors")
