"""ComfyUI's page in headless Chromium: drop a file on it, see what is wrong with the graph, press Run."""

from __future__ import annotations

import base64
import json
import mimetypes
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui import PACK_FOLDER
from comfyui_server import RefusedError, Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
READY_MS = 240_000  # the page on a busy machine
LOAD_MS = 60_000  # a workflow on the page
SIZE = {"width": 1800, "height": 1000}
TALL = {"width": 1800, "height": 1400}

# What would stand in the way of a test, or change from run to run.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "Comfy.Workflow.Persist": False,
    "Comfy.Validation.Workflows": True,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.AutoScaleLayout": False,
}

READY = """() => window.app?.graph && window.app?.canvas && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).length > 100"""

DROP = """([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, {type}));
    const canvas = document.getElementById('graph-canvas');
    const box = canvas.getBoundingClientRect();
    const place = {clientX: box.left + box.width / 2, clientY: box.top + box.height * 0.8};
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        const event = {bubbles: true, cancelable: true, composed: true, dataTransfer, ...place};
        canvas.dispatchEvent(new DragEvent(kind, event));
    }
}"""

NODE_COUNT = "() => window.app.graph.nodes.length"

INSPECT = """() => {
    const found = {nodes: 0, types: [], missing_types: [], bad_links: [], unlinked: [], bad_combos: [], red_nodes: []};
    const known = window.LiteGraph.registered_node_types;
    const visited = new Set();
    function visit(graph) {
        if (!graph || visited.has(graph)) return;
        visited.add(graph);
        for (const node of graph.nodes) visitNode(node);
        const links = graph.links instanceof Map ? graph.links.values() : Object.values(graph.links ?? {});
        for (const link of links) visitLink(graph, link);
    }
    function visitNode(node) {
        const name = `${node.id} ${node.type}`;
        found.nodes += 1;
        found.types.push(node.type);
        if (node.has_errors) found.red_nodes.push(name);
        if (node.subgraph) return visit(node.subgraph);
        if (!(node.type in known)) found.missing_types.push(name);
        if (node.mode !== 0) return;
        const required = node.constructor.nodeData?.input?.required ?? {};
        const linked = new Set();
        for (const input of node.inputs ?? []) {
            if (input.link != null) linked.add(input.widget?.name ?? input.name);
            else if (input.name in required && !input.widget) found.unlinked.push(`${name}.${input.name}`);
        }
        for (const widget of node.widgets ?? []) {
            if (widget.type !== 'combo' || linked.has(widget.name)) continue;
            let values = widget.options?.values;
            if (typeof values === 'function') values = values(widget, node);
            if (Array.isArray(values) && !values.includes(widget.value))
                found.bad_combos.push(`${name}.${widget.name} = ${widget.value}`);
        }
    }
    function visitLink(graph, link) {
        if (link.origin_id < 0 || link.target_id < 0) return;  // the edge of a subgraph
        const output = graph.getNodeById(link.origin_id)?.outputs?.[link.origin_slot];
        const input = graph.getNodeById(link.target_id)?.inputs?.[link.target_slot];
        const name = `${link.origin_id}:${link.origin_slot} -> ${link.target_id}:${link.target_slot}`;
        if (!output || !input) found.bad_links.push(`${name} leads nowhere`);
        else if (input.link !== link.id) found.bad_links.push(`${name} is not known to its target`);
        else if (!window.LiteGraph.isValidConnection(output.type, input.type))
            found.bad_links.push(`${name} joins ${output.type} and ${input.type}`);
    }
    visit(window.app.rootGraph ?? window.app.graph);
    return found;
}"""

DIALOGS = """() => [...document.querySelectorAll(
        '[role=dialog], [role=alertdialog], .p-dialog, .p-toast-message, [data-testid*=missing], [data-testid*=error]')]
    .filter(element => element.getClientRects().length > 0)
    .map(element => element.innerText.replace(/\\s+/g, ' ').trim())
    .filter((text, at, all) => text && all.indexOf(text) === at)"""


