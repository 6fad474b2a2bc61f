"""Wan2.1-Fun-Control's public files: by our nodes they give what ComfyUI's own Wan model and nodes give.

But for the CLIP branch: where no picture is given, Fun feeds it CLIP tokens of zeros, ComfyUI the text, and we nothing.
With values of zero (v_img) it adds nothing anywhere, and all else is compared.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from unittest import mock

import comfy.model_base
import comfy.sd
import folder_paths
import numpy as np
import stack
import torch
from graph import call, pack
from safetensors.torch import save_file
from stack import applied, ksampler, largest, miniature

TOLERANCE = 1e-4
SIZES = {"dim": 256, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 128}


@functools.cache
def weights() -> dict[str, torch.Tensor]:
    """Random weights under the names and in the layout of Wan2.1-Fun-Control, narrower."""
    config = pack("contextanyone_core.config").ContextAnyoneConfig.wan_1_3b()
    changed = {"image_dim": 1280, "condition_dim": 32, "emphasize": False}
    torch.manual_seed(3)
    network = pack("contextanyone_core.model.transformer").ContextAnyoneTransformer(
        dataclasses.replace(config, **SIZES, **changed)
    )
    for name, parameter in network.named_parameters():
        if not parameter.any() and ".v_img." not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.state_dict()


@functools.cache
def both():
    """Our MODEL and ComfyUI's own of the same weights, at one shift."""
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    save_file(weights(), folder / "fun_control.safetensors")
    ours = call("ContextAnyoneLoader", model_name="fun_control.safetensors", weight_dtype="default")[0]
    native = comfy.sd.load_diffusion_model_state_dict(
        {name: tensor.clone() for name, tensor in weights().items()},
        metadata={"config": json.dumps({"transformer": {**SIZES, "text_len": 512}})},
    )
    assert type(native.model).__name__ == "WAN21"
    return tuple(call("ModelSamplingSD3", model=model, shift=5.0)[0] for model in (ours, native))


def difference(pose: bool, start: bool) -> tuple[float, float]:
    """How far ours and ComfyUI's latents are apart, and how large they are."""
    ours, native = both()
    _, clip, vae, _ = miniature()
    (keypoints,) = call("ContextAnyoneExamplePose", motion="dance", length=5)
    widgets = {"fit": "auto", "person": 0, "fps": 0.0, "pose_start": 0.0, "pose_end": 1.0, "body_file": "none"}
    (given,) = call("ContextAnyonePose", keypoints=keypoints, **widgets)
    torch.manual_seed(2)
    picture = torch.rand(1, 48, 64, 3)
    mine = {"pose": given} if pose else {}
    mine |= {"start_frame": picture} if start else {}
    latents = ksampler(*applied(ours, pictures=(), negative="A city.", vae=vae, **mine))

    style = pack("contextanyone_core.pose.drawing").FULL_SIZE
    drawn = given.pose.for_clip(5, (48, 64)).pictures(style).astype(np.float32) / 255.0
    text = {"clip": clip, "first": stack.FIRST, "later": stack.LATER, "negative": "A city."}
    positive, negative = call("ContextAnyonePrompt", **text)
    theirs = {"start_image": picture} if start else {}
    theirs |= {"control_video": torch.from_numpy(drawn)} if pose else {}
    conditioned = call(
        "WanFunControlToVideo", positive=positive, negative=negative, vae=vae, batch_size=1, **stack.SIZE, **theirs
    )
    wanted = ksampler(native, *conditioned)
    return largest(latents - wanted), largest(wanted)


def check_poses_are_followed_as_comfyuis_own_nodes_follow_them():
    apart, size = difference(pose=True, start=False)
    assert apart < TOLERANCE
    assert size > 0.1


def check_a_start_frame_too():
    """But for the frames that it gives: ours are the start frame itself, ComfyUI leaves them to the network."""
    model = pack("nodes._comfy.model").ContextAnyoneModel
    with mock.patch.object(model, "_apply_model", comfy.model_base.BaseModel._apply_model):
        assert difference(pose=True, start=True)[0] < TOLERANCE
        assert difference(pose=False, start=True)[0] < TOLERANCE
    assert difference(pose=False, start=True)[0] > 0.1


def check_the_video_begins_with_the_start_frame():
    ours, (_, _, vae, _) = both()[0], miniature()
    torch.manual_seed(2)
    picture = torch.rand(1, 48, 64, 3)
    latents = ksampler(*applied(ours, pictures=(), negative="A city.", vae=vae, start_frame=picture))
    with torch.inference_mode():
        wanted = vae.encode(picture)
    assert largest(latents[:, :, :1] - wanted) < TOLERANCE


def check_without_either_it_is_plain_text_to_video():
    assert difference(pose=False, start=False)[0] < TOLERANCE


def check_the_loader_says_what_the_file_can_do():
    both()
    _, words = pack("nodes._comfy.loading").load_by_name("fun_control.safetensors", "default")
    assert "Wan 2.1 Fun Control" in words
    assert words.endswith(": follows poses and a start frame. It was not trained to follow reference pictures."), words
