"""Pictures, prompts and models that cannot be used are named in the artist's words, with what to connect."""

from __future__ import annotations

import tempfile
from unittest import mock

import stack
import torch
from graph import Session, call, pack
from refusals import apply, prompt, refusal, with_text
from stack import applied, ksampler, miniature
from torch.nn import Linear


def check_pictures_without_sense_are_refused():
    _, _, vae, clip_vision = miniature()
    take = pack("nodes._comfy.references").take_pictures
    bad = torch.rand(1, 32, 32, 3)
    bad[0, 0, 0, 0] = torch.nan
    assert "1 x 1 pixels" in refusal(lambda: take(torch.zeros(1, 1, 1, 3), None, vae, clip_vision))
    assert "NaN" in refusal(lambda: take(bad, None, vae, clip_vision))
    assert "mask is empty" in refusal(lambda: take(torch.rand(1, 32, 32, 3), torch.zeros(1, 32, 32), vae, None))
    clear = torch.rand(1, 32, 32, 4)
    clear[..., 3] = 0
    assert "picture is transparent" in refusal(lambda: take(clear, None, vae, None))
    assert "2 masks for 1" in refusal(lambda: take(torch.rand(1, 32, 32, 3), torch.ones(2, 32, 32), vae, None))


def check_what_is_no_picture_says_what_to_do():
    take = pack("nodes._comfy.references").take_pictures
    vae = miniature()[2]
    wrong = {
        "image is an empty batch": torch.rand(0, 32, 32, 3),
        "image has 1 channel": torch.rand(1, 32, 32, 1),
        "image has 2 channels": torch.rand(1, 32, 32, 2),
        "image has shape (32, 32, 3)": torch.rand(32, 32, 3),
        "image holds torch.uint8": (torch.rand(1, 32, 32, 3) * 255).byte(),
        "from 0 to 255": torch.linspace(0, 255, 32 * 32 * 3).view(1, 32, 32, 3),
        "image is null; connect Load Image": None,
    }
    for words, image in wrong.items():
        assert words in refusal(lambda image=image: take(image, None, vae, None))
    half = torch.rand(1, 32, 32, 3).half()
    assert len(take(half, None, vae, None)) == 1


def check_the_mask_of_an_opaque_picture_says_what_to_do():
    """Load Image gives 64 x 64 zeros for a picture without transparency."""
    take = pack("nodes._comfy.references").take_pictures
    words = refusal(lambda: take(torch.rand(1, 96, 32, 3), torch.zeros(1, 64, 64), miniature()[2], None))
    assert "The mask is empty" in words
    assert "disconnect mask" in words
    assert "1 masks" not in words


def check_null_inputs_are_named():
    own, _, vae, _ = miniature()
    assert "reference is null; connect ContextAnyone Reference" in refusal(lambda: apply(reference=None))
    assert "reference is a list" in refusal(lambda: apply(reference=[1]))
    for name in ("model", "positive", "negative"):
        assert f"{name} is null; connect" in refusal(lambda name=name: apply(**{name: None}))
    assert "positive is an empty CONDITIONING" in refusal(lambda: apply(positive=[]))
    take = pack("nodes._comfy.references").take_pictures
    assert "vae is null; connect Load VAE" in refusal(lambda: take(torch.rand(1, 32, 32, 3), None, None, None))
    texts = {"first": "A person.", "later": "", "negative": ""}
    assert "clip is null; connect Load CLIP" in refusal(lambda: call("ContextAnyonePrompt", clip=None, **texts))
    run = Session().run(prompt(reference=None), keep={"latent": ("4", 0)})
    assert run.problem.startswith("reference is null"), run.problem
    assert run.error["exception_type"] == "contextanyone_core.errors.InputError", "no path of the server's folders"
    picture = call("ContextAnyoneExamplePicture", picture=stack.PICTURE)[0]
    given = {"image": picture, "vae": vae, "clip_vision": None, "mask": None, "reference": None}
    assert "reference is null" in refusal(lambda: call("ContextAnyoneReference", **given))
    given = {"positive": with_text(128), "negative": with_text(128), "guidance_scale": 1.0, "reference_scale": 1.0}
    assert "model is null" in refusal(lambda: call("ContextAnyoneGuider", model=None, **given))
    given |= {"model": own, "negative": None}
    assert "negative is null" in refusal(lambda: call("ContextAnyoneGuider", **given))


