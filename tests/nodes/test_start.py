"""docs/START.md is walked through on ComfyUI's page, with small stand-ins of the published files (small_files.py)."""

import re
import shutil
import subprocess

import page
import pytest
import workflow_files
from comfyui import ROOT
from comfyui_server import RUN_SECONDS, Server

ROW = re.compile(r"^\| `(\w+)` \| \[(\S+)\]\((\S+)\).* \| ([^|]+) \|$", re.MULTILINE)
PHOTO = ROOT / "assets" / "examples" / "red_hair_bag_teal_shirt.png"
HERE = ROOT / "tests" / "nodes"
SIZE = {"width": 96, "height": 64, "length": 5}
APPLY = ("ContextAnyoneApply", SIZE)
SMALLER = {
    "11_photo_refalign": dict([APPLY, ("BasicScheduler", {"steps": 2})]),
    "12_photo_bernini": dict([APPLY, ("BasicScheduler", {"steps": 2})]),
    "13_photo_fast": {"ContextAnyoneSampler": SIZE | {"steps": 2}},
}


def named_in_start(stem):
    """(folder, file, URL) of each row of START's table of files that is for a workflow."""
    rows = ROW.findall((ROOT / "docs" / "START.md").read_text(encoding="utf-8"))
    number = stem.partition("_")[0]
    return {(folder, file, url) for folder, file, url, used in rows if used == "all" or number in used.split(", ")}


@pytest.mark.parametrize("stem", SMALLER)
def test_start_names_the_files_that_its_workflows_offer(stem):
    nodes = workflow_files.nodes_of(workflow_files.read(workflow_files.FOLDER / f"{stem}.json"))
    offered = [model for node in nodes for model in node["properties"].get("models", [])]
    assert named_in_start(stem) == {(model["directory"], model["name"], model["url"]) for model in offered}
    paths = {f"models/{model['directory']}/{model['name']}" for model in offered}
    assert paths == workflow_files.wanted_files({"nodes": nodes})


@pytest.fixture(scope="module")
def published(comfy, tmp_path_factory):
    """A folder models/ with a stand-in of every file."""
    models = tmp_path_factory.mktemp("published")
    command = [str(comfy.python), str(HERE / "small_files.py"), str(comfy.root), str(models)]
    subprocess.run(command, env=comfy.environment(), check=True, capture_output=True, timeout=RUN_SECONDS)
    return models


@pytest.fixture(scope="module")
def bare(comfy, tmp_path_factory):
    """A server without a model file, whose ComfyUI builds its fixed-size networks small."""
    server = Server(comfy, tmp_path_factory.mktemp("start"))
    shutil.copy(HERE / "small_core.py", server.base / "custom_nodes")
    server.start()
    yield server
    server.stop()


@pytest.mark.comfy
@pytest.mark.browser
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("stem", "vue_nodes"),
    [("11_photo_refalign", False), ("11_photo_refalign", True), ("12_photo_bernini", True), ("13_photo_fast", False)],
)
def test_start_leads_to_a_video(chromium, bare, published, stem, vue_nodes):
    for file in (bare.base / "models").rglob("*.safetensors"):
        file.unlink()
    tab = page.open_page(chromium, bare, vue_nodes)
    assert set(tab.open_template(stem).problems) == {"bad_combos", "red_nodes"}, "the loaders' frames are red"
    files = named_in_start(stem)
    assert tab.offered_models() == {file for _, file, _ in files}
    for folder, file, _ in files:
        tab.wait_for_text(folder)
        (bare.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(published / folder / file, bare.base / "models" / folder)
    assert tab.refresh().problems == {}
    tab.choose_picture(PHOTO)
    for node_type, changed in SMALLER[stem].items():
        for widget, value in changed.items():
            tab.turn(node_type, widget, value)
    done = bare.wait(tab.run(), RUN_SECONDS)
    assert done.status == "success", done.error
    assert any(file["filename"].endswith(".mp4") for file in done.files())
    tab.wait_for_text("There is no GPU")  # what the loader says of the card
    assert tab.console == []
    tab.close()
