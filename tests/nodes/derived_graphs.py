"""What is made of some graphs of workflows/: the same graph opened as an app, and a subgraph blueprint of its inside.

python tests/nodes/derived_graphs.py

writes workflows/*.app.json and subgraphs/*.json. An app (`extra.linearMode`) shows the widgets of `linearData` alone.
ComfyUI lists each file of a pack's subgraphs/ as a node of its library; the file's name is the node's.
"""

from __future__ import annotations

import copy
import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui import ROOT
from workflow_files import FOLDER, read

from contextanyone_core.atomic_file import write_text

Graph = dict[str, Any]

SUBGRAPHS = ROOT / "subgraphs"
CATEGORY = "Video generation and editing/Reference to video"
OUTSIDE = {"MarkdownNote", "ContextAnyoneExamplePicture", "ContextAnyoneExamplePose", "LoadImage", "SaveVideo"}
ENTRY, EXIT = -10, -20  # ids that ComfyUI gives the edges of a subgraph
EDGE_WIDTH, MARGIN, ROW = 160, 100, 20
PROMPTS_AND_SIZE = ("first", "later", "width", "height")


@dataclass(frozen=True)
class Derived:
    """What an artist sets in a graph, as (type of the node, name of its widget), and the blueprint made of it.

    `outside` are the widgets of the nodes that the blueprint leaves out, `alone` those that only the blueprint shows.
    """

    outside: tuple[tuple[str, str], ...]
    inside: tuple[tuple[str, str], ...]
    blueprint: str
    description: str
    alone: tuple[tuple[str, str], ...] = ()


def _of(node_type: str, *widgets: str) -> tuple[tuple[str, str], ...]:
    return tuple((node_type, widget) for widget in widgets)


DERIVED = {
    "01_miniature_simple": Derived(
        _of("ContextAnyoneExamplePicture", "picture"),
        _of("ContextAnyoneSampler", *PROMPTS_AND_SIZE, "length", "seed"),
        "Reference to Video (ContextAnyone miniature)",
        "A video of the drawn character in a picture, by the miniature that comes with ComfyUI-ContextAnyone: "
        "17 frames of 128 x 128 pixels. The first prompt says how the character looks, the later one what happens.",
    ),
    "07_miniature_pose": Derived(
        _of("ContextAnyoneExamplePicture", "picture") + _of("ContextAnyoneExamplePose", "motion"),
        _of("ContextAnyoneSampler", *PROMPTS_AND_SIZE, "seed"),
        "Dance to Video (ContextAnyone miniature)",
        "The drawn character in a picture moves as keypoints of a dance do, by the miniature that comes with "
        "ComfyUI-ContextAnyone: 17 frames of 128 x 128 pixels.",
        alone=_of("ContextAnyoneSampler", "length"),  # in the graph it must be that of the example, which is fixed
    ),
    "11_photo_refalign": Derived(
        _of("LoadImage", "image"),
        _of("ContextAnyonePrompt", "first", "later")
        + _of("ContextAnyoneApply", "width", "height", "length")
        + _of("RandomNoise", "noise_seed"),
        "Photo to Video (RefAlign-1.3B)",
        "A video of the person in a photograph, by RefAlign-1.3B; the background is removed. The first prompt says how "
        "the person looks, the later one what happens.",
        alone=_of("ContextAnyoneLoader", "model_name")
        + _of("CLIPLoader", "clip_name")
        + _of("VAELoader", "vae_name")
        + _of("LoadBackgroundRemovalModel", "bg_removal_name"),
    ),
}


def app_of(stem: str) -> Graph:
    """The graph of a workflow, opened as an app of what an artist sets."""
    graph, derived = read(FOLDER / f"{stem}.json"), DERIVED[stem]
    ids = {node["type"]: node["id"] for node in graph["nodes"]}
    inputs = [[ids[kind], widget] for kind, widget in derived.outside + derived.inside]
    shown = {"inputs": inputs, "outputs": [ids["SaveVideo"]]}
    return graph | {"id": _id(stem, "app"), "extra": {"linearMode": True, "linearData": shown}}


def blueprint_of(stem: str) -> Graph:
    """One node with everything between the pictures and the saved video inside it; its sockets are what crosses."""
    derived = DERIVED[stem]
    subgraph = Subgraph(read(FOLDER / f"{stem}.json"))
    subgraph.cross()
    for kind, widget in derived.inside + derived.alone:
        subgraph.promote(kind, widget)
    made = subgraph.definition(_id(stem, "subgraph"))
    made |= {"name": derived.blueprint, "category": CATEGORY, "description": derived.description}
    node = subgraph.outer_node(made["id"], derived.blueprint)
    graph = {"id": _id(stem, "blueprint"), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node]}
    return graph | {"links": [], "groups": [], "definitions": {"subgraphs": [made]}, "extra": {}, "version": 0.4}


