"""The pack as ComfyUI's loader sees it: it registers, at once, quietly, and nothing heavy comes with it."""

import json
import sys
from pathlib import Path

import graph
import schema

SCHEMA = Path(__file__).resolve().parents[1] / "schema.json"
NODE_IDS = [
    "ContextAnyoneLoader",
    "ContextAnyoneMiniatureLoader",
    "ContextAnyonePersonalLoader",
    "ContextAnyoneExamplePicture",
    "ContextAnyoneExamplePose",
    "ContextAnyoneReference",
    "ContextAnyonePose",
    "ContextAnyonePrompt",
    "ContextAnyoneApply",
    "ContextAnyoneGuider",
    "ContextAnyoneSampler",
    "ContextAnyoneCache",
]
# ComfyUI itself, and what it cannot run without.
OF_COMFYUI = ("comfy", "comfy_api", "comfy_extras", "torch", "safetensors", "PIL")
# What the command line and the trainer need and a ComfyUI may lack, or what takes long to import.
HEAVY = ("diffusers", "transformers", "accelerate", "cv2", "imageio", "peft", "pydantic", "sentencepiece", "scipy")


def check_pack_registers_without_a_warning():
    assert graph.PACK.messages == []
    assert graph.PACK.loaded


def check_all_nodes_are_listed():
    assert sorted(graph.PACK.node_ids) == sorted(NODE_IDS)


def check_import_takes_under_one_second():
    # The thread's own time: a busy machine is no slow import.
    assert graph.PACK.cpu_seconds < 1.0, f"{graph.PACK.cpu_seconds:.2f} s, {graph.PACK.wall_seconds:.2f} s by the clock"


def check_nothing_heavy_is_imported():
    brought = [name for name in graph.PACK.new_modules if name.split(".")[0] in HEAVY]
    assert brought == []


def check_imports_are_the_pack_the_standard_library_and_comfyuis_own():
    own, allowed = graph.PACK.module, {*sys.stdlib_module_names, *OF_COMFYUI}
    others = [name for name in graph.PACK.new_modules if not name.startswith(own)]
    foreign = {name for name in others if name.split(".")[0] not in allowed}
    assert foreign == set()


def check_schema_is_frozen():
    """Saved workflows hold these names and orders: what is there stays, new inputs come last."""
    frozen = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert json.loads(json.dumps(schema.snapshot())) == frozen, (
        "the nodes differ from tests/nodes/schema.json; if that is meant: python tests/nodes/freeze_schema.py"
    )
