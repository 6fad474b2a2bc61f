"""Training of the miniature's umT5 and CLIP vision tower: contrastive, on pictures and captions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
import torch
from pydantic import Field
from torch import Tensor, nn

from contextanyone_core.atomic_file import write_text
from contextanyone_core.encoders.image import (
    build_image_model,
    clip_pixels,
    load_image_encoder,
    mini_image_config,
    save_image_encoder,
)
from contextanyone_core.encoders.text import (
    TextEncoder,
    build_text_model,
    load_text_encoder,
    mini_text_config,
    save_text_encoder,
)
from contextanyone_core.errors import InputError
from training.files import write_png
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.parts.captions_tokenizer import END_ID, PAD_ID, train_tokenizer
from training.parts.encoder_data import Pair, Variety, draw_pairs, stack_labels
from training.parts.encoder_heads import EncoderHeads, also_true, contrastive_loss, label_loss
from training.randomness import numpy_generator
from training.world import TEST_SEED_START

TEXT_FILE = "text_encoder.safetensors"
IMAGE_FILE = "image_encoder.safetensors"
_EVALUATION_CHUNK = 128
_SHOWN_CAPTIONS, _SHOWN_PICTURES = 12, 6


class Settings(PartSettings):
    """What the encoders are trained on. text and image change single keys of the miniature's configs."""

    name: Literal["encoders"] = "encoders"
    pictures: int = Field(128, ge=4, multiple_of=2)  # of a batch; two per character, in two scenes
    vocab_size: int = Field(1000, ge=400)  # at most; the captions' grammar holds fewer words
    tokenizer_captions: int = Field(20_000, ge=100)
    label_weight: float = Field(0.5, ge=0)  # of the two label losses, beside the contrastive loss
    projection: int = Field(128, ge=1)
    white_background: float = Field(0.1, ge=0, le=1)  # shares of the pictures
    blur: float = Field(0.2, ge=0, le=1)
    foreign_words: float = Field(0.1, ge=0, le=1)  # share of the captions
    test_pictures: int = Field(1024, ge=4, multiple_of=2)
    text: dict[str, int] = Field(default_factory=dict)
    image: dict[str, int] = Field(default_factory=dict)