NODE_BOX = """type => {
    const margin = 160;  // clear of the page's bars
    const graph = window.app.graph, node = graph.nodes.find(node => node.type === type);
    const {ds, canvas} = window.app.canvas;
    for (const group of [...graph.groups]) graph.remove(group);
    graph.nodes.forEach((other, index) => { other.pos = other === node ? [0, 0] : [0, 50_000 + 2_000 * index]; });
    window.app.canvas.links_render_mode = window.LiteGraph.HIDDEN_LINK;
    ds.scale = 1;
    ds.offset = [margin - node.pos[0], margin - node.pos[1]];
    window.app.canvas.setDirty(true, true);
    const {left, top} = canvas.getBoundingClientRect(), title = 30, badge = 24, edge = 10;
    const x = left + margin - edge, y = top + margin - title - badge;
    return {x, y, width: node.size[0] + 2 * edge, height: node.size[1] + title + badge + edge};
}"""


GRAPH_BOX = """() => {
    const graph = window.app.graph, {ds, canvas} = window.app.canvas, edge = 10, title = 54;
    const boxes = graph.nodes.map(({pos, size}) => [pos[0], pos[1] - title, pos[0] + size[0], pos[1] + size[1]]);
    for (const {pos, size} of graph.groups) boxes.push([pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]]);
    const side = (at, pick) => (pick(...boxes.map(box => box[at])) + ds.offset[at % 2]) * ds.scale;
    const {left, top} = canvas.getBoundingClientRect();
    const [x, y, right, bottom] = [side(0, Math.min), side(1, Math.min), side(2, Math.max), side(3, Math.max)];
    return [left + x - edge, top + y - edge, left + right + edge, top + bottom + edge].map(Math.round);
}"""


APP_WIDGETS = """() => [...document.querySelectorAll('[data-testid=app-mode-widget-item]')]
    .map(item => item.querySelector('[data-testid=builder-widget-label]').innerText.trim())"""


TURN = """([type, name, value]) => {
    const node = window.app.graph.nodes.find(node => node.type === type);
    node.widgets.find(widget => widget.name === name).value = value;
}"""


SURROUND = """([sources, end]) => {
    const graph = window.app.graph, [made] = graph.nodes;
    const add = (type, x) => {
        const node = window.LiteGraph.createNode(type);
        graph.add(node);
        node.pos = [made.pos[0] + x, made.pos[1] + 200 * graph.nodes.length];
        return node;
    };
    for (const [input, type] of Object.entries(sources)) add(type, -500).connect(0, made, made.findInputSlot(input));
    made.connect(0, add(end, 600), 0);
}"""


LOAD_IMAGE = "window.app.graph.nodes.find(node => node.type === 'LoadImage').widgets"
UPLOAD = f"() => {{ {LOAD_IMAGE}.find(widget => widget.name === 'upload').callback(); }}"
CHOSEN = f"name => {LOAD_IMAGE}[0].value === name"


OFFERED = """() => [...document.querySelectorAll('[data-testid=missing-model-download]')]
    .map(button => button.getAttribute('aria-label').replace(/^Download /, ''))"""


