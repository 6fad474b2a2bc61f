"""The workflows of this repository as the tests use them, and one small graph that needs no file of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from comfyui import ROOT

FOLDER = ROOT / "workflows"
PEOPLE = ROOT / "assets" / "personal"
Prompt = dict[str, Any]

# Where the file of a loader's first widget lies, under models/, and which output of the miniature's loader replaces it.
LOADERS = {
    "ContextAnyoneLoader": ("diffusion_models", 0),
    "UNETLoader": ("diffusion_models", 0),
    "CLIPLoader": ("text_encoders", 1),
    "VAELoader": ("vae", 2),
    "CLIPVisionLoader": ("clip_vision", 3),
    "LoadBackgroundRemovalModel": ("background_removal", None),
    "LoraLoaderModelOnly": ("loras", 0),
    "ContextAnyonePersonalLoader": ("loras", 0),
    "CheckpointLoaderSimple": ("checkpoints", None),
}
PERSON = (
    "ContextAnyonePersonalLoader"  # at full size it needs a file of the user's own; without it there is no body either
)
DETECTOR = "SDPoseKeypointExtractor"  # needs its own public file; the pack's example stands in for what it finds
REMOVER = "RemoveBackground"  # likewise; everything is kept
EXAMPLE_POSE = {"class_type": "ContextAnyoneExamplePose", "inputs": {"motion": "dance", "length": 17}}
WHOLE_PICTURE = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}}
STAND_INS = {DETECTOR: EXAMPLE_POSE, REMOVER: WHOLE_PICTURE}
MINIATURE = "ContextAnyoneMiniatureLoader"
MINIATURE_SIZE = {"width": 128, "height": 128, "length": 17}
SMALL_SIZE = {"width": 64, "height": 64, "length": 5}  # where only the way through the server matters


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def workflows() -> list[Path]:
    """Every workflow in the page's form, without the apps that are made of them."""
    return sorted(path for path in FOLDER.glob("*.json") if path not in apps())


def apps() -> list[Path]:
    """The workflows that open as apps."""
    return sorted(FOLDER.glob("*.app.json"))


def api_form(path: Path) -> Path:
    """The API form of a workflow."""
    return path.parent / "api" / path.name


def is_miniature(path: Path) -> bool:
    """Does it run with nothing downloaded?"""
    return MINIATURE in path.read_text(encoding="utf-8")