class Subgraph:
    """The inside of a graph, while its edge is being made."""

    def __init__(self, graph: Graph) -> None:
        graph = copy.deepcopy(graph)
        self._all = {node["id"]: node for node in graph["nodes"]}
        self.nodes = {node_id: node for node_id, node in self._all.items() if node["type"] not in OUTSIDE}
        self._links = {link[0]: link for link in graph["links"]}
        self._groups = graph["groups"]
        self._last = graph["last_link_id"]
        self._inputs: list[Graph] = []
        self._outputs: list[Graph] = []

    def cross(self) -> None:
        """Sockets for the links between inside and outside; one for all links of an output."""
        sources: dict[tuple[int, int], Graph] = {}
        for link in sorted(self._links.values()):
            _, source, slot, target, place, kind = link
            if source not in self.nodes and target in self.nodes:
                name = self.nodes[target]["inputs"][place]["name"]
                if (source, slot) not in sources:
                    sources[source, slot] = self._socket(self._inputs, name, kind)
                sources[source, slot]["linkIds"].append(link[0])
                link[1:3] = [ENTRY, self._inputs.index(sources[source, slot])]
            elif source in self.nodes and target not in self.nodes:
                socket = self._socket(self._outputs, self.nodes[source]["outputs"][slot]["name"].lower(), kind)
                socket["linkIds"].append(link[0])
                link[3:5] = [EXIT, len(self._outputs) - 1]

    def promote(self, kind: str, widget: str) -> None:
        """Show a widget of the first node of a type at the edge."""
        node = next(node for node in self.nodes.values() if node["type"] == kind)
        place = next(at for at, inlet in enumerate(node["inputs"]) if inlet["name"] == widget)
        inlet = node["inputs"][place]
        self._last += 1
        socket = self._socket(self._inputs, widget, inlet["type"])
        socket["linkIds"].append(self._last)
        inlet["link"] = self._last
        slot = len(self._inputs) - 1
        self._links[self._last] = [self._last, ENTRY, slot, node["id"], place, inlet["type"]]

    def definition(self, subgraph_id: str) -> Graph:
        """The subgraph as a workflow file holds it, without its names."""
        inside = set(self.nodes) | {ENTRY, EXIT}
        links = [link for link in self._links.values() if {link[1], link[3]} <= inside]
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        left, top, right, _ = self._box()
        state = {"lastGroupId": len(self._groups), "lastNodeId": max(self._all), "lastLinkId": self._last}
        return {
            "id": subgraph_id,
            "version": 1,
            "state": state | {"lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "inputNode": _edge(ENTRY, left - MARGIN - EDGE_WIDTH, top, self._inputs),
            "outputNode": _edge(EXIT, right + MARGIN, top, self._outputs),
            "inputs": self._inputs,
            "outputs": self._outputs,
            "widgets": [],
            "nodes": list(self.nodes.values()),
            "groups": [group for group in self._groups if self._holds(group)],
            "links": [dict(zip(keys, link, strict=True)) for link in sorted(links)],
            "extra": {},
        }

    def outer_node(self, subgraph_id: str, title: str) -> Graph:
        """The node that stands for the subgraph."""
        inner = {inlet["link"]: inlet for node in self.nodes.values() for inlet in node["inputs"]}
        inputs = []
        for socket in self._inputs:
            shown: Graph = {"name": socket["name"], "type": socket["type"]}
            if "widget" in inner[socket["linkIds"][0]]:
                shown["widget"] = {"name": socket["name"]}
            inputs.append(shown | {"link": None})
        outputs = [{"name": socket["name"], "type": socket["type"], "links": []} for socket in self._outputs]
        ours = next(node for node in self.nodes.values() if node["type"].startswith("ContextAnyone"))
        known = {name: ours["properties"][name] for name in ("cnr_id", "ver")}
        node = {"id": 1, "type": subgraph_id, "pos": [0, 0], "size": [400, 560], "flags": {}, "order": 0, "mode": 0}
        return node | {"inputs": inputs, "outputs": outputs, "title": title, "properties": known, "widgets_values": []}

    def _socket(self, sockets: list[Graph], name: str, kind: str) -> Graph:
        taken = {socket["name"] for socket in sockets}
        assert name not in taken, f"two sockets are called {name}"
        made = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{sorted(self.nodes)} {len(sockets)} {name}"))}
        sockets.append(made | {"name": name, "type": kind, "linkIds": []})
        return sockets[-1]

    def _box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the groups that are kept."""
        corners = [group["bounding"] for group in self._groups if self._holds(group)]
        left, top = min(x for x, *_ in corners), min(y for _, y, *_ in corners)
        return left, top, max(x + w for x, _, w, _ in corners), max(y + h for _, y, _, h in corners)

    def _holds(self, group: Graph) -> bool:
        """Does a group have a node inside?"""
        x, y, width, height = group["bounding"]
        places = [node["pos"] for node in self.nodes.values()]
        return any(x <= left <= x + width and y <= top <= y + height for left, top in places)


def _edge(node_id: int, x: int, y: int, sockets: list[Graph]) -> Graph:
    """The edge of a subgraph, with a row for each of its sockets, which get their places."""
    for row, socket in enumerate(sockets):
        socket["pos"] = [x + (EDGE_WIDTH - ROW if node_id == ENTRY else ROW), y + ROW * (row + 1)]
    return {"id": node_id, "bounding": [x, y, EDGE_WIDTH, ROW * (len(sockets) + 2)]}


def _id(stem: str, kind: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"contextanyone/{kind}/{stem}"))


def files() -> dict[Path, Graph]:
    """Every file that is derived, with what it must hold."""
    apps = {FOLDER / f"{stem}.app.json": app_of(stem) for stem in DERIVED}
    return apps | {SUBGRAPHS / f"{made.blueprint}.json": blueprint_of(stem) for stem, made in DERIVED.items()}


def text_of(graph: Graph) -> str:
    """A graph as it is written."""
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write them all."""
    for path, graph in files().items():
        path.parent.mkdir(exist_ok=True)
        write_text(path, text_of(graph))
    return 0


if __name__ == "__main__":
    sys.exit(main())
