"""What an artist reads at a node: description, tooltips, aliases, help page, both languages."""

import json
from typing import Any

import graph
import schema


def nodes_of_the_pack() -> dict[str, dict[str, Any]]:
    found = {node_id: schema.describe(node_id) for node_id in graph.PACK.node_ids}
    assert found, "the pack has no nodes"
    return found


def inputs_of(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = [info["input"].get(group, {}) for group in ("required", "optional")]
    return {name: (spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()}


def check_every_node_says_what_it_is():
    found = nodes_of_the_pack().items()
    missing = [name for name, info in found if not (info["description"] and info["search_aliases"])]
    assert missing == [], "no description or no search aliases"


def check_every_input_and_output_has_a_tooltip():
    missing = []
    for node_id, info in nodes_of_the_pack().items():
        missing += [f"{node_id}.{name}" for name, options in inputs_of(info).items() if not options.get("tooltip")]
        tooltips = info["output_tooltips"] or []
        missing += [f"{node_id} -> {name}" for name, tip in zip(info["output_name"], tooltips, strict=True) if not tip]
    assert missing == []


def check_every_node_has_a_help_page_with_a_picture():
    missing = []
    for node_id in nodes_of_the_pack():
        for name in (f"{node_id}.md", f"{node_id}/zh.md"):
            page = graph.PACK.path / "web" / "docs" / name
            if not page.is_file() or "![" not in page.read_text(encoding="utf-8"):
                missing.append(name)
    assert missing == []


def check_locales_name_every_node_and_input():
    missing = []
    for language in ("en", "zh"):
        path = graph.PACK.path / "locales" / language / "nodeDefs.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for node_id, info in nodes_of_the_pack().items():
            entry = known.get(node_id, {})
            missing += [f"{language} {node_id}.{key}" for key in ("display_name", "description") if not entry.get(key)]
            named = entry.get("inputs", {})
            unnamed = [name for name in inputs_of(info) if not named.get(name, {}).get("name")]
            missing += [f"{language} {node_id}.{name}" for name in unnamed]
            unknown = set(named) - set(inputs_of(info))
            missing += [f"{language} {node_id} has no input {name}" for name in sorted(unknown)]
    assert missing == []
