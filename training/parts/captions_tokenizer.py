"""The SentencePiece model of the miniature umT5, trained on captions of the character world."""

import io
from collections.abc import Iterator
from string import printable

import sentencepiece

from training.randomness import numpy_generator
from training.world import draw_character, draw_scene, first_caption, later_caption, neutral_prompts
from training.world.captions import draw_named

PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2
_SILENT_SHARE = 0.1


def caption_corpus(seed: int, count: int) -> Iterator[str]:
    """Yield count captions of train characters, first and later ones in turn, then the neutral prompts of one scene.

    Each comes a second time with a comma after every word: SentencePiece takes a whole word for a candidate only if
    it occurs in two different words ("with" and "with,").
    """
    rng = numpy_generator(seed, 0, "caption corpus")
    for index in range(count):
        character, scene = draw_character(rng, test=False), draw_scene(rng)
        caption = later_caption if index % 2 else first_caption
        text = caption(character, scene, draw_named(rng, silent_share=_SILENT_SHARE), rng)
        yield text
        yield " ".join(word.rstrip(",.") + "," for word in text.split())
    yield from neutral_prompts(draw_scene(rng))


def train_tokenizer(seed: int, captions: int, vocab_size: int) -> bytes:
    """Return a serialised unigram SentencePiece model: pad 0, end 1, unknown 2, no begin, byte fallback.

    Every printable ASCII character is a piece of its own beside the words of the captions, and all else becomes
    bytes, so nothing is unknown. Case is folded: "A WOMAN" and "a woman" are the same tokens. vocab_size is a most:
    the captions hold fewer words than that. The same arguments give the same bytes.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=caption_corpus(seed, captions),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        required_chars="".join(sorted(set(printable.lower()) - set(" \t\n\r\x0b\x0c"))),
        character_coverage=1.0,
        pad_id=PAD_ID,
        eos_id=END_ID,
        unk_id=UNKNOWN_ID,
        bos_id=-1,
        num_threads=1,
        input_sentence_size=0,
        minloglevel=2,
    )
    return written.getvalue()
