"""Stock Wan T2V with a pose LoRA follows poses in ComfyUI, with the velocities of the network that was trained."""

from __future__ import annotations

import functools
from typing import Any

import comfy.sd
import comfy.utils
import graph
import torch
from check_saving import loaded, saved
from check_trained_lora import place
from graph import call, pack
from refusals import refusal
from stack import applied, ksampler, largest, miniature

TOLERANCE = 1e-4


@functools.cache
def patched() -> Any:
    """ComfyUI's own Wan T2V, the file loaded by its own loader."""
    stock = comfy.sd.load_diffusion_model(str(graph.DATA / "stock_wan.safetensors"))
    assert type(stock.model).__name__ == "WAN21"
    name = place("loras", "pose_lora.safetensors")
    return call("LoraLoaderModelOnly", model=stock, lora_name=name, strength_model=1.0)[0]


def frames() -> torch.Tensor:
    return comfy.utils.load_torch_file(str(graph.DATA / "drawn.safetensors"))["poses"]


def texts() -> list[list[Any]]:
    words = torch.randn(2, 1, 9, 4096, generator=torch.Generator().manual_seed(2))
    return [[[torch.nn.functional.pad(text, (0, 0, 0, 503)), {}]] for text in words]


def passes(**given: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Input, timesteps, text and velocity of every pass of a run after WanFunControlToVideo."""
    size = {"width": 64, "height": 48, "length": 5, "batch_size": 1}
    positive, negative = texts()
    inputs = {"positive": positive, "negative": negative, "vae": miniature()[2]} | size | given
    positive, negative, latent = call("WanFunControlToVideo", **inputs)
    seen = []

    def note(_: Any, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        seen.append((args[0].clone(), args[1], kwargs["context"], out.clone()))

    hook = patched().model.diffusion_model.register_forward_hook(note, with_kwargs=True)
    try:
        ksampler(patched(), positive, negative, latent, steps=2)
    finally:
        hook.remove()
    return seen


def trained() -> Any:
    path = graph.DATA / "trained.safetensors"
    return pack("contextanyone_core.weights.checkpoint").load_transformer(path, dtype=torch.float32)


def check_stock_wan_follows_a_pose_as_the_trained_network():
    condition, network, vae = pack("contextanyone_core.model.condition"), trained(), miniature()[2]
    made = passes(control_video=frames(), start_image=frames()[:1].flip(1))
    assert len(made) == 2
    with torch.inference_mode():
        encoded = patched().model.process_latent_in(vae.encode(frames()))
    for given, times, text, velocity in made:
        assert given.shape[1] == 48
        assert largest(given[:, 16:32] - encoded) < 1e-5, "the pose's latents, normalised as Wan's"
        assert given[:, 32:, :1].any()
        assert not given[:, 32:, 1:].any(), "the start frame fills one latent frame"
        shown = condition.VideoCondition(given[:, 16:32], given[:, 32:])
        with torch.no_grad():
            ours = network(given[:, :16], times, text, condition=shown).velocity
            without = network(given[:, :16], times, text).velocity
        assert largest(ours) > 0.1
        assert largest(velocity - ours) < TOLERANCE, largest(velocity - ours)
        assert largest(velocity - without) > 0.05, "the pose says nothing"


def check_without_a_pose_it_is_the_trained_network_too():
    network = trained()
    for given, times, text, velocity in passes():
        assert not given[:, 16:].any()
        with torch.no_grad():
            ours = network(given[:, :16], times, text).velocity
        assert largest(velocity - ours) < TOLERANCE, largest(velocity - ours)


def check_our_reader_gives_comfyuis_weights():
    """Of every weight that the file changes, at strength 1."""
    checkpoint, reader = pack("contextanyone_core.weights.checkpoint"), pack("contextanyone_core.weights.lora")
    network = checkpoint.load_transformer(graph.DATA / "stock_wan.safetensors", dtype=torch.float32, plain=True)
    lora = reader.load_lora(graph.DATA / "pose_lora.safetensors", network)
    assert lora.unknown == []
    reader.merge_loras(network, [(lora, 1.0)])
    ksampler(patched(), *texts(), {"samples": torch.zeros(1, 16, 2, 6, 8)}, steps=1)  # the loader patches at the run
    theirs = patched().model.diffusion_model.state_dict()
    assert theirs["patch_embedding.weight"].shape == (128, 48, 1, 2, 2)
    differences = {name: largest(theirs[name] - tensor) for name, tensor in network.state_dict().items()}
    assert max(differences.values()) < 1e-6, max(differences.items(), key=lambda item: item[1])


def check_a_contextanyone_model_follows_poses_by_such_a_file():
    """As the network with the file merged; the MODEL without it stays narrow, though both share their weights."""
    narrow, wide = (
        call("ContextAnyoneLoader", model_name=place("diffusion_models", name), weight_dtype="default")[0]
        for name in ("narrow_ours.safetensors", "wide_ours.safetensors")
    )
    lora = {"lora_name": place("loras", "ours_lora.safetensors"), "strength_model": 1.0}
    (with_file,) = call("LoraLoaderModelOnly", model=narrow, **lora)
    followed = driving()
    found, wanted = (ksampler(*applied(model, pose=followed)) for model in (with_file, wide))
    assert largest(found - wanted) < TOLERANCE * max(1.0, largest(wanted)), largest(found - wanted)
    assert largest(found - ksampler(*applied(with_file))) > 0.1, "the pose says nothing"
    again = loaded(saved(with_file, prefix="posed"))
    assert again.model.config == wide.model.config, "a saved file has the channels that the LoRA brought"
    assert largest(ksampler(*applied(again, pose=followed)) - found) < TOLERANCE
    assert "this model has no inputs for it" in refusal(lambda: applied(narrow, pose=followed))
    before = ksampler(*applied(narrow))
    assert largest(before - ksampler(*applied(with_file))) > 0.01
    assert torch.equal(ksampler(*applied(narrow)), before), "the MODEL without the file is as it was"


def driving() -> Any:
    """An example pose of five frames, as ContextAnyone Pose gives it."""
    (keypoints,) = call("ContextAnyoneExamplePose", motion="dance", length=5)
    widgets = {"fit": "auto", "person": 0, "fps": 0.0, "pose_start": 0.0, "pose_end": 1.0, "body_file": "none"}
    return call("ContextAnyonePose", keypoints=keypoints, **widgets)[0]
