"""RefAlign and Bernini: public models with Wan T2V's tensors, told by their names, each against an independent loop."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.reference import is_on_white, own_size_picture
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.rope import apply_rotary, grid_positions, in_context_positions, rotary_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer, InContextReferences, ReferenceInputs
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.flow import sigma_schedule
from contextanyone_core.sampling.reference_modes import InContext, UntoldConcatenation
from contextanyone_core.weights.checkpoint import save_transformer
from contextanyone_core.weights.locate import misnamed_transformer, need_component
from contextanyone_core.weights.name_tables import rename, transformer_table
from contextanyone_core.weights.recognition import recognise

PROMPT = TwoStagePrompt("A woman with red hair.", "The same person is waving.")
SETTINGS = GenerationSettings(num_frames=5, width=32, height=48, steps=4, seed=3, sampler="euler")


def wan_network(config: ContextAnyoneConfig) -> ContextAnyoneTransformer:
    torch.manual_seed(4)
    model = ContextAnyoneTransformer(config)
    for name, parameter in model.named_parameters():
        # attention has to be sharp, or positions hardly matter
        torch.nn.init.normal_(parameter, mean=2.0 if ".norm_" in name else 0.0, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wan_folder(tiny_folder: Path, tiny_config: ContextAnyoneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny stack whose transformer is plain Wan's: neither CLIP branch nor Emphasize-Attention."""
    folder = tmp_path_factory.mktemp("wan")
    for part in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{part}.safetensors", folder)
    model = wan_network(replace(tiny_config, image_dim=None, emphasize=False))
    save_transformer(folder / "transformer.safetensors", model, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def refalign(wan_folder: Path) -> ContextAnyonePipeline:
    return ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["refalign"])


@pytest.fixture(scope="module")
def bernini(wan_folder: Path) -> ContextAnyonePipeline:
    return ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["bernini"])


def theirs(model: ContextAnyoneTransformer) -> WanTransformer3DModel:
    config = model.config
    other = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    )
    other.load_state_dict(rename(model.state_dict(), transformer_table(config.num_layers)))
    return other.eval().requires_grad_(False)


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, *size, generator=generator) * 2 - 1 for size in ((40, 24), (30, 50))]


def latents_of(pipeline: ContextAnyonePipeline, shown: list[torch.Tensor], negative: str = "night") -> torch.Tensor:
    """Latents of a run, without the time that decoding takes."""
    encoded = pipeline.encode_references(shown, SETTINGS.size)
    conditions = pipeline.conditions(encoded, PROMPT, negative=negative)
    return pipeline.sample_latents(conditions, SETTINGS, pipeline.noise([3], SETTINGS))


def turned(grid: tuple[int, int, int], number: int, head_dim: int) -> torch.Tensor:
    """Bernini's rotations as complex numbers (tokens, head_dim / 2): of a grid from 0, times that of its number."""
    side = 2 * (head_dim // 6)
    parts = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        speed = 1e4 ** -(torch.arange(0, width, 2).double() / width)
        angle = torch.outer(torch.arange(grid[axis]).double(), speed)
        shape = [1, 1, 1, len(speed)]
        shape[axis] = grid[axis]
        parts.append(angle.view(shape).expand(*grid, len(speed)))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    own = number * 1e4 ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    return torch.polar(torch.ones_like(angles), angles) * torch.polar(torch.ones_like(own), own)


def bernini_forward(
    model: WanTransformer3DModel,
    x: torch.Tensor,
    references: list[torch.Tensor],
    time: torch.Tensor,
    text: torch.Tensor,
) -> torch.Tensor:
    """One pass on diffusers' layers: all tokens in one stream, each picture with its own grid and number."""
    inputs = [x, *(item.expand(len(x), -1, -1, -1, -1) for item in references)]
    patches = [model.patch_embedding(item) for item in inputs]
    grids = [tuple(item.shape[2:]) for item in patches]
    tokens = torch.cat([item.flatten(2).transpose(1, 2) for item in patches], dim=1)
    head_dim = model.config.attention_head_dim
    rotations = torch.cat([turned(grid, number, head_dim) for number, grid in enumerate(grids)])
    table = tuple(part.float().repeat_interleave(2, 1)[None, :, None] for part in (rotations.real, rotations.imag))
    temb, projected, words, _ = model.condition_embedder(time, text, None)
    for block in model.blocks:
        tokens = block(tokens, words, projected.unflatten(1, (6, -1)), table)
    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    tokens = model.proj_out(model.norm_out(tokens.float()) * (1 + scale) + shift)
    t, h, w = grids[0]
    video = tokens[:, : t * h * w].unflatten(1, (t, h, w)).unflatten(-1, (1, 2, 2, -1))
    return video.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(x), -1, t, 2 * h, 2 * w)


