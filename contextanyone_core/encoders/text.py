"""The text encoder: umT5 (transformers) with its SentencePiece model (the sentencepiece package).

ComfyUI reads the same file: transformers' names plus the tokenizer as the uint8 tensor `spiece_model`. Here and in
ComfyUI the text is passed to sentencepiece unchanged (no ftfy, no whitespace cleaning), the end token is appended, and
all rows beyond the tokens are zero; so the embeddings are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, InputError
from ..late_import import host_class
from ..model.transfer import moved
from ..weights.checkpoint import save_safetensors
from ..weights.naming import TEXT_ENCODER
from ..weights.source import open_source
from .loading import checked_config, fill, on_meta, open_weights

SPIECE = "spiece_model"
_MAX_SPIECE = 50_000_000  # maximum bytes of a SentencePiece model; umT5's has 4.5 million
_TIED = "encoder.embed_tokens.weight"
TEXT_KEYS = frozenset({"vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "text_len"})
"""Keys of the config in a text encoder's header."""


def mini_text_config(vocab_size: int) -> dict[str, int]:
    """Config of the miniature umT5 for a SentencePiece model of `vocab_size` pieces."""
    return {
        "vocab_size": vocab_size,
        "d_model": 128,
        "d_ff": 256,
        "d_kv": 32,
        "num_heads": 4,
        "num_layers": 4,
        "text_len": 128,
    }


def build_text_model(config: Mapping[str, int]) -> Any:
    """A transformers `UMT5EncoderModel` with random weights and no dropout, for a config like `mini_text_config`.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    module = "transformers.models.umt5"
    widths = {key: value for key, value in config.items() if key != "text_len"}
    model_config = host_class(f"{module}.configuration_umt5", "UMT5Config")(
        **widths, dropout_rate=0.0, feed_forward_proj="gated-gelu"
    )
    model = host_class(f"{module}.modeling_umt5", "UMT5EncoderModel")(model_config)
    model.set_input_embeddings(model.shared)
    return model


class Tokenizer:
    """Converts prompts to token ids by a SentencePiece model.

    Args:
        spiece_model: the serialised SentencePiece model.
        text_len: maximum number of tokens of a prompt, end token included.

    Raises:
        CheckpointError: the bytes are not a SentencePiece model.
    """

    def __init__(self, spiece_model: bytes, text_len: int) -> None:
        self.spiece_model = spiece_model
        self.text_len = text_len
        self._tokenizer = _processor(spiece_model)
        self.pieces = int(self._tokenizer.vocab_size())

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, the end token (1) last; prompts are never truncated."""
        end = int(self._tokenizer.eos_id())
        return [[*map(int, self._tokenizer.encode(prompt)), end] for prompt in prompts]

    def split(self, text: str) -> list[str]:
        """The pieces that a text falls into, as the SentencePiece model spells them."""
        return [str(piece) for piece in self._tokenizer.encode(text, out_type=str)]

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt, end token included."""
        return len(self.tokenize([prompt])[0])


def _processor(spiece_model: bytes) -> Any:
    try:
        if spiece_model:
            return host_class("sentencepiece", "SentencePieceProcessor")(model_proto=spiece_model)
    except RuntimeError:  # from sentencepiece's C++ code
        pass
    raise CheckpointError(
        f"The tokenizer ({len(spiece_model)} bytes) is no SentencePiece model; download umT5's spiece.model again, or "
        "a text encoder that holds it."
    )


class TextEncoder(Tokenizer):
    """umT5 with its tokenizer: encodes prompts as text embeddings of fixed length.

    Args:
        model: transformers' `UMT5EncoderModel`.
        spiece_model: the serialised SentencePiece model.
        text_len: rows of every embedding, and maximum number of tokens of a prompt, end token included.
        device: compute device, if the weights are offloaded elsewhere; None is the device of the weights.
    """

    def __init__(self, model: Any, spiece_model: bytes, text_len: int, *, device: torch.device | None = None) -> None:
        super().__init__(spiece_model, text_len)
        self.model = model
        self.text_dim = int(model.config.d_model)
        self._device = device

    @property
    def device(self) -> torch.device:
        """Device of the computation."""
        return torch.device(self.model.shared.weight.device if self._device is None else self._device)

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (B, text_len, text_dim) in float32; the rows beyond a prompt's tokens are zero.

        Raises:
            InputError: a prompt has more than `text_len` tokens.
        """
        tokens = self.tokenize(prompts)
        for prompt, ids in zip(prompts, tokens, strict=True):
            if len(ids) > self.text_len:
                raise InputError(
                    f"A prompt has {len(ids)} tokens, {len(ids) - self.text_len} more than the {self.text_len} "
                    f"that fit; shorten it: {prompt[:60]!r} ..."
                )
        length = max(map(len, tokens))
        input_ids = moved(torch.tensor([ids + [0] * (length - len(ids)) for ids in tokens]), self.device)
        lengths = moved(torch.tensor([len(ids) for ids in tokens]), self.device)
        mask = torch.arange(length, device=self.device)[None] < lengths[:, None]
        with torch.no_grad():
            hidden = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        embeds = hidden.float() * mask[..., None]
        return torch.nn.functional.pad(embeds, (0, 0, 0, self.text_len - length))


