"""The pack's nodes as ComfyUI describes them to the page, without what differs from machine to machine."""

from __future__ import annotations

from typing import Any

import graph

# Lists that come from ComfyUI or from the user's folders.
FROM_OUTSIDE = {"model_name", "sampler_name", "scheduler", "picture", "motion", "body_file", "file"}
KEPT = (
    *("default", "min", "max", "step", "multiline", "dynamicPrompts", "advanced", "control_after_generate"),
    *("forceInput", "lazy"),
)


def describe(node_id: str) -> dict[str, Any]:
    """What /object_info says of a node."""
    return graph.node(node_id).GET_NODE_INFO_V1()


def snapshot() -> dict[str, Any]:
    """All that a saved workflow depends on: ids, and the names, types, order and defaults of inputs and outputs."""
    return {node_id: _one(describe(node_id)) for node_id in sorted(graph.PACK.node_ids)}


def _one(info: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        _input(name, group == "required", spec)
        for group in ("required", "optional")
        for name, spec in info["input"].get(group, {}).items()
    ]
    outputs = [{"name": n, "type": t} for n, t in zip(info["output_name"], info["output"], strict=True)]
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "output_node": info["output_node"],
        "inputs": inputs,
        "outputs": outputs,
    }


def _input(name: str, required: bool, spec: tuple[Any, ...]) -> dict[str, Any]:
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    found = {"name": name, "type": kind, "required": required}
    found |= {key: options[key] for key in KEPT if options.get(key) is not None and options[key] is not False}
    if "options" in options and name not in FROM_OUTSIDE:
        found["options"] = list(options["options"])
    if name in FROM_OUTSIDE:
        found.pop("default", None)
    return found