def test_a_number_turns_the_whole_head_once_more() -> None:
    head_dim, grid = 24, (2, 3, 2)
    x = torch.randn(1, math.prod(grid), 2, head_dim)
    expected = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turned(grid, 3, head_dim)[None, :, None]
    found = apply_rotary(x, rotary_table(in_context_positions(3, *grid), head_dim))
    assert torch.allclose(found.double(), torch.view_as_real(expected).flatten(-2), atol=1e-5)
    plain = rotary_table(grid_positions(*grid), head_dim)
    assert all(map(torch.equal, plain, rotary_table(in_context_positions(0, *grid), head_dim)))
    with pytest.raises(ShapeError, match=r"needed is \(tokens, 3\) or \(tokens, 4\)"):
        rotary_table(torch.zeros(4, 5), head_dim)


def test_berninis_forward_is_the_one_stream_of_an_independent_loop(bernini: ContextAnyonePipeline) -> None:
    config = bernini.config
    latents, text = torch.randn(2, 16, 3, 6, 4), torch.randn(2, config.text_len, config.text_dim)
    references = [torch.randn(1, 16, 1, 8, 2), torch.randn(2, 16, 1, 4, 6)]
    mode = InContext(bernini.transformer, ReferenceInputs(references, text, []))
    time = torch.tensor([999.0, 12.5])
    expected = bernini_forward(theirs(bernini.transformer), latents, references, time, text)
    for with_reference in (True, False):  # in both passes
        found = mode.velocity(latents, time, text, with_reference=with_reference)
        assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1
    other = InContext(bernini.transformer, ReferenceInputs(references[::-1], text, []))
    swapped = other.velocity(latents, time, text, with_reference=True)
    assert float((swapped - expected).detach().abs().max()) > 0.01, "the order is the number"


def test_a_run_of_bernini_equals_its_loop(bernini: ContextAnyonePipeline) -> None:
    """Pictures at their own size, two passes with them in both, the order of the pictures as their numbers."""
    found = latents_of(bernini, pictures())
    model, text_encoder = theirs(bernini.transformer), bernini.text_encoder
    references = [bernini.vae.encode(own_size_picture(item)[:, :, None]) for item in pictures()]
    assert [tuple(item.shape[-2:]) for item in references] == [(4, 4), (4, 6)]  # 32 x 32 and 32 x 48 pixels
    prompt, negative = (text_encoder.encode([text]) for text in (PROMPT.video_text, "night"))
    sigmas = sigma_schedule(4, bernini.config.shift)
    x = bernini.noise([3], SETTINGS)
    for sigma, after in pairwise(sigmas):
        with_prompt, without = (
            bernini_forward(model, x, references, 1000 * sigma[None], text) for text in (prompt, negative)
        )
        x = x + (after - sigma) * (without + 5.0 * (with_prompt - without))
    assert torch.allclose(found, x, atol=1e-3, rtol=1e-4)


def test_a_run_of_refalign_equals_its_loop(refalign: ContextAnyonePipeline) -> None:
    """References behind the video that never read the text, three passes of 5 and 7.5, zeroed ones in the last."""
    found = latents_of(refalign, pictures())
    model, text_encoder = theirs(refalign.transformer), refalign.text_encoder
    tokens = 2 * 3 * 2  # of the video: its DiTBlock adds cross-attention to them alone
    for block in model.blocks:
        block.attn2.register_forward_hook(
            lambda _module, _inputs, read: torch.cat((read[:, :tokens], torch.zeros_like(read[:, tokens:])), dim=1)
        )
    references = torch.cat([refalign.dual_encoder.latents(item, SETTINGS.size) for item in pictures()], dim=2)
    prompt, negative = (text_encoder.encode([text]) for text in (PROMPT.video_text, "night"))
    sigmas = sigma_schedule(4, refalign.config.shift)
    x = refalign.noise([3], SETTINGS)
    for sigma, after in pairwise(sigmas):
        shown, blank = (torch.cat([x, item], dim=2) for item in (references, torch.zeros_like(references)))
        it, i, neg = (
            model(given, 1000 * sigma[None], text, return_dict=False)[0][:, :, :2]
            for given, text in ((shown, prompt), (shown, negative), (blank, negative))
        )
        x = x + (after - sigma) * (neg + 5.0 * (i - neg) + 7.5 * (it - i))
    assert torch.allclose(found, x, atol=1e-3, rtol=1e-4)
    assert refalign.reference_mode is UntoldConcatenation


