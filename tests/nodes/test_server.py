"""The pack in a real server: what it serves, graphs by POST, cache, interrupt, full-size graphs without files."""

import os
import re
import time
from pathlib import Path

import av
import derived_graphs
import pytest
import workflow_files
from comfyui import PACK_FOLDER, ROOT
from comfyui_server import RefusedError

pytestmark = pytest.mark.comfy

FLOWS = workflow_files.workflows()
MINIATURE = [path for path in FLOWS if workflow_files.is_miniature(path)]
FULL = [path for path in FLOWS if not workflow_files.is_miniature(path)]
HELP = ROOT / "web" / "docs"
PAGES = sorted(path.relative_to(HELP).as_posix() for path in HELP.rglob("*.md"))


def named(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def test_pack_is_loaded_without_a_word(server):
    ours = {name for name, info in server.get("/object_info").items() if info["python_module"].endswith(PACK_FOLDER)}
    assert ours == set(workflow_files.read(Path(__file__).with_name("schema.json")))
    said = server.log.read_text(encoding="utf-8").partition("Starting server")[0]  # other tests use it after that
    loading = [line for line in said.splitlines() if PACK_FOLDER in line]
    assert len(loading) == 1, "the line of import times, and nothing else"
    assert "IMPORT FAILED" not in loading[0]


def test_templates_are_our_workflows(server):
    assert FLOWS, "no workflows"
    listed = server.get("/workflow_templates").get(PACK_FOLDER, [])
    every = sorted([*FLOWS, *workflow_files.apps()])
    assert sorted(listed) == sorted(path.stem for path in every)
    for path in every:
        assert server.request(f"/api/workflow_templates/{PACK_FOLDER}/{path.stem}.jpg")[:2] == b"\xff\xd8", path.stem
        assert server.get(f"/api/workflow_templates/{PACK_FOLDER}/{path.stem}.json") == workflow_files.read(path)


def test_blueprints_are_listed_as_files_of_the_pack(server):
    ours = f"custom_nodes.{PACK_FOLDER}"
    listed = {
        key: one["name"] for key, one in server.get("/global_subgraphs").items() if one["info"]["node_pack"] == ours
    }
    files = {path.stem: path for path in derived_graphs.SUBGRAPHS.glob("*.json")}
    assert sorted(listed.values()) == sorted(files)
    for key, name in listed.items():
        assert server.get(f"/global_subgraphs/{key}")["data"] == files[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_help_page_and_its_pictures_are_served(server, page):
    folder = f"/extensions/{PACK_FOLDER}/docs"
    text = server.request(f"{folder}/{page}").decode()
    pictures = re.findall(r"!\[[^]]*]\(([^)\s]+)", text)
    assert pictures, "a help page has a picture"
    for picture in pictures:
        assert server.request(f"{folder}/{picture}")


@pytest.mark.parametrize("path", named(MINIATURE))
def test_workflow_runs_by_post_and_a_new_seed_reuses_the_rest(server, path):
    prompt = workflow_files.read(workflow_files.api_form(path))
    done = server.run(prompt)
    assert done.status == "success", done.error
    videos = [server.path(file) for file in done.files() if file["filename"].endswith(".mp4")]
    assert videos
    assert all(b"ftyp" in video.read_bytes()[:16] for video in videos)
    prompt_id = server.queue(workflow_files.with_seed(prompt, 4321))
    server.interrupt_when_running(prompt_id)  # what is cached is said at the start
    reached = workflow_files.downstream(prompt, set(workflow_files.seeded(prompt)))
    assert server.wait(prompt_id).cached == set(prompt) - reached


def test_only_what_a_new_seed_reaches_runs_again(server):
    prompt = workflow_files.small_prompt(steps=2)
    first = server.run(prompt)
    assert first.status == "success", first.error
    again = server.run(workflow_files.with_seed(prompt, 8))
    assert again.status == "success", again.error
    assert set(prompt) - again.cached == {"sampler", "frames", "video", "save"}


def test_interrupt_stops_at_once_and_the_next_run_is_good(server):
    prompt = workflow_files.with_picture(workflow_files.small_prompt(steps=2))
    before = server.run(prompt)
    start = server.log.stat().st_size
    prompt_id = server.queue(workflow_files.small_prompt(steps=500))
    server.wait_for_log(r"\| [1-9]\d*/500", start)  # on a fast machine the bar skips steps
    pressed = time.monotonic()
    server.interrupt(prompt_id)
    stopped = server.wait(prompt_id, timeout=60)
    seconds = time.monotonic() - pressed
    assert stopped.interrupted
    assert seconds < 2.0 or busy(), f"stopped after {seconds:.1f} s"
    server.forget()
    after = server.run(prompt)
    assert after.status == "success", after.error
    assert frames(server, after) == frames(server, before), "the interrupted run left something behind"


def test_simple_workflow_is_done_in_thirty_seconds(server):
    (simple,) = (path for path in MINIATURE if path.stem.startswith("01_"))
    if busy():
        pytest.skip(f"this machine is busy (load {os.getloadavg()[0]:.1f}): no time is measured")
    server.forget()
    done = server.run(workflow_files.with_seed(workflow_files.read(workflow_files.api_form(simple)), 99))
    assert done.status == "success", done.error
    assert done.seconds <= 30.0


def frames(server, done):
    """The saved frames, byte for byte."""
    files = sorted(done.outputs["pictures"]["images"], key=lambda file: file["filename"])
    return [server.path(file).read_bytes() for file in files]


def busy():
    """Is more than one core's work going on already?"""
    return os.getloadavg()[0] > 1.2


@pytest.mark.parametrize("path", named(FULL))
def test_full_size_graph_is_valid_and_a_stand_in_is_refused(server, path):
    prompt = workflow_files.read(workflow_files.api_form(path))
    with workflow_files.stand_ins(server.base, workflow_files.read(path)):
        done = server.run(prompt)  # raises where the prompt is not valid
    assert done.status == "error"
    assert done.error


@pytest.mark.parametrize("path", named(FULL))
def test_full_size_graph_runs_with_the_miniature(server, path):
    workflow_files.own_video(server.base / "input" / "dance.mp4")
    prompt = workflow_files.with_miniature(workflow_files.read(workflow_files.api_form(path)), steps=3)
    done = server.run(prompt)
    assert done.status == "success", done.error
    if "LoadVideo" in str(prompt):
        (made,) = [server.path(file) for file in done.files() if file["filename"].endswith(".mp4")]
        with av.open(str(made)) as clip:
            assert [stream.type for stream in clip.streams] == ["video", "audio"], "the dance's sound is kept"
            assert abs(float(clip.duration) / av.time_base - 17 / 16) < 0.2


def test_stand_in_is_refused_by_our_loader_in_one_line(server):
    name = "not_a_model.safetensors"
    (server.base / "models" / "diffusion_models" / name).touch()
    loader = {"model_name": name, "weight_dtype": "default"}
    prompt = workflow_files.small_prompt(steps=2)
    prompt["model"] = {"class_type": "ContextAnyoneLoader", "inputs": loader}
    prompt["sampler"]["inputs"]["model"] = ["model", 0]
    try:
        done = server.run(prompt)
    except RefusedError as refused:
        told = [error["details"] for node in refused.answer["node_errors"].values() for error in node["errors"]]
        assert len(told) == 1
        message = told[0]
    else:
        message = done.error
    assert name in message
    assert "\n" not in message
