"""Model variants for ablations, each with a single change; none is part of the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from contextanyone_core.errors import InputError
from contextanyone_core.model.attention import AttentionFunction, KeysValues
from contextanyone_core.model.blocks import BlockCache, Stream, TransformerBlock, _gated, _modulated
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import InContextReferences, ReferenceCache, ReferenceInputs
from contextanyone_core.model.rope import reference_table, video_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer, TransformerOutput
from evaluation.ablation.vace import ContextBranch, VaceTransformer

Variant = Literal[
    "none",  # the model itself; the cell differs in settings only
    "joint_attention",  # symmetric attention: references and video attend to each other
    "clip_only",  # the video is conditioned on the references' CLIP tokens only
    "clip_frame",  # the reference is the first frame of the clip itself
    "plain_captions",  # captions name no attributes of the person
    "one_prompt",  # both streams get the later prompt
    "wrong_people",  # a tenth of the references show another person
    "text_only",  # never a reference
    "aligned",  # reference tokens are aligned to the CLIP tower's (`alignment`)
    "vace",  # context blocks, the reference a first frame (`vace`); of the reference mode `phantom`
]


def as_variant(network: ContextAnyoneTransformer, variant: Variant) -> ContextAnyoneTransformer:
    """The same weights in the network of a variant."""
    kinds: dict[str, type[ContextAnyoneTransformer]] = {
        "joint_attention": JointTransformer,
        "clip_only": ClipOnlyTransformer,
        "vace": VaceTransformer,
    }
    if variant not in kinds:
        return network
    with torch.device("meta"):
        built = kinds[variant](network.config, attention=network.attention)
    built.load_state_dict(network.state_dict(), assign=True)
    if isinstance(built, VaceTransformer):
        built.context = ContextBranch(built)
    return built.train(network.training)


class ClipOnlyTransformer(ContextAnyoneTransformer):
    """Conditioned on CLIP tokens only: no reference stream in self-attention, no Emphasize-Attention."""

    def encode_references(
        self, references: ReferenceInputs, *, attention: AttentionFunction | None = None
    ) -> ReferenceCache:
        """As in the model; of each block the keys and values of the CLIP tokens alone."""
        cache = super().encode_references(references, attention=attention)
        blocks = [
            BlockCache(KeysValues(*(part[:, :0] for part in block.self_attn)), None, block.image)
            for block in cache.blocks
        ]
        return ReferenceCache(blocks, cache.outputs)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        references: ReferenceInputs | InContextReferences | None = None,
        cache: ReferenceCache | None = None,
        attention: AttentionFunction | None = None,
        **options: Any,
    ) -> TransformerOutput:
        """As in the model; a reference stream is always run by `encode_references`."""
        outputs = None
        if isinstance(references, ReferenceInputs):
            cache = self.encode_references(references, attention=attention)
            outputs, references = cache.outputs, None
        options |= {"references": references, "cache": cache, "attention": attention}
        found = super().forward(latents, timesteps, text_embeds, **options)
        return TransformerOutput(found.velocity, outputs)


@dataclass(frozen=True)
class JointReferences(ReferenceCache):
    """References of joint attention, which cannot be computed in advance: inputs for every step."""

    inputs: ReferenceInputs | None = None


class JointTransformer(ContextAnyoneTransformer):
    """Symmetric attention: in self-attention all tokens of video and references attend to all tokens."""

    def encode_references(
        self, references: ReferenceInputs, *, attention: AttentionFunction | None = None
    ) -> ReferenceCache:
        """Return the inputs only: the references are recomputed in every step."""
        self._check_references(references)
        return JointReferences([], [], references)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        references: ReferenceInputs | InContextReferences | None = None,
        cache: ReferenceCache | None = None,
        emphasis: float = 1.0,
        condition: VideoCondition | None = None,
        attention: AttentionFunction | None = None,
    ) -> TransformerOutput:
        """As in the model."""
        if isinstance(cache, JointReferences):
            references, cache = cache.inputs, None
        if references is None:
            return super().forward(
                latents, timesteps, text_embeds, emphasis=emphasis, condition=condition, attention=attention
            )
        if isinstance(references, InContextReferences):
            raise InputError(
                "Joint attention is built for references of a stream of their own, not for in-context ones."
            )
        if condition is not None:
            raise InputError("A condition is given; joint attention is built without condition channels.")
        if len(references.latents) != 1:
            raise InputError(f"There are {len(references.latents)} references; joint attention is built for one.")
        attention = attention or self.attention
        batch = latents.shape[0]
        video_stream, time_embeds = self._stream(latents, timesteps, text_embeds, None)
        gap = self.config.gap if references.gap is None else references.gap
        reference = references.latents[0].expand(batch, -1, -1, -1, -1)
        clean = torch.zeros(batch, device=latents.device)
        levels = clean if references.timesteps is None else references.timesteps
        first = references.text_embeds.expand(batch, -1, -1)
        reference_stream, reference_time = self._stream(reference, levels, first, gap)
        image = None
        if references.image_embeds and self.img_emb is not None:
            image = self.img_emb(torch.cat(references.image_embeds, dim=1)).expand(batch, -1, -1)
        x, y = self._embed_patches(latents), self._embed_patches(reference)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            x, y = _joint_block(block, (x, video_stream), (y, reference_stream), image, emphasis, attention)
        output = self._unpatch(self.head(y, reference_time), self._grid(reference))
        return TransformerOutput(self._unpatch(self.head(x, time_embeds), self._grid(latents)), [output])

    def _stream(
        self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, gap: float | None
    ) -> tuple[Stream, Tensor]:
        grid = self._grid(latents)
        time_embeds, modulation = self._embed_time(timesteps, latents)
        place = self.config.head_dim, latents.device
        table = video_table((grid,), *place) if gap is None else reference_table((grid,), gap, *place)
        tokens = grid[0] * grid[1] * grid[2]
        return Stream(modulation, self.text_embedding(text_embeds), table, (tokens,)), time_embeds


def _joint_block(
    block: TransformerBlock,
    video: tuple[Tensor, Stream],
    reference: tuple[Tensor, Stream],
    image: Tensor | None,
    emphasis: float,
    attention: AttentionFunction,
) -> tuple[Tensor, Tensor]:
    """Run a block over both streams, (B, tokens, C) each, with the keys of both in self-attention."""
    (x, video_stream), (y, reference_stream) = video, reference
    modulations = block._modulation(video_stream), block._modulation(reference_stream)
    hidden = [
        _modulated(block.norm1, tokens, *modulation[:2]) for tokens, modulation in zip((x, y), modulations, strict=True)
    ]
    streams = (video_stream, reference_stream)
    parts = [block.self_attn.keys_values(h, stream.rotary) for h, stream in zip(hidden, streams, strict=True)]
    both = KeysValues(*(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)))
    x, y = (
        _gated(
            tokens, block.self_attn.attend(block.self_attn.queries(h, stream.rotary), both, attention), modulation[2]
        )
        for tokens, h, stream, modulation in zip((x, y), hidden, streams, modulations, strict=True)
    )
    clip = None if image is None else block.cross_attn.image_keys_values(image)
    x = x + block.cross_attn(block.norm3(x), video_stream.text, clip, attention)
    y = y + block.cross_attn(block.norm3(y), reference_stream.text, None, attention)
    if block.norm_emphasize is not None and block.emphasize_attn is not None and emphasis != 0:
        read = block.emphasize_attn.keys_values(block.norm_emphasize(y), reference_stream.rotary)
        x = x + emphasis * block.emphasize_attn(block.norm_emphasize(x), read, video_stream.rotary, attention)
    x, y = (
        _gated(tokens, block.ffn(_modulated(block.norm2, tokens, *modulation[3:5])), modulation[5])
        for tokens, modulation in zip((x, y), modulations, strict=True)
    )
    return x, y
