"""The chain gpu's parts on transformers' own classes, tiny and with random weights, loaded from folders."""

import numpy as np
import pytest
import torch
import transformers as t

from contextanyone_core.errors import InputError
from data_pipeline.config import GpuModels
from data_pipeline.licences import ModelCard
from data_pipeline.models.gpu import DiffusersEditor, DinoVectors, GpuKit, SamMasks, TransformersDetector
from data_pipeline.models.pictures import _loaded
from data_pipeline.stage import UnavailableError


def settings(folder, **changed):
    given = {name: str(folder / name) for name in ("detector", "segmenter", "embedder")}
    return GpuModels(**given | {"mediapipe": "wheel", "server": "http://localhost:1/v1", "device": "cpu"} | changed)


def picture(height=48, width=80):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_detector(folder, favourite):
    """RT-DETR that is sure that each of its ten queries is of one class."""
    torch.manual_seed(0)
    backbone = t.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = t.RTDetrConfig(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=32, encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=32, encoder_attention_heads=2, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32,
        decoder_attention_heads=2, decoder_layers=2, num_queries=10, id2label={0: "person", 1: "bicycle"},
    )  # fmt: skip
    model = t.RTDetrForObjectDetection(config)
    with torch.no_grad():
        for layer in model.model.decoder.class_embed:
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([3.0, -3.0] if favourite == "person" else [-3.0, 3.0]))
    model.save_pretrained(folder)
    t.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.mark.parametrize(("favourite", "count"), [("person", 10), ("bicycle", 0)])
def test_the_detector_finds_people_only_as_shares_of_the_picture(favourite, count, tmp_path):
    write_detector(tmp_path / "detector", favourite)
    found = TransformersDetector(settings(tmp_path)).people(picture())
    assert len(found) == count
    for one in found:
        assert one.score == pytest.approx(torch.sigmoid(torch.tensor(3.0)).item(), abs=1e-5)
        assert all(0 <= value <= 1 for value in one.box)
        assert one.box[0] <= one.box[2]
        assert one.box[1] <= one.box[3]


def test_masks_have_the_pictures_size(tmp_path):
    torch.manual_seed(0)
    vision = t.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
        mlp_dim=32, num_pos_feats=8, global_attn_indexes=[1], window_size=2,
    )  # fmt: skip
    prompt = t.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = t.SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    config = t.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    t.SamModel(config).save_pretrained(tmp_path / "segmenter")
    processor = t.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    t.SamProcessor(processor).save_pretrained(tmp_path / "segmenter")
    masks = SamMasks(settings(tmp_path))
    found = masks.mask(picture(), (0.1, 0.1, 0.6, 0.9))
    assert (found.shape, found.dtype) == ((48, 80), np.uint8)
    assert set(np.unique(found)) <= {0, 255}
    assert (found != masks.mask(picture(), (0.7, 0.5, 0.9, 0.7))).any()  # the box is looked at


def test_vectors_are_of_the_crop_and_of_length_one(tmp_path):
    torch.manual_seed(0)
    config = t.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    t.Dinov2Model(config).save_pretrained(tmp_path / "embedder")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    t.BitImageProcessor(**size).save_pretrained(tmp_path / "embedder")
    vectors = DinoVectors(settings(tmp_path))
    box = (0.25, 0.25, 0.75, 0.75)
    first = vectors.vector(picture(), box)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    changed = picture()
    changed[:10] = 0  # outside the box
    assert np.array_equal(vectors.vector(changed, box), first)
    changed[20:30, 30:50] = 0
    assert not np.array_equal(vectors.vector(changed, box), first)
    assert vectors.vector(picture(), (0.5, 0.5, 0.5, 0.5)) is None


def write_editor(folder):
    """FLUX.2-klein at tiny width: its own pipeline, text encoder, tokenizer, transformer and autoencoder."""
    import diffusers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = Tokenizer(models.BPE({chr(code): code for code in range(256)} | {"<pad>": 256}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = t.Qwen2TokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", unk_token="<pad>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    text = t.Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, vocab_size=len(tokenizer),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.Flux2KleinPipeline(
        scheduler, vae, t.Qwen3ForCausalLM(text), tokenizer, transformer, is_distilled=True
    ).save_pretrained(folder)


def test_the_editor_hears_picture_words_and_seed(tmp_path):
    write_editor(tmp_path / "editor")
    editor = DiffusersEditor(settings(tmp_path, editor=str(tmp_path / "editor"), edit_steps=2))
    first = editor.edit(picture(64, 96), "the person sits", 0)
    assert first.dtype == np.uint8
    assert first.shape[-1] == 3
    assert np.array_equal(editor.edit(picture(64, 96), "the person sits", 0), first)
    assert not np.array_equal(editor.edit(picture(64, 96), "the person sits", 1), first)
    assert not np.array_equal(editor.edit(picture(64, 96) // 2, "the person sits", 0), first)
    with pytest.raises(InputError, match="nowhere"):
        DiffusersEditor(settings(tmp_path, editor=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(("ampere", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_editor_computes_in_bfloat16_where_the_card_does(ampere, dtype, tmp_path, monkeypatch):
    seen = []

    def refused(place, *, torch_dtype, **_):
        seen.append(torch_dtype)
        raise OSError(place)

    import diffusers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: ampere or including_emulation)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", refused)
    with pytest.raises(InputError):
        DiffusersEditor(settings(tmp_path, device="cuda:1"))
    assert seen == [dtype]


def test_weights_that_are_not_there_are_an_error_of_one_line(tmp_path):
    (tmp_path / "detector").mkdir()
    with pytest.raises(InputError, match="detector") as refused:
        TransformersDetector(settings(tmp_path))
    assert "\n" not in str(refused.value)


def test_models_that_cannot_be_loaded_are_no_fault_of_a_source(tmp_path):
    kit = GpuKit(settings(tmp_path, detector=str(tmp_path / "misspelt")))
    with pytest.raises(UnavailableError, match=r"chain gpu cannot be loaded: .*misspelt"):
        _loaded(kit)


def test_the_mark_changes_with_a_model_and_not_with_where_it_runs(tmp_path):
    first = GpuKit(settings(tmp_path))
    assert GpuKit(settings(tmp_path, device="cuda", server="http://other/v1")).mark == first.mark
    assert GpuKit(settings(tmp_path, vlm="another")).mark != first.mark
    assert GpuKit(settings(tmp_path, device="cuda")).gpu
    assert not first.gpu


def test_what_is_missing_is_told_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="mediapipe"):
        GpuKit(settings(tmp_path, mediapipe=str(tmp_path / "none.whl"))).check()
    with pytest.raises(InputError, match=r"gpu\.server"):
        GpuKit(settings(tmp_path, server="localhost")).check()


def test_an_unknown_model_is_not_cleared_for_commercial_use():
    assert not ModelCard("somebody/something", "main", "people").licence.commercial
    assert ModelCard("facebook/dinov2-base", "main", "identity").licence.commercial
