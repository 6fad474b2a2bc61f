"""Emphasize-Attention beside a second computation of it: what its keys are of, and what `emphasis` multiplies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.model.blocks import Stream, TransformerBlock
from contextanyone_core.model.rope import grid_positions, reference_positions, rotary_table

CONFIG = ContextAnyoneConfig.tiny()
HEADS, WIDTH = CONFIG.num_heads, CONFIG.dim // CONFIG.num_heads


@pytest.fixture
def block() -> TransformerBlock:
    """A random block whose feed-forward layer adds nothing: its output is the stream after the attentions."""
    torch.manual_seed(0)
    block = TransformerBlock(CONFIG, nn).requires_grad_(False)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    last = block.ffn[2]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return block


def stream(positions: Tensor, lengths: tuple[int, ...]) -> Stream:
    text = torch.randn(1, CONFIG.text_len, CONFIG.dim)
    return Stream(torch.randn(1, 6, CONFIG.dim), text, rotary_table(positions, WIDTH), lengths)


REFERENCE, VIDEO = reference_positions(0, 2, 3, 10.0), grid_positions(3, 2, 3)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Each pair of neighbouring channels of a head as a complex number, turned by its angle; x (B, tokens, C)."""
    cos, sin = rotary_table(positions, WIDTH)
    pairs = torch.view_as_complex(x.view(1, -1, HEADS, WIDTH // 2, 2))
    turned = pairs * torch.complex(cos[:, ::2], sin[:, 1::2])[:, None]
    return torch.view_as_real(turned).flatten(2)


def projected(norm: nn.RMSNorm, linear: nn.Linear, x: Tensor) -> Tensor:
    found = linear(x)
    return found * found.square().mean(-1, keepdim=True).add(CONFIG.eps).rsqrt() * norm.weight


def test_its_keys_and_values_are_of_the_stream_after_both_attentions(block: TransformerBlock) -> None:
    x = torch.randn(1, len(REFERENCE), CONFIG.dim)
    after, cache = block.encode_reference(x, stream(REFERENCE, (len(REFERENCE),)), None, torch_attention)
    assert cache.emphasize is not None
    norm, own = block.norm_emphasize, block.emphasize_attn
    assert norm is not None
    assert own is not None
    read = F.layer_norm(after, (CONFIG.dim,), norm.weight, norm.bias, CONFIG.eps)
    expected = rotated(projected(own.norm_k, own.k, read), REFERENCE)
    torch.testing.assert_close(cache.emphasize.keys, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cache.emphasize.values, own.v(read), rtol=1e-4, atol=1e-4)


def test_in_both_streams_the_feed_forward_comes_after_it(block: TransformerBlock) -> None:
    """What is emphasized, and where it is added, is the stream before the feed-forward of the same block."""
    reference, video = torch.randn(1, len(REFERENCE), CONFIG.dim), torch.randn(1, len(VIDEO), CONFIG.dim)
    streams = stream(REFERENCE, (len(REFERENCE),)), stream(VIDEO, (len(VIDEO),))

    def run() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        after, cache = block.encode_reference(reference, streams[0], None, torch_attention)
        assert cache.emphasize is not None
        return after, block.denoise_video(video, streams[1], cache, 0.7, torch_attention), tuple(cache.emphasize)

    *before, emphasized = run()
    nn.init.normal_(block.ffn[2].weight, std=0.3)
    *after, again = run()
    assert all(torch.equal(one, other) for one, other in zip(emphasized, again, strict=True))
    for x, found, own in zip(before, after, streams, strict=True):
        shift, scale, gate = (block.modulation + own.modulation).chunk(6, dim=1)[3:]
        expected = x + gate * block.ffn(F.layer_norm(x, (CONFIG.dim,), eps=CONFIG.eps) * (1 + scale) + shift)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, x, atol=0.1)


@pytest.mark.parametrize("emphasis", [0.3, 1.0, 2.0])
def test_emphasis_multiplies_what_the_video_reads_the_second_time(block: TransformerBlock, emphasis: float) -> None:
    reference, video = torch.randn(1, len(REFERENCE), CONFIG.dim), torch.randn(1, len(VIDEO), CONFIG.dim)
    _, cache = block.encode_reference(reference, stream(REFERENCE, (len(REFERENCE),)), None, torch_attention)
    own_stream = stream(VIDEO, (len(VIDEO),))
    without, found = (block.denoise_video(video, own_stream, cache, e, torch_attention) for e in (0.0, emphasis))
    norm, own = block.norm_emphasize, block.emphasize_attn
    assert norm is not None
    assert own is not None
    assert cache.emphasize is not None
    read = F.layer_norm(without, (CONFIG.dim,), norm.weight, norm.bias, CONFIG.eps)
    queries = rotated(projected(own.norm_q, own.q, read), VIDEO)
    heads = [t.view(1, -1, HEADS, WIDTH).transpose(1, 2) for t in (queries, *cache.emphasize)]
    scores = (heads[0] @ heads[1].transpose(-1, -2) / WIDTH**0.5).softmax(-1)
    added = own.o((scores @ heads[2]).transpose(1, 2).flatten(2))
    assert added.abs().mean() > 0.1
    torch.testing.assert_close(found - without, emphasis * added, rtol=1e-3, atol=1e-3)
