"""Writes what stands beside the workflows, from a real ComfyUI, after a change of a workflow, a node or the weights:

python tests/nodes/refresh_workflows.py [NAME ...]

The API form and the thumbnail of each workflow, apps and blueprints made of it, the pictures of the help pages in both
languages, and docs/comfyui.jpg.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import comfyui
import derived_graphs
import page
import workflow_files
from comfyui_server import Finished, Server
from PIL import Image
from playwright.sync_api import sync_playwright

EXAMPLES = comfyui.ROOT / "assets" / "examples"
HELP = comfyui.ROOT / "web" / "docs"
SCREENSHOT = comfyui.ROOT / "docs" / "comfyui.jpg"
FIRST = "01_miniature_simple"
TILE, TILES, GAP = 256, 4, 16


def main() -> int:
    """0 when all is written, 1 where a workflow does not run, 2 where no ComfyUI or browser is found."""
    comfy, chromium = comfyui.find(), page.find_chromium()
    if isinstance(comfy, str) or chromium is None:
        sys.stderr.write(f"{comfy if isinstance(comfy, str) else 'no Chromium on PATH'}\n")
        return 2
    derived_graphs.main()
    every = [*workflow_files.workflows(), *workflow_files.apps()]
    wanted = [path for path in every if not sys.argv[1:] or path.stem in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="comfyui-") as folder, sync_playwright() as driver:
        server = Server(comfy, Path(folder), "--preview-method", "none")  # as ComfyUI starts by default
        server.start()
        server.set({"LiteGraph.Canvas.MinFontSizeForLOD": 0, "Comfy.Graph.CanvasInfo": False})  # small text, no timings
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=page.SWITCHES)
        try:
            return max(
                app(browser, server, p) if p in workflow_files.apps() else refresh(browser, server, p) for p in wanted
            )
        finally:
            browser.close()
            server.stop()


def refresh(browser: Any, server: Server, path: Path) -> int:
    """Write everything of one workflow; 1 where it does not run."""
    workflow = workflow_files.read(path)
    with workflow_files.stand_ins(server.base, workflow):
        tab = page.open_page(browser, server, vue_nodes=False)
        tab.drop(path, nodes=len(workflow["nodes"]))
        prompt = tab.prompt()
        workflow_files.api_form(path).write_text(json.dumps(prompt, indent=1, ensure_ascii=False) + "\n", "utf-8")
        video = poses = None
        if workflow_files.is_miniature(path):
            done = server.wait(tab.run())
            if done.status != "success":
                sys.stderr.write(f"{path.stem}: {done.error}\n")
                return 1
            video = made(server, done, ".mp4")
            poses = made(server, done, ".webp")
        shot = server.base / f"{path.stem}.png"
        tab.screenshot(shot)
        thumbnail = Image.open(shot).convert("RGB").crop(tab.graph_box())  # of a graph that did not run: the graph
        if video is not None:
            thumbnail = clip_sheet(video, poses, prompt)
        thumbnail.save(path.with_suffix(".jpg"), quality=88)
        if path.stem == FIRST:
            Image.open(shot).convert("RGB").resize((1600, 889), Image.Resampling.LANCZOS).save(SCREENSHOT, quality=85)
        help_pictures(tab, path, server.base / "node.png", "{}.jpg")
        tab.close()
        chinese_pictures(browser, server, path)
    sys.stderr.write(f"{path.stem} is refreshed\n")
    return 0


def app(browser: Any, server: Server, path: Path) -> int:
    """Write the thumbnail of an app: the page that it opens on, before a run."""
    workflow = workflow_files.read(path)
    with workflow_files.stand_ins(server.base, workflow):
        tab = page.open_page(browser, server, vue_nodes=True)
        tab.drop(path, nodes=len(workflow["nodes"]))
        shot = server.base / f"{path.stem}.png"
        tab.app_picture(shot)
        Image.open(shot).convert("RGB").save(path.with_suffix(".jpg"), quality=88)
        tab.close()
    sys.stderr.write(f"{path.stem} is refreshed\n")
    return 0


def made(server: Server, done: Finished, ending: str) -> Path | None:
    """The first file of an ending that a run left: the video, or the preview of the poses that it follows."""
    return next((server.path(file) for file in done.files() if file["filename"].endswith(ending)), None)


def clip_sheet(video: Path, poses: Path | None, prompt: workflow_files.Prompt) -> Image.Image:
    """References, then frames of the clip, each under its pose if it has one; the poses are as long as the video."""
    names = [node["inputs"]["picture"] for node in prompt.values() if "picture" in node["inputs"]]
    with av.open(str(video)) as clip:
        frames = [frame.to_image() for frame in clip.decode(video=0)]
    count = TILES - len(names)
    chosen = [(2 * index + 1) * len(frames) // (2 * count) for index in range(count)]
    pictures = [Image.open(EXAMPLES / name).convert("RGB") for name in names] + [frames[index] for index in chosen]
    top = 0 if poses is None else TILE
    sheet = Image.new("RGB", (TILES * TILE + GAP, top + TILE), "white")
    for index, picture in enumerate(pictures):
        left = index * TILE + (GAP if index >= len(names) else 0)
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
    if poses is not None:
        with Image.open(poses) as drawn:
            for place, index in enumerate(chosen, start=len(names)):
                drawn.seek(index)
                small = drawn.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
                sheet.paste(small, (place * TILE + GAP, 0))
    return sheet


def help_pictures(tab: page.Page, path: Path, scratch: Path, name: str) -> None:
    """Pictures of the nodes that this workflow is the first to have, under a name with the node's in it."""
    for node_type in sorted(first_types(path)):
        tab.node_picture(node_type, scratch)
        Image.open(scratch).convert("RGB").save(HELP / name.format(node_type), quality=85)


def chinese_pictures(browser: Any, server: Server, path: Path) -> None:
    """The same for the Chinese help pages, from the page in Chinese; a graph that has run is not computed again."""
    if not first_types(path):
        return
    server.set({"Comfy.Locale": "zh"})
    tab = page.open_page(browser, server, vue_nodes=False)
    tab.drop(path, nodes=len(workflow_files.read(path)["nodes"]))
    if workflow_files.is_miniature(path):
        server.wait(tab.run())
    help_pictures(tab, path, server.base / "node.png", "{}/zh.jpg")
    tab.close()
    server.set({"Comfy.Locale": "en"})


def first_types(path: Path) -> set[str]:
    """The nodes of ours in a workflow that no earlier one has."""
    earlier = [other for other in workflow_files.workflows() if other < path]
    return own_types(path) - set().union(*map(own_types, earlier))


def own_types(path: Path) -> set[str]:
    """The nodes of ours in a workflow."""
    types = {node["type"] for node in workflow_files.read(path)["nodes"]}
    return {name for name in types if name.startswith("ContextAnyone")}


if __name__ == "__main__":
    sys.exit(main())