def test_refalign_is_phantom_but_for_what_its_references_read(
    wan_folder: Path, refalign: ContextAnyonePipeline
) -> None:
    phantom = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["phantom"])
    assert torch.equal(latents_of(phantom, []), latents_of(refalign, []))
    assert float((latents_of(phantom, pictures()) - latents_of(refalign, pictures())).std()) > 0.01


def test_without_a_picture_bernini_is_plain_wan(wan_folder: Path, bernini: ContextAnyonePipeline) -> None:
    wan = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["wan"])
    assert torch.equal(latents_of(wan, []), latents_of(bernini, []))


def test_what_bernini_does_not_take_is_refused(bernini: ContextAnyonePipeline) -> None:
    config = bernini.config
    text = torch.zeros(2, config.text_len, config.text_dim)
    mode = InContext(bernini.transformer, ReferenceInputs([torch.zeros(1, 16, 1, 4, 4)], text, []))
    latents, time = torch.zeros(2, 16, 1, 4, 4), torch.zeros(2)
    with pytest.raises(InputError, match="takes no pose and no start frame"):
        mode.velocity(latents, time, text, with_reference=True, condition=VideoCondition())
    for shape, words in (((3, 16, 1, 4, 4), "a batch of 3"), ((1, 16, 1, 4, 5), "multiples of")):
        with pytest.raises(ShapeError, match=words):
            bernini.transformer(latents, time, text, references=InContextReferences([torch.zeros(*shape)]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (848, 416)), ((100, 40), (96, 32)), ((8, 9), (16, 16)), ((480, 832), (480, 832))],
)
def test_a_picture_of_its_own_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert own_size_picture(torch.zeros(1, 3, *size)).shape == (1, 3, *expected)


def test_the_schedule_of_a_full_size_file_is_berninis_own() -> None:
    wan = replace(ContextAnyoneConfig.wan_1_3b(), image_dim=None, emphasize=False)
    assert wan.shift == 5
    assert {name: spec.own_config(wan).shift for name, spec in MODELS.items() if name != "vace"} == {
        "contextanyone": 5.0,
        "wan": 5.0,
        "phantom": 5.0,
        "refalign": 5.0,
        "bernini": 3.0,
    }
    small = replace(wan, text_len=128, shift=2.0)
    assert MODELS["bernini"].own_config(small) == small  # a small one states its own


