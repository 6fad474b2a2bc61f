"""A whole stack at tiny size, made once: real classes with random weights, written and read as a user's files are."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import sentencepiece
import torch

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import build_image_model, mini_image_config, save_image_encoder
from contextanyone_core.encoders.text import TextEncoder, build_text_model, mini_text_config, save_text_encoder
from contextanyone_core.encoders.vae import build_vae, mini_vae_config, save_vae
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer

# training/ and benchmarks/ are not installed. The root goes last: at the front, nodes/ would hide ComfyUI's `nodes`.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# A busy machine is no failure: no deadline for a single example.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)  # a failure is the change's, not luck
hypothesis.settings.load_profile("house")

SENTENCES = (
    "A woman with red hair is standing in the park on a bright day.",
    "The same person is waving at the beach at sunset.",
    "A man in a striped blue shirt walks along the street at night.",
)
MEAN = tuple(0.05 * channel - 0.3 for channel in range(16))
STD = tuple(1.0 + 0.02 * channel for channel in range(16))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, for what they run in other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def spiece_model() -> bytes:
    """A SentencePiece model trained on three sentences, with the ids and the byte fallback of umT5's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=written,
        vocab_size=340,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="session")
def tiny_config() -> ContextAnyoneConfig:
    """`ContextAnyoneConfig.tiny()` with room for a sentence and statistics that are not neutral."""
    return replace(ContextAnyoneConfig.tiny(), text_len=64, latents_mean=MEAN, latents_std=STD)


@pytest.fixture(scope="session")
def tiny_text(spiece_model: bytes, tiny_config: ContextAnyoneConfig) -> TextEncoder:
    """A text encoder of the tiny config's width."""
    torch.manual_seed(1)
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=spiece_model).vocab_size()
    config = mini_text_config(vocabulary) | {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    return TextEncoder(build_text_model(config).eval(), spiece_model, tiny_config.text_len)


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ContextAnyoneConfig, tiny_text: TextEncoder
) -> Path:
    """The four weight files of a tiny stack, float32."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(2)
    transformer = ContextAnyoneTransformer(tiny_config)
    for parameter in transformer.parameters():  # zero-initialised layers would hide what they should read
        torch.nn.init.normal_(parameter, std=0.1) if not parameter.any() else None
    save_transformer(folder / "transformer.safetensors", transformer, dtype=torch.float32)
    vae = build_vae(mini_vae_config() | {"base_dim": 4, "latents_mean": list(MEAN), "latents_std": list(STD)})
    save_vae(vae, folder / "vae.safetensors", dtype=torch.float32)
    save_text_encoder(tiny_text, folder / "text_encoder.safetensors", dtype=torch.float32)
    config = mini_image_config() | {"image_size": 16, "hidden_size": 24, "num_attention_heads": 2}
    save_image_encoder(build_image_model(config), folder / "image_encoder.safetensors", dtype=torch.float32)
    return folder