class EncodersPart:
    """umT5 and the CLIP vision tower, with heads that only the training has."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self._settings = settings
        self._seed, self._own_seed = context.seed, context.own_seed
        if context.init_from is None:
            self._fresh()
        else:
            self._warm(context.init_from)
        # Backward through torch's fused attention in bf16 takes longer on a CPU than all the rest of the tower.
        self._image.set_attn_implementation("eager")
        self._picture_size: int = self._image.config.image_size  # worker processes have no network
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=self._spiece_model)
        self._heads = EncoderHeads(self._text.config.d_model, self._image.config.hidden_size, settings.projection)

    def modules(self) -> dict[str, nn.Module]:
        """Return both encoders and the heads."""
        return {"text": self._text, "image": self._image, "heads": self._heads}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return matrices with weight decay, vectors and the temperature without."""
        return default_groups(self.modules())

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return uint8 pictures (B, S, S, 3), tokens and their mask (B, L), labels (B, 11) of pictures and captions."""
        settings = self._settings
        rng = numpy_generator(self._own_seed, step, "encoders")
        variety = Variety(settings.white_background, settings.blur, settings.foreign_words)
        seeds = rng.integers(TEST_SEED_START, size=settings.pictures // 2)
        return self._collate([pair for seed in seeds for pair in self._pairs(int(seed), variety, rng)])

    def loss(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return InfoNCE plus the label losses per picture, and the accuracies of each side.

        Paper: the labels are an addition to the contrastive training. They ensure that the tokens that the
        transformer reads (all of umT5's, the vision tower's penultimate ones) contain every attribute.
        """
        texts, pictures, tokens = self._pooled(batch)
        excluded = also_true(batch["caption_labels"], batch["picture_labels"])
        loss, found = contrastive_loss(self._heads.similarities(texts, pictures), excluded)
        text_loss, told = label_loss(self._heads.text_logits(texts), batch["caption_labels"], unnamed_class=True)
        image_loss, seen = label_loss(self._heads.image_logits(tokens), batch["picture_labels"], unnamed_class=False)
        metrics: Metrics = {"contrastive": loss.detach(), **found}
        metrics["text_labels"] = torch.cat(list(told.values()))
        metrics["image_labels"] = torch.cat(list(seen.values()))
        return loss + self._settings.label_weight * (text_loss + image_loss), metrics

    def sample(self, step: int, folder: Path) -> None:
        """Write metrics.json on test characters, and retrieval.png with captions.txt.

        The picture has a row for each caption: its own picture, then the nearest ones.
        """
        pairs = self._test_pairs()
        similarities, metrics = self.evaluate(pairs)
        write_text(folder / "metrics.json", json.dumps({"step": step, **metrics}, indent=1) + "\n")
        shown = range(0, 2 * _SHOWN_CAPTIONS, 2)
        nearest = min(_SHOWN_PICTURES, len(pairs))
        rows = [[i, *similarities[i].topk(nearest).indices.tolist()] for i in shown if i < len(pairs)]
        sheet = np.concatenate([np.concatenate([pairs[i].picture for i in row], axis=1) for row in rows])
        write_png(folder / "retrieval.png", sheet)
        captions = "".join(f"{pairs[row[0]].caption}\n" for row in rows)
        write_text(folder / "captions.txt", captions)

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write text_encoder.safetensors (with the tokenizer) and image_encoder.safetensors, fp16."""
        extra = {"record": json.dumps(record, sort_keys=True)}
        text = TextEncoder(self._text, self._spiece_model, self._text_len)
        save_text_encoder(text, folder / TEXT_FILE, extra)
        save_image_encoder(self._image, folder / IMAGE_FILE, extra)

    @torch.no_grad()
    def evaluate(self, pairs: Sequence[Pair]) -> tuple[Tensor, dict[str, float]]:
        """Return similarities (N captions, N pictures) and accuracies.

        Those are retrieval among the N both ways, and each label from the text and from the image.
        """
        chunks = [self._collate(pairs[i : i + _EVALUATION_CHUNK]) for i in range(0, len(pairs), _EVALUATION_CHUNK)]
        device = self._heads.logit_scale.device
        encoded = [self._pooled({name: value.to(device) for name, value in chunk.items()}) for chunk in chunks]
        texts, pictures, tokens = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        captions = stack_labels(pair.caption_labels for pair in pairs).to(device)
        shown = stack_labels(pair.picture_labels for pair in pairs).to(device)
        similarities = self._heads.similarities(texts, pictures)
        found = contrastive_loss(similarities, also_true(captions, shown))[1]
        told = label_loss(self._heads.text_logits(texts), captions, unnamed_class=True)[1]
        seen = label_loss(self._heads.image_logits(tokens), shown, unnamed_class=False)[1]
        accuracies = {**found, **_prefixed("text", told), **_prefixed("image", seen)}
        return similarities.cpu(), {name: round(float(value.mean()), 4) for name, value in accuracies.items()}

    def _fresh(self) -> None:
        settings = self._settings
        self._spiece_model = train_tokenizer(self._seed, settings.tokenizer_captions, settings.vocab_size)
        pieces = sentencepiece.SentencePieceProcessor(model_proto=self._spiece_model).vocab_size()
        text_config = {**mini_text_config(pieces), **settings.text}
        self._text_len = text_config["text_len"]
        self._text = build_text_model(text_config)
        self._image = build_image_model({**mini_image_config(), **settings.image})

    def _warm(self, weights: Path) -> None:
        """Take both encoders from the folder of one of their files."""
        text_file, image_file = weights.parent / TEXT_FILE, weights.parent / IMAGE_FILE
        missing = [file.name for file in (text_file, image_file) if not file.is_file()]
        if missing:
            raise InputError(
                f"init.from is {weights}; {TEXT_FILE} and {IMAGE_FILE} must be in its folder, "
                f"but there is no {' and no '.join(missing)}."
            )
        text, image = load_text_encoder(text_file), load_image_encoder(image_file)
        self._spiece_model, self._text_len = text.spiece_model, text.text_len
        self._text, self._image = text.model.requires_grad_(True), image.model.requires_grad_(True)

    def _pairs(self, seed: int, variety: Variety, rng: np.random.Generator) -> list[Pair]:
        return draw_pairs(seed, self._picture_size, variety, rng)

    def _test_pairs(self) -> list[Pair]:
        rng = numpy_generator(self._seed, 0, "encoders, test")
        seeds = range(TEST_SEED_START, TEST_SEED_START + self._settings.test_pictures // 2)
        return [pair for seed in seeds for pair in self._pairs(seed, Variety(0.0, 0.0, 0.0), rng)]

    def _collate(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        tokens = [[*self._tokenizer.encode(pair.caption), END_ID][: self._text_len] for pair in pairs]
        length = max(map(len, tokens))
        lengths = torch.tensor([len(ids) for ids in tokens])
        return {
            "pictures": torch.from_numpy(np.stack([pair.picture for pair in pairs])),
            "tokens": torch.tensor([ids + [PAD_ID] * (length - len(ids)) for ids in tokens]),
            "mask": torch.arange(length)[None] < lengths[:, None],
            "picture_labels": stack_labels(pair.picture_labels for pair in pairs),
            "caption_labels": stack_labels(pair.caption_labels for pair in pairs),
        }

    def _pooled(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the heads read: texts (B, D), pictures (B, D) and penultimate image tokens (B, N, D).

        A text is the mean of umT5's last states, a picture CLIP's pooled class token.
        """
        mask = batch["mask"]
        hidden = self._text(input_ids=batch["tokens"], attention_mask=mask.long()).last_hidden_state
        texts = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        images = batch["pictures"].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        output = self._image(pixel_values=clip_pixels(images), output_hidden_states=True)
        return texts, output.pooler_output, output.hidden_states[-2]


def _prefixed(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}