def nodes_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Nodes of a workflow and of its subgraphs, without those that are switched off."""
    inner = [node for graph in workflow.get("definitions", {}).get("subgraphs", []) for node in graph["nodes"]]
    return [node for node in [*workflow["nodes"], *inner] if node.get("mode", 0) == 0]


def offered_models(workflow: dict[str, Any]) -> set[str]:
    """Names of the files that the workflow offers for download."""
    return {model["name"] for node in nodes_of(workflow) for model in node.get("properties", {}).get("models", [])}


def wanted_files(workflow: dict[str, Any]) -> set[str]:
    """Paths of the files that the loaders of a workflow name and the pack does not bring: models, videos."""
    named = [(node["type"], node["widgets_values"][0]) for node in nodes_of(workflow) if node.get("widgets_values")]
    named = [(kind, file) for kind, file in named if kind != PERSON or not (PEOPLE / file).is_file()]
    found = {f"models/{LOADERS[kind][0]}/{file}" for kind, file in named if kind in LOADERS}
    return found | {f"input/{file}" for kind, file in named if kind == "LoadVideo"}


@contextmanager
def stand_ins(base: Path, workflow: dict[str, Any]) -> Iterator[None]:
    """Empty files, and a short video, of the names that a workflow's loaders want, while the context lasts."""
    files = [base / name for name in wanted_files(workflow)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".mp4":  # the page plays it
            own_video(file)
        else:
            file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink()


def own_video(path: Path) -> None:
    """Two seconds of grey at 16 frames a second with a tone, in the place of the user's dance."""
    tone = (0.2 * np.sin(np.arange(2 * 44100) * 2 * np.pi * 440 / 44100)).astype(np.float32)[None]
    with av.open(str(path), "w") as clip:
        pictures, sound = clip.add_stream("libx264", rate=16), clip.add_stream("aac", rate=44100)
        pictures.width = pictures.height = 128
        pictures.pix_fmt = "yuv420p"
        for _ in range(32):
            clip.mux(pictures.encode(av.VideoFrame.from_ndarray(np.full((128, 128, 3), 127, np.uint8))))
        clip.mux(pictures.encode())
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 44100
        clip.mux(sound.encode(frame))
        clip.mux(sound.encode())


_TEXTS = {"first": "A woman in a park.", "later": "The same woman is waving.", "negative": ""}
"""Prompts in place of those of full size, some of which have more tokens than the miniature reads."""


def with_miniature(prompt: Prompt, steps: int) -> Prompt:
    """A full-size graph with the miniature's loader in the place of its loaders, at the miniature's size and words."""
    slots = {
        node_id: LOADERS[node["class_type"]][1] for node_id, node in prompt.items() if node["class_type"] in LOADERS
    }
    swapped = {
        node_id: STAND_INS.get(node["class_type"], node) for node_id, node in prompt.items() if node_id not in slots
    }
    changes = MINIATURE_SIZE | {"steps": steps}
    for node_id, node in swapped.items():
        texts = {
            name: _TEXTS[name] for name, value in node["inputs"].items() if name in _TEXTS and isinstance(value, str)
        }
        inputs = {name: changes.get(name, value) for name, value in node["inputs"].items()} | texts
        links = {name: value for name, value in inputs.items() if isinstance(value, list) and value[0] in slots}
        if node["class_type"] == "ContextAnyoneReference":  # the miniature reads CLIP tokens, and not every model does
            inputs["clip_vision"] = ["miniature", LOADERS["CLIPVisionLoader"][1]]
        for name, (source, slot) in links.items():
            inputs[name] = ["miniature", slots[source]]
            if prompt[source]["class_type"] == PERSON and slot > 0:
                del inputs[name]
        swapped[node_id] = {**node, "inputs": inputs}
    return swapped | {"miniature": {"class_type": MINIATURE, "inputs": {}}}


def downstream(prompt: Prompt, start: set[str]) -> set[str]:
    """The nodes that a change of `start` reaches, `start` itself among them."""
    reached = set(start)
    while True:
        more = {
            node_id
            for node_id, node in prompt.items()
            if any(isinstance(value, list) and value[0] in reached for value in node["inputs"].values())
        }
        if more <= reached:
            return reached
        reached |= more


def seeded(prompt: Prompt) -> dict[str, str]:
    """Nodes with a seed, and what they call it."""
    names = ("seed", "noise_seed")
    return {node_id: name for node_id, node in prompt.items() for name in names if name in node["inputs"]}


def with_seed(prompt: Prompt, seed: int) -> Prompt:
    """The same graph with another seed everywhere."""
    names = seeded(prompt)
    return {
        node_id: {**node, "inputs": node["inputs"] | ({names[node_id]: seed} if node_id in names else {})}
        for node_id, node in prompt.items()
    }


def small_prompt(steps: int, seed: int = 7) -> Prompt:
    """The miniature at a quarter of its area, one reference, the simple sampler, a saved video."""
    sampler = {
        "model": ["loader", 0],
        "clip": ["loader", 1],
        "reference": ["reference", 0],
        "first": "A person with long red hair in a striped white shirt and blue trousers.",
        "later": "The same person is waving at the beach at sunset.",
        "steps": steps,
        "seed": seed,
        "negative": "",
        "guidance": "cfg",
        "guidance_scale": 0.0,
        "reference_scale": 0.0,
        "emphasis": 1.0,
        "sampler_name": "euler",
        "shift": 0.0,
        "gap": 0.0,
    }
    reference = {"image": ["picture", 0], "vae": ["loader", 2], "clip_vision": ["loader", 3]}
    save = {"video": ["video", 0], "filename_prefix": "small", "format": "auto", "codec": "auto"}
    return {
        "loader": {"class_type": MINIATURE, "inputs": {}},
        "picture": {"class_type": "ContextAnyoneExamplePicture", "inputs": {"picture": "red_hair_striped_shirt.png"}},
        "reference": {"class_type": "ContextAnyoneReference", "inputs": reference},
        "sampler": {"class_type": "ContextAnyoneSampler", "inputs": sampler | SMALL_SIZE},
        "frames": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]}},
        "video": {"class_type": "CreateVideo", "inputs": {"images": ["frames", 0], "fps": 16.0}},
        "save": {"class_type": "SaveVideo", "inputs": save},
    }


def with_picture(prompt: Prompt) -> Prompt:
    """The small graph with its frames saved as PNG files too."""
    save = {"class_type": "SaveImage", "inputs": {"images": ["frames", 0], "filename_prefix": "small"}}
    return prompt | {"pictures": save}