def published(name: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """A file or folder as its authors publish it, by name."""
    if name == "RefAlign":
        path = folder / "RefAlign-1.3B" / "diffusion_pytorch_model-refalign.safetensors"
        path.parent.mkdir()
        save_file(state, path)
        return path
    inner = folder / "Bernini-R-1.3B-Diffusers" / "transformer"
    inner.mkdir(parents=True)
    renamed = rename(state, transformer_table(2))
    names = sorted(renamed)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    files = {index: f"diffusion_pytorch_model-0000{index}-of-00002.safetensors" for index in halves}
    for index, half in halves.items():
        save_file({key: renamed[key].contiguous() for key in half}, inner / files[index])
    weight_map = {key: files[index] for index, half in halves.items() for key in half}
    index_file = inner / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index_file


@pytest.fixture
def wan_tensors(wan_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(wan_folder / "transformer.safetensors")


@pytest.mark.parametrize(
    ("name", "family", "alone"), [("RefAlign", "RefAlign", "RefAlign"), ("Bernini", "Bernini-R", "Wan 2.1 T2V")]
)
def test_published_names_are_recognised(
    name: str, family: str, alone: str, wan_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """RefAlign's file says what it is; Bernini's shards are told by their folder."""
    path = published(name, wan_tensors, tmp_path)
    assert recognise(path).family.startswith(family)
    assert recognise(path).own_family.startswith(alone)
    folder = path.parent if name == "RefAlign" else path.parent.parent
    found = need_component(folder, "transformer", MODELS[name.lower()])
    assert recognise(found).family.startswith(family)
    assert misnamed_transformer(folder, MODELS[name.lower()]) is None
    other = MODELS["refalign" if name == "Bernini" else "bernini"]
    strange = misnamed_transformer(folder, other)
    assert strange is not None
    assert strange.family.startswith(family)


def test_shards_become_one_file_that_its_name_tells(
    wan_state: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """As docs/START.md has it: Bernini's diffusers folder for ComfyUI, which lists single files."""
    state = wan_state()
    folder, out = published("Bernini", state, tmp_path).parent, tmp_path / "bernini_r_1.3B.safetensors"
    assert cli.main(["convert", str(folder), "--dtype", "bfloat16", "--out", str(out)]) == 0
    assert recognise(out).own_family.startswith("Bernini-R")
    made = load_file(out)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], tensor.bfloat16()) for name, tensor in state.items())


def test_one_folder_may_hold_several(wan_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = {"refalign": "RefAlign-1.3B", "bernini": "bernini_r_1.3B-bf16", "phantom": "Phantom-Wan-1.3B"}
    for name in [*names.values(), "diffusion_pytorch_model"]:
        save_file(wan_tensors, tmp_path / f"{name}.safetensors")
    for model, name in names.items():
        assert need_component(tmp_path, "transformer", MODELS[model]).stem == name
    assert need_component(tmp_path, "transformer", MODELS["wan"]).stem == "diffusion_pytorch_model"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 200, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    cut = np.full((40, 30, 4), 0, dtype=np.uint8)
    cut[5:-5, 5:-5] = 200
    Image.fromarray(cut, "RGBA").save("cut.png")
    return tmp_path


WORDS = ["--first", "A woman.", "--out", "out.webp", "--frames", "5", "--size", "32x32", "--steps", "1"]


def stack_of(wan_folder: Path, name: str, folder: Path) -> Path:
    """The tiny stack with its transformer under a public name."""
    stack = shutil.copytree(wan_folder, folder / "stack")
    tensors = load_file(stack / "transformer.safetensors")
    config = recognise_metadata(stack / "transformer.safetensors")
    (stack / "transformer.safetensors").unlink()
    save_file(tensors, stack / name, metadata=config)
    return stack


def recognise_metadata(path: Path) -> dict[str, str]:
    """The config of our file under Wan's kind: a tiny network's shapes do not tell its text length."""
    from contextanyone_core.weights.safetensors_file import read_header

    metadata = read_header(path).metadata
    return {"format": "pt", "kind": "wan-transformer", "config": metadata["config"]}


@pytest.mark.parametrize(
    ("name", "model", "guidance", "said"),
    [
        ("RefAlign-1.3B.safetensors", "refalign", "dual", "is run as RefAlign"),
        ("bernini_r_1.3B-bf16.safetensors", "bernini", "cfg", "is run as Bernini"),
        ("Phantom-Wan-1.3B.safetensors", "phantom", "dual", "is run as Phantom"),
    ],
)
def test_auto_follows_the_name(
    desk: Path,
    wan_folder: Path,
    name: str,
    model: str,
    guidance: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stack = stack_of(wan_folder, name, desk)
    given = ["generate", "--model", "auto", "--weights", str(stack), "--reference", "photo.png", *WORDS]
    assert cli.main(given) == 0, capsys.readouterr().err
    metadata = read_metadata(desk / "out.webp")
    assert metadata["model"] == model
    assert metadata["settings"]["guidance"]["name"] == guidance
    err = capsys.readouterr().err
    assert said in err
    assert ("photo.png has a background" in err) == (model == "refalign")


def test_auto_assumes_wan_where_no_name_tells(desk: Path, wan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_of(wan_folder, "model.safetensors", desk)
    assert cli.main(["generate", "--model", "auto", "--weights", str(stack), *WORDS]) == 0
    assert (
        "taken for plain Wan 2.1; if it is another, say --model phantom, refalign or bernini" in capsys.readouterr().err
    )
    assert cli.main(["generate", "--model", "auto", "--weights", str(desk / "none"), *WORDS]) == 2
    assert cli.main(["generate", "--model", "refalign", "--weights", str(stack), "--reference", "cut.png", *WORDS]) == 0
    err = capsys.readouterr().err
    assert "is by its name Wan 2.1 T2V" in err
    assert "has a background" not in err


def test_auto_runs_ours_as_ours(desk: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "auto", "--weights", str(tiny_folder), "--reference", "photo.png", *WORDS]
    assert cli.main(given) == 0
    assert read_metadata(desk / "out.webp")["model"] == "contextanyone"


def test_bernini_has_two_passes_only(desk: Path, wan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "bernini", "--weights", str(wan_folder), "--guidance", "dual", *WORDS]
    assert cli.main(given) == 2
    assert "Bernini has no dual guidance" in capsys.readouterr().err


def test_the_border_tells_a_background() -> None:
    picture = torch.full((1, 3, 20, 10), -0.5)
    assert not is_on_white(picture)
    picture[:, :, :, :2] = picture[:, :, :, -2:] = 1.0
    assert is_on_white(picture)