def save_text_encoder(
    encoder: TextEncoder, path: Path, extra: dict[str, str] | None = None, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write umT5 and its tokenizer as one safetensors file, under transformers' names plus `spiece_model`."""
    state = encoder.model.state_dict().items()
    tensors = {name: value.detach().to(dtype) for name, value in state if name != _TIED}
    tensors[SPIECE] = torch.frombuffer(bytearray(encoder.spiece_model), dtype=torch.uint8)
    config = {key: int(getattr(encoder.model.config, key)) for key in sorted(TEXT_KEYS - {"text_len"})}
    config["text_len"] = encoder.text_len
    save_safetensors(path, tensors, kind=TEXT_ENCODER, config=config, extra=extra)


def load_text_encoder(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load a file of `save_text_encoder`, or umT5-XXL as Wan's .pth, ComfyUI's single file or a diffusers folder.

    If the file holds no tokenizer, `spiece.model` is searched for at its place in Wan's and diffusers' folders.

    Raises:
        CheckpointError: the file is damaged, of another kind, does not fit its config, or there is no tokenizer.
        MissingDependencyError: transformers or sentencepiece is not installed.
    """
    config, tensors = open_weights(path, TEXT_ENCODER, TEXT_KEYS, dtype)
    spiece = _spiece_model(path, tensors.pop(SPIECE, None))
    tensors = {name: value.to(device=device, dtype=dtype) for name, value in tensors.items()}
    if "shared.weight" in tensors:
        tensors[_TIED] = tensors["shared.weight"]
    model = fill(on_meta(lambda: build_text_model(config)), tensors, path)
    encoder = TextEncoder(model, spiece, int(config["text_len"]))
    _check_pieces(path, encoder, config)
    return encoder


def read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer and the embedding width of a text encoder's file, without reading the weights.

    Raises:
        CheckpointError: as `load_text_encoder`, for errors visible in the header.
        MissingDependencyError: sentencepiece is not installed.
    """
    source = open_source(path)
    config = checked_config(source, TEXT_ENCODER, TEXT_KEYS)
    spiece = _spiece_model(path, source.read(SPIECE) if SPIECE in source.tensors else None)
    tokenizer = Tokenizer(spiece, int(config["text_len"]))
    _check_pieces(path, tokenizer, config)
    return tokenizer, int(config["d_model"])


def _check_pieces(path: Path, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    if tokenizer.pieces > config["vocab_size"]:
        raise CheckpointError(
            f"{path} knows {config['vocab_size']} tokens and its tokenizer has {tokenizer.pieces}: they do not belong "
            "together; use the spiece.model of this text encoder."
        )


def _spiece_model(path: Path, held: torch.Tensor | None) -> bytes:
    if held is None:
        return _tokenizer_beside(path)
    if held.dtype != torch.uint8:
        raise CheckpointError(f"{path} holds a damaged tokenizer: the tensor {SPIECE} is {held.dtype}, not uint8.")
    return held.numpy().tobytes()


def _tokenizer_beside(path: Path) -> bytes:
    """The SentencePiece model next to a file or folder that contains none."""
    folder = path if path.is_dir() else path.parent
    places = [folder / "spiece.model", folder.parent / "tokenizer" / "spiece.model"]
    places += [folder / "google" / "umt5-xxl" / "spiece.model", folder / "tokenizer" / "spiece.model"]
    for place in places:
        if place.is_file() and place.stat().st_size <= _MAX_SPIECE:
            return place.read_bytes()
    raise CheckpointError(
        f"{path} holds no tokenizer: there is neither a tensor {SPIECE} in it nor a spiece.model beside it; put "
        f"umT5's spiece.model into {folder}."
    )
