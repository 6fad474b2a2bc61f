"""Bernini and RefAlign: chosen by name or by hand; Bernini's conditioning equals ComfyUI's own."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.model_management
import folder_paths
import torch
from check_files import small
from graph import call, needed, pack
from safetensors.torch import save_file
from stack import SIZE, ksampler, largest, miniature

TOLERANCE = 1e-4
SHAPES = ((48, 80), (64, 40))
OWN = {"guidance_scale": 0.0, "reference_scale": 0.0}
REFALIGN = "diffusion_pytorch_model-refalign.safetensors"


@functools.cache
def file(name: str) -> str:
    """A small plain Wan file under a name; attention is sharp, so that positions matter."""
    _, tensors = small(image_dim=None, emphasize=False)
    tensors = {key: tensor.float() * (2.0 if ".norm_" in key else 1.0) for key, tensor in tensors.items()}
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    (folder / name).parent.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return name


@functools.cache
def load(name: str, model: str = "auto") -> Any:
    return call("ContextAnyoneLoader", model_name=file(name), weight_dtype="default", model=model)[0]


@functools.cache
def prompts() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(9)
    texts = (torch.randn(1, 6, 4096, generator=generator) for _ in range(2))
    positive, negative = ([[torch.nn.functional.pad(text, (0, 0, 0, 506)), {}]] for text in texts)
    return positive, negative


@functools.cache
def images() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.rand(1, height, width, 3, generator=generator) for height, width in SHAPES)


def applied(model: Any, shown: tuple[torch.Tensor, ...], mask: torch.Tensor | None = None) -> tuple[Any, Any, Any, Any]:
    take = pack("nodes._comfy.references").take_pictures
    with torch.inference_mode():
        reference = tuple(picture for image in shown for picture in take(image, mask, miniature()[2], None))
    positive, negative = prompts()
    settings = {**SIZE, "batch_size": 1, "emphasis": 1.0, "gap": 0.0}
    return call(
        "ContextAnyoneApply", model=model, positive=positive, negative=negative, reference=reference, **settings
    )


def cores(shown: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Latents by ComfyUI's own model, conditioning node and sampler."""
    (model,) = call("UNETLoader", unet_name=file("bernini_r_1.3B.safetensors"), weight_dtype="default")
    (model,) = call("ModelSamplingSD3", model=model, shift=3.0)
    positive, negative = prompts()
    given = {f"reference_image_{index}": image for index, image in enumerate(shown)}
    given = {"reference_images": given} if given else {}
    conditioned = call(
        "BerniniConditioning", positive=positive, negative=negative, vae=miniature()[2], batch_size=1, **SIZE, **given
    )
    return ksampler(model, *conditioned)


def normalised(difference: torch.Tensor) -> float:
    std = torch.tensor(load("bernini_r_1.3B.safetensors").model.config.latents_std).view(1, -1, 1, 1, 1)
    return largest(difference / std)


def check_berninis_conditioning_equals_comfyuis():
    ours = load("bernini_r_1.3B.safetensors")
    assert ours.model.config.shift == 3.0
    needed("BerniniConditioning")  # without it the headless loop of tests/core is what there is to compare with
    found = {}
    for shown in ((), images()[:1], images(), images()[::-1]):
        found[len(found)] = ksampler(*applied(ours, shown))
        difference = normalised(found[len(found) - 1] - cores(shown))
        assert difference < TOLERANCE, (len(shown), difference)
    assert normalised(found[2] - found[3]) > 0.01, "the order of the pictures is their number"
    assert normalised(found[1] - found[0]) > 0.01


def check_berninis_two_passes_have_the_references():
    ours = load("bernini_r_1.3B.safetensors")
    _, positive, negative, _ = applied(ours, images())
    kept = [extras["contextanyone_references"] for _, extras in (*positive, *negative)]
    assert kept[0].key == kept[1].key
    assert [tuple(item.shape[-2:]) for item in kept[0].latents] == [(6, 10), (8, 4)], "sides are multiples of 16 pixels"


def guided(model: Any, positive: Any, negative: Any, latent: Any) -> torch.Tensor:
    """Raw latents of one step of Euler from pure noise: what the guided step takes for clean."""
    (guider,) = call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **OWN)
    (noise,) = call("RandomNoise", noise_seed=7)
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model, scheduler="simple", steps=1, denoise=1.0)
    run = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return call("SamplerCustomAdvanced", **run)[0]["samples"]