def find_chromium() -> str | None:
    """The browser on PATH."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


@dataclass(frozen=True)
class Report:
    """What is on the page after a drop. `problems` is empty where all is well."""

    nodes: int
    types: list[str]
    problems: dict[str, list[str]]
    dialogs: list[str]


class Page:
    """One tab with the page of a server. Made by `open_page`."""

    def __init__(self, tab: Any, server: Server) -> None:
        self._tab, self._server = tab, server
        self.console: list[str] = []
        tab.on("pageerror", lambda error: self.console.append(str(error)[:500]))
        self.reload()

    def reload(self) -> None:
        """Open the page again; it then knows the model files that are there now."""
        self._tab.goto(self._server.url, wait_until="domcontentloaded", timeout=READY_MS)
        self._tab.wait_for_function(READY, timeout=READY_MS)
        self._tab.wait_for_timeout(1500)  # what the page opens by itself comes after its nodes

    def drop(self, file: Path, nodes: int | None = None) -> Report:
        """Drop a file on the canvas and wait until its `nodes` nodes are there; 0 or None waits for any new graph."""
        self._tab.evaluate("() => window.app.graph.clear()")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self._tab.evaluate(DROP, [file.name, kind, base64.b64encode(file.read_bytes()).decode()])
        wanted = f"({NODE_COUNT})() === {nodes}" if nodes else f"({NODE_COUNT})() > 0"
        self._tab.wait_for_function(wanted, timeout=LOAD_MS)
        self._tab.wait_for_timeout(1500)  # dialogs come after the graph
        return self.report()

    def open_template(self, name: str) -> Report:
        """Open a workflow of the pack from the page's own templates, as docs/START.md says."""
        self._tab.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        for text in (PACK_FOLDER, name):
            self._tab.get_by_text(text, exact=True).filter(visible=True).first.click(timeout=LOAD_MS)
        opened = "name => window.app.extensionManager.workflow.activeWorkflow?.filename === name"
        self._tab.wait_for_function(opened, arg=name, timeout=LOAD_MS)
        self._tab.wait_for_timeout(1500)  # dialogs come after the graph
        return self.report()

    def refresh(self) -> Report:
        """Press R and wait until no node's frame is red any more: all files are there now.

        Raises:
            TimeoutError: of playwright; some frame stays red.
        """
        self._tab.locator("#graph-canvas").click(position={"x": SIZE["width"] // 2, "y": SIZE["height"] - 100})
        self._tab.keyboard.press("r")
        self._tab.wait_for_function("() => window.app.graph.nodes.every(node => !node.has_errors)", timeout=LOAD_MS)
        return self.report()

    def report(self) -> Report:
        """What is on the page now."""
        found = self._tab.evaluate(INSPECT)
        nodes, types = found.pop("nodes"), sorted(found.pop("types"))
        problems = {name: what for name, what in found.items() if what}
        return Report(nodes, types, problems, self._tab.evaluate(DIALOGS))

    def run(self) -> str:
        """Press the Run button; the id of the prompt that the page sent.

        Raises:
            RefusedError: the server found it not valid.
        """
        with self._tab.expect_response(
            lambda answer: answer.url.split("?")[0].endswith("/prompt") and answer.request.method == "POST",
            timeout=LOAD_MS,
        ) as sent:
            self._tab.get_by_test_id("queue-button").or_(self._app_button()).filter(visible=True).first.click(
                timeout=LOAD_MS
            )
        answer = sent.value.json()
        if sent.value.status != 200:
            raise RefusedError(answer)
        return str(answer["prompt_id"])

    def _app_button(self) -> Any:
        return self._tab.get_by_test_id("linear-run-button").get_by_role("button", name="Run", exact=True)

    def app_widgets(self) -> list[str]:
        """Names of the widgets that the page shows as an app, once it shows any."""
        self._tab.get_by_test_id("app-mode-widget-item").first.wait_for(state="attached", timeout=LOAD_MS)
        return list(self._tab.evaluate(APP_WIDGETS))

    def wait_for_app_video(self) -> None:
        """Wait until the app shows the video that it made."""
        self._tab.get_by_test_id("linear-outputs").locator("video").first.wait_for(state="attached", timeout=LOAD_MS)

    def turn(self, node_type: str, widget: str, value: Any) -> None:
        """Give a widget of the first node of a type another value."""
        self._tab.evaluate(TURN, [node_type, widget, value])

    def choose_picture(self, file: Path) -> None:
        """Upload a picture at the first Load Image; the classic node has a button for it, the new one a field."""
        field = self._tab.locator("[data-node-id] input[type=file][accept^=image]")
        if field.count():
            field.first.set_input_files(file)
        else:
            with self._tab.expect_file_chooser(timeout=LOAD_MS) as chooser:
                self._tab.evaluate(UPLOAD)
            chooser.value.set_files(file)
        self._tab.wait_for_function(CHOSEN, arg=file.name, timeout=LOAD_MS)

    def place(self, name: str, sources: dict[str, str], end: str) -> None:
        """Put a node on an empty canvas by searching its name, then a node of each type of `sources` at the input of
        that name, and one of the type `end` at its first output."""
        self._tab.wait_for_load_state("networkidle", timeout=LOAD_MS)  # blueprints come after the page
        self._tab.evaluate("() => window.app.graph.clear()")
        x, y = (side // 2 for side in SIZE.values())
        self._tab.mouse.dblclick(x, y)
        self._tab.wait_for_timeout(1500)
        self._tab.keyboard.type(name[:32])  # the search finds nothing by the 43 letters of one
        self._tab.get_by_text(name, exact=True).first.click(timeout=LOAD_MS)
        self._tab.wait_for_timeout(1500)
        self._tab.mouse.click(x, y)  # where the new node hangs from the pointer
        self._tab.wait_for_function(f"({NODE_COUNT})() === 1", timeout=LOAD_MS)
        self._tab.evaluate(SURROUND, [sources, end])

    def workflow(self) -> dict[str, Any]:
        """The graph as the page would save it."""
        return json.loads(self._tab.evaluate("() => JSON.stringify((app.rootGraph ?? app.graph).serialize())"))

    def prompt(self) -> dict[str, Any]:
        """The graph in API form, as the page would send it."""
        return self._tab.evaluate("async () => (await window.app.graphToPrompt()).output")

    def offered_models(self) -> set[str]:
        """The missing model files that the panel of errors has a Download button for."""
        self._tab.get_by_test_id("error-overlay-see-errors").click(timeout=LOAD_MS)
        self._tab.wait_for_timeout(1500)
        return set(self._tab.evaluate(OFFERED))

    def wait_for_text(self, text: str) -> None:
        """Wait until the page shows a text, whatever draws it."""
        self._tab.get_by_text(text).filter(visible=True).first.wait_for(timeout=LOAD_MS)

    def shows(self, text: str) -> bool:
        """Does the page show a text, once what follows a run has had its moment?"""
        self._tab.wait_for_timeout(2000)
        return self._tab.get_by_text(text).filter(visible=True).count() > 0

    def screenshot(self, path: Path) -> None:
        """A picture of the page with the whole graph in view."""
        self._tab.evaluate("() => window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView')")
        self._tab.wait_for_timeout(1000)
        self._tab.screenshot(path=str(path))

    def app_picture(self, path: Path) -> None:
        """A picture of the widgets of an app."""
        self._tab.get_by_test_id("linear-widgets").first.screenshot(path=str(path))

    def graph_box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the whole graph on the page."""
        left, top, right, bottom = self._tab.evaluate(GRAPH_BOX)
        return left, top, right, bottom

    def node_picture(self, node_type: str, path: Path) -> None:
        """A picture of the first node of a type alone, in its own size: the others and the groups are moved away."""
        self._tab.set_viewport_size(TALL)  # ContextAnyone Sampler is higher than the page
        self._tab.wait_for_timeout(500)
        box = self._tab.evaluate(NODE_BOX, node_type)
        self._tab.wait_for_timeout(1000)
        self._tab.screenshot(path=str(path), clip=box)

    def close(self) -> None:
        self._tab.context.close()


def open_page(browser: Any, server: Server, vue_nodes: bool) -> Page:
    """Open the server's page in a fresh profile, with the classic nodes or with the new design."""
    server.set(SETTINGS | {"Comfy.VueNodes.Enabled": vue_nodes})
    return Page(browser.new_context(viewport=SIZE).new_page(), server)
