"""Writes the files that workflows 11 to 13 name, with the published tensors' names at small width, to run them.

Started with ComfyUI's own interpreter, since the shapes are those of its own classes:

    python small_files.py COMFYUI MODELS

Text encoder and background remover are what small_core.py builds: ComfyUI knows them at one size alone.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

COMFY, MODELS = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(COMFY))
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.ldm.wan.vae as wan_vae  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.text_encoders.t5 as t5  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from small_core import CONFIG  # noqa: E402

WORDS = "A woman with short red hair and a green coat, in a park, soft light. The same walks along beach at sunset."
FP8 = torch.float8_e4m3fn


def main() -> None:
    torch.manual_seed(0)
    tensors = transformer()
    for name in ("wan2.1_bernini_1.3B_fp16", "diffusion_pytorch_model-refalign"):
        write(f"diffusion_models/{name}", tensors)
    write("text_encoders/umt5_xxl_fp8_e4m3fn_scaled", text_encoder())
    write("vae/wan_2.1_vae", vae())
    write("loras/Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32", lora(tensors))
    mark = "bb.layers.1.blocks.0.attn.relative_position_index"  # by which ComfyUI knows the file
    write("background_removal/birefnet", {mark: torch.zeros(1)})


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    path = MODELS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def random(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Small random weights; the scales of norms stay near 1."""
    scales = ("norm_q.weight", "norm_k.weight", "gamma")
    return {
        name: torch.randn_like(tensor) * 0.05 + float(name.endswith(scales))
        for name, tensor in module.state_dict().items()
    }


def transformer() -> dict[str, torch.Tensor]:
    sizes: dict[str, Any] = {"dim": 256, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 4096}
    network = wan.WanModel("t2v", operations=comfy.ops.disable_weight_init, dtype=torch.float32, **sizes)
    return {name: tensor.half() for name, tensor in random(network).items()}


def vae() -> dict[str, torch.Tensor]:
    sizes: dict[str, Any] = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    network = wan_vae.WanVAE(temperal_downsample=[False, True, True], dropout=0.0, **sizes)
    return {name: tensor.half() for name, tensor in random(network).items()}


def lora(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {}
    for name, tensor in tensors.items():
        if ".attn" in name or name.endswith((".q.weight", ".o.weight", "ffn.0.weight")):
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            made[f"{key}.lora_A.weight"] = torch.randn(4, tensor.shape[1]).half() * 0.02
            made[f"{key}.lora_B.weight"] = torch.randn(tensor.shape[0], 4).half() * 0.02
    return made


def text_encoder() -> dict[str, torch.Tensor]:
    """umT5's tensors in scaled fp8, with a tokenizer of a few letters in the file, as in the published one."""
    network = t5.T5(CONFIG, torch.float32, torch.device("cpu"), comfy.ops.disable_weight_init)
    tensors = {"scaled_fp8": torch.zeros(2, dtype=FP8), "spiece_model": tokenizer()}
    tensors["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 1, dtype=FP8)  # tells XXL
    for name, tensor in random(network).items():
        if "layer_norm" in name:
            tensors[name] = torch.ones_like(tensor).half()
        elif ("SelfAttention" in name and "bias" not in name) or "DenseReluDense" in name:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(FP8)
            tensors[f"{name.removesuffix('.weight')}.scale_weight"] = scale.reshape(1)
        else:
            tensors[name] = tensor.half()
    return tensors


def tokenizer() -> torch.Tensor:
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 4), model_writer=proto, model_type="char", vocab_size=CONFIG["vocab_size"],
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(proto.getvalue()), dtype=torch.uint8)


if __name__ == "__main__":
    main()