def projected(difference: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Bernini's rule for one difference of clean latents, frame by frame."""
    frames = []
    for one, along in zip(difference.unbind(2), prediction.unbind(2), strict=True):
        flat, unit = one.flatten(1).double(), torch.nn.functional.normalize(along.flatten(1).double(), dim=1)
        flat = flat * torch.clamp(50.0 / flat.norm(dim=1, keepdim=True), max=1.0)
        frames.append((flat - 0.5 * (flat * unit).sum(1, keepdim=True) * unit).view_as(one))
    return torch.stack(frames, dim=2).float()


def check_berninis_guider_is_its_projected_chain_of_three_passes():
    """Each pass is a single step of the same MODEL without guidance; the guider's own scales are 4 and 4.5."""
    ours = load("bernini_r_1.3B.safetensors")
    config = ours.model.config
    std, mean = (torch.tensor(part).view(1, -1, 1, 1, 1) for part in (config.latents_std, config.latents_mean))
    for shown in ((), images()):
        _, positive, negative, latent = applied(ours, shown)
        bare = prompts()[1]
        step = {"steps": 1, "cfg": 1.0, "scheduler": "simple"}
        none, image, both = (
            (ksampler(ours, text, bare, latent, **step) - mean) / std for text in (bare, negative, positive)
        )
        expected = none + 4.5 * projected(image - none, image) + 4.0 * projected(both - image, both)
        found = (guided(ours, positive, negative, latent) - mean) / std
        assert largest(found - expected) < TOLERANCE * 10, largest(found - expected)
        assert largest(found - both) > 0.1


def check_memory_counts_berninis_tokens():
    native = load("bernini_r_1.3B.safetensors").model
    size = pack("nodes._comfy.model").reference_size([torch.zeros(1, 16, 1, 6, 8)] * 2, [])
    longer = native.memory_required([1, 16, 4, 6, 8])
    assert native.memory_required([1, 16, 2, 6, 8], {"references": [size]}) == longer


def check_refalign_is_phantom_whose_references_do_not_read_the_text():
    phantom, refalign = load("Phantom-Wan-tiny.safetensors"), load(REFALIGN)
    kinds = pack("nodes._comfy.phantom")
    assert type(refalign.model) is kinds.RefAlignModel, "by its name"
    by_folder = load("RefAlign-1.3B/model.safetensors")
    assert type(by_folder.model) is kinds.RefAlignModel, "by the name of its folder"
    assert type(phantom.model) is kinds.PhantomModel
    ours, theirs = (ksampler(*applied(model, images())) for model in (refalign, phantom))
    assert largest(ours - theirs) > 0.01
    share = len(images()) / ((SIZE["length"] - 1) // 4 + 1 + len(images()))  # of the tokens are the references'

    def leave_out(_module: Any, _inputs: Any, read: torch.Tensor) -> torch.Tensor:
        told = read.shape[1] - round(share * read.shape[1])
        return torch.cat((read[:, :told], torch.zeros_like(read[:, told:])), dim=1)

    with contextlib.ExitStack() as stack:
        for block in phantom.model.diffusion_model.blocks:
            stack.callback(block.cross_attn.register_forward_hook(leave_out).remove)
        assert largest(ours - ksampler(*applied(phantom, images()))) < TOLERANCE


def check_a_background_is_told_to_refalign_alone():
    reference_note = pack("nodes._comfy.notes").reference_note
    take = pack("nodes._comfy.references").take_pictures
    mask = torch.zeros(1, 48, 80)
    mask[:, 12:36, 20:60] = 1.0
    with torch.inference_mode():
        whole, cut = (tuple(take(images()[0], given, miniature()[2], None)) for given in (None, mask))
    refalign, bernini = load(REFALIGN), load("bernini_r_1.3B.safetensors")

    def told(model: Any, reference: Any) -> str:
        return str(reference_note(model, reference, "Apply ContextAnyone"))

    with torch.inference_mode():
        assert "cut out on white" in told(refalign, whole)
        assert "cut out on white" not in told(refalign, cut)
        assert "cut out on white" not in told(bernini, whole)


def check_the_model_is_what_the_node_says():
    loading, network = pack("nodes._comfy.loading"), pack("nodes._comfy.bernini").BerniniModel
    assert type(load("anything.safetensors", "bernini").model) is network
    assert type(load("bernini_r_1.3B.safetensors", "wan").model) is pack("nodes._comfy.model").ContextAnyoneModel
    words = {
        model: loading.load_by_name(file("anything.safetensors"), "default", model)[1]
        for model in loading.MODEL_CHOICES
    }
    assert "choose that at model" in words["auto"]
    assert "choose that at model" not in words["wan"]
    assert "in RefAlign's way" in words["refalign"]
    assert "cut out on white" in words["refalign"]
    assert "in Bernini's way" in words["bernini"]
    assert "its own" not in words["phantom"]


def check_the_loader_says_what_fits_the_card():
    line = pack("nodes._comfy.memory_line")
    model, gib = load("bernini_r_1.3B.safetensors"), 1 << 30
    words, fits = line.memory_line(model)
    assert "no GPU" in words
    assert not fits
    assert line.memory_line(miniature()[0]) == ("", True)
    for total, ends, wanted in ((8 * gib, "fits.", True), (1 << 20, "fp8 help.", False)):
        with (
            mock.patch.object(comfy.model_management, "is_device_cpu", return_value=False),
            mock.patch.object(comfy.model_management, "get_total_memory", return_value=total),
        ):
            words, fits = line.memory_line(model)
        assert words.endswith(ends), words
        assert fits is wanted


def check_ours_is_no_other_model():
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    shipped = pack("contextanyone_core.model_specs").MINIATURE / "transformer.safetensors"
    (folder / "ours.safetensors").write_bytes(shipped.read_bytes())
    problem = refusal(model_name="ours.safetensors", weight_dtype="default", model="refalign")
    assert "choose auto" in problem
    assert str(folder) not in problem
    assert "such as bernini" in refusal(model_name="ours.safetensors", weight_dtype="default", model="bernin")


def refusal(**given: Any) -> str:
    try:
        call("ContextAnyoneLoader", **given)
    except pack("contextanyone_core.errors").ContextAnyoneError as error:
        return str(error)
    return "it loaded"


def check_a_saved_bernini_stays_one_under_any_name():
    stated = load("bernini_r_1.3B.safetensors").model.state_dict_for_saving({})
    header = next(tensor for name, tensor in stated.items() if name.endswith(pack_header()))
    assert "Bernini-R" in bytes(header.tolist()).decode()


def pack_header() -> str:
    header: str = pack("contextanyone_core.weights.saved_header").HEADER
    return header