def check_a_mask_puts_the_subject_on_white():
    _, _, vae, _ = miniature()
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    (taken,) = pack("nodes._comfy.references").take_pictures(torch.zeros(1, 32, 32, 3), mask, vae, None)
    assert float(taken.image[..., :8, :].min()) == 1.0
    assert float(taken.image[..., 8:24, 8:24].max()) == -1.0
    for other in (mask[0], mask[None]):  # as some packs give it
        (same,) = pack("nodes._comfy.references").take_pictures(torch.zeros(1, 32, 32, 3), other, vae, None)
        assert torch.equal(same.image, taken.image)


def check_another_text_encoder_is_named():
    words = refusal(lambda: apply(positive=with_text(4096)))
    assert "gives 4096 channels, the model wants 128" in words


def check_a_prompt_that_is_too_long_says_by_how_much():
    words = refusal(lambda: apply(positive=with_text(128, rows=130)))
    assert "The prompt at positive" in words
    assert "130 tokens, 2 more than the 128" in words
    words = refusal(lambda: apply(negative=with_text(128, rows=131)))
    assert "The negative prompt at negative" in words
    assert "131 tokens, 3 more than the 128" in words
    long = {"contextanyone_first_prompt": with_text(128, rows=132)[0][0]}
    (picture,) = stack.references(stack.PICTURE)
    with torch.inference_mode():
        words = refusal(lambda: apply(positive=[[with_text(128)[0][0], long]], reference=(picture,)))
    assert words.startswith("The first-frame prompt")


def check_a_long_negative_is_blamed_by_every_node():
    run = Session().run(prompt(negative="blurry " * 200), keep={"latent": ("4", 0)})
    assert run.problem.startswith("The negative prompt (negative of ContextAnyone Sampler) has"), run.problem
    own, positive, _, latent = applied()
    with torch.inference_mode():
        words = refusal(lambda: ksampler(own, positive, with_text(128, rows=130), latent))
    assert words.startswith("The negative prompt has 130 tokens")


def check_padding_between_joined_prompts_is_no_prompt():
    """ConditioningConcat puts a prompt's 512 rows behind another's."""
    one, two = with_text(128, rows=20)[0][0], with_text(128, rows=30)[0][0] * 2
    joined = torch.cat((one, two), 1)
    fitted = pack("contextanyone_core.encoders.reference").fit_text_embeds(joined, miniature()[0].model.config)
    assert torch.equal(fitted[:, :50], torch.cat((one[:, :20], two[:, :30]), 1))
    assert not fitted[:, 50:].any()
    apply(positive=[[joined, {}]])
    longer = torch.cat((with_text(128, rows=100)[0][0], two), 1)
    assert "has 130 tokens, 2 more" in refusal(lambda: apply(positive=[[longer, {}]]))


def check_text_is_taken_literally():
    """Weights and embeddings of ComfyUI's prompts are characters like any others."""
    clip = miniature()[1]
    encode = pack("nodes._comfy.references")._encode_text
    text = "a (person:1.3) embedding:foo waving \\(here\\)"
    name = clip.tokenizer.clip
    plain = getattr(clip.tokenizer, name).tokenizer(text)["input_ids"]
    count = int(encode(clip, text)[0][0].any(-1).sum())
    assert count == len(plain), (count, plain)
    getattr(clip.tokenizer, name).embedding_directory = tempfile.mkdtemp()
    try:
        seen = []
        with mock.patch.object(type(clip), "encode_from_tokens_scheduled", lambda _, tokens: seen.append(tokens)):
            encode(clip, text)
        ((tokens,),) = (found.values() for found in seen)
        assert [token for token, _ in tokens[0]][: len(plain)] == plain
    finally:
        getattr(clip.tokenizer, name).embedding_directory = None


def check_another_vae_is_named():
    class ImageVae:
        def encode(self, pixels):
            return torch.zeros(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8)

    picture = pack("nodes._comfy.references").ReferencePicture(torch.zeros(1, 3, 32, 32), ImageVae(), None)
    words = refusal(lambda: apply(reference=(picture,)))
    assert "This VAE makes latents of shape (1, 4, 6, 8)" in words
    assert "wan_2.1_vae" in words


def check_another_clip_vision_is_named_and_a_missing_one_too():
    kind, vae = pack("nodes._comfy.references").ReferencePicture, miniature()[2]
    image = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        words = refusal(lambda: apply(reference=(kind(image, vae, torch.zeros(1, 5, 1280)),)))
        assert "gives 1280 channels, the model wants 128" in words
        assert "connect clip_vision" in refusal(lambda: apply(reference=(kind(image, vae, None),)))


def check_another_model_is_named():
    class Other:
        model = Linear(1, 1)

    assert "This MODEL is a Linear" in refusal(lambda: apply(model=Other()))
