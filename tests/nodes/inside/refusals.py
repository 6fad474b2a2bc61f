"""Calls and graphs that are refused, and the words of the refusal, for the checks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import folder_paths
import stack
import torch
from graph import Session, call, pack
from stack import miniature


def refusal(action) -> str:
    """The words of an error of ours; anything else is a failure."""
    errors = pack("contextanyone_core.errors").ContextAnyoneError
    try:
        action()
    except errors as error:
        return str(error)
    raise AssertionError("was not refused")


def prompt(**changed):
    """A graph of the miniature in API form, ContextAnyone Sampler's inputs changed."""
    sampler = {
        "model": ["1", 0], "clip": ["1", 1], "reference": ["3", 0], "first": stack.FIRST, "later": stack.LATER,
        "steps": 2, "seed": 7, "negative": "", "guidance": "cfg", "guidance_scale": 0.0, "reference_scale": 0.0,
        "emphasis": 1.0, "sampler_name": "euler", "shift": 0.0, "gap": 0.0,
    }  # fmt: skip
    return {
        "1": {"class_type": "ContextAnyoneMiniatureLoader", "inputs": {}},
        "2": {"class_type": "ContextAnyoneExamplePicture", "inputs": {"picture": stack.PICTURE}},
        "3": {
            "class_type": "ContextAnyoneReference",
            "inputs": {"image": ["2", 0], "vae": ["1", 2], "clip_vision": ["1", 3]},
        },
        "4": {"class_type": "ContextAnyoneSampler", "inputs": sampler | stack.SIZE | changed},
    }


def refused_once(graph) -> str:
    """The one message with which a graph is refused before the run, at node 4."""
    run = Session().run(graph, keep={"latent": ("4", 0)})
    assert list(run.node_errors) == ["4"], run.node_errors
    assert len(run.node_errors["4"]["errors"]) == 1, run.problem
    assert run.executed == []
    return run.problem


def with_text(width: int, rows: int = 1):
    values = torch.zeros(1, 512, width)
    values[:, :rows] = 1
    return [[values, {}]]


def apply(**changed):
    given = {"model": miniature()[0], "positive": with_text(128), "negative": with_text(128), "reference": ()}
    return call("ContextAnyoneApply", **given | stack.SIZE | {"batch_size": 1, "emphasis": 1.0, "gap": 0.0} | changed)


def in_models(tmp_name: str, write) -> str:
    """Put a file into a folder that ComfyUI takes for models/diffusion_models; gives its name there."""
    folder = Path(tempfile.mkdtemp())
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    write(folder / tmp_name)
    return tmp_name
