"""The workflows on ComfyUI's own page, in headless Chromium, in both designs of nodes: dropped, looked at, run."""

import json
from contextlib import contextmanager

import derived_graphs
import page
import pytest
import workflow_files
from comfyui_server import RUN_SECONDS

pytestmark = [pytest.mark.comfy, pytest.mark.browser]

FLOWS = workflow_files.workflows()
MINIATURE = [path for path in FLOWS if workflow_files.is_miniature(path)]
NOTE = "The picture is far from the miniature's drawn world"
FULL = [path for path in FLOWS if not workflow_files.is_miniature(path)]


def named(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.fixture(params=[False, True], ids=["classic", "new"])
def tab(request, chromium, server):
    """A fresh page in one of the two designs."""
    opened = page.open_page(chromium, server, vue_nodes=request.param)
    yield opened
    opened.close()


@pytest.fixture
def small_file(tmp_path):
    """A graph in API form as a file to drop."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps(workflow_files.small_prompt(steps=2)), encoding="utf-8")
    return file


def without_metadata(prompt):
    """A prompt in API form without titles, and without the player that the new design puts into Load Video."""
    return {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {name: value for name, value in node["inputs"].items() if name != "video-preview"},
        }
        for node_id, node in prompt.items()
    }


def assert_clean(report):
    assert report.problems == {}
    assert report.dialogs == []


def assert_runs(tab, server):
    done = server.wait(tab.run(), RUN_SECONDS)
    assert done.status == "success", done.error
    return done


@pytest.mark.parametrize("path", named(MINIATURE))
def test_workflow_is_dropped_and_run(tab, server, path, tmp_path):
    workflow = workflow_files.read(path)
    report = tab.drop(path, nodes=len(workflow["nodes"]))
    assert_clean(report)
    assert without_metadata(tab.prompt()) == without_metadata(workflow_files.read(workflow_files.api_form(path)))
    assert_runs(tab, server)
    tab.screenshot(tmp_path / "done.png")
    report = tab.report()
    assert report.problems == {}
    people = [node for node in workflow["nodes"] if node["type"] == workflow_files.PERSON]
    assert len(report.dialogs) == 2 * len(people), "how the person is called, and their bones"
    assert all(told.startswith("ContextAnyone Load Personal Model: ") for told in report.dialogs)
    assert tab.console == []


@contextmanager
def its_files(tab, server, graph):
    """The page with stand-ins of a graph's files, where it needs any."""
    with workflow_files.stand_ins(server.base, graph):
        if workflow_files.wanted_files(graph):
            tab.reload()
        yield


@pytest.fixture
def new_tab(chromium, server):
    """A fresh page in the new design, which apps always have."""
    opened = page.open_page(chromium, server, vue_nodes=True)
    yield opened
    opened.close()


@pytest.mark.parametrize("stem", derived_graphs.DERIVED)
def test_an_app_opens_with_what_an_artist_sets_and_runs(new_tab, server, stem):
    path, derived = workflow_files.FOLDER / f"{stem}.app.json", derived_graphs.DERIVED[stem]
    workflow, prompt = workflow_files.read(path), workflow_files.read(workflow_files.FOLDER / "api" / f"{stem}.json")
    with its_files(new_tab, server, workflow):
        assert_clean(new_tab.drop(path, nodes=len(workflow["nodes"])))
        assert new_tab.app_widgets() == [widget for _, widget in derived.outside + derived.inside]
        assert without_metadata(new_tab.prompt()) == without_metadata(prompt)
        if workflow_files.is_miniature(path):
            new_tab.turn("ContextAnyoneSampler", "steps", 2)
            assert_runs(new_tab, server)
            new_tab.wait_for_app_video()
    assert new_tab.console == []


@pytest.mark.parametrize("stem", derived_graphs.DERIVED)
def test_a_blueprint_is_found_and_does_what_its_graph_does(tab, server, stem):
    blueprint = derived_graphs.blueprint_of(stem)
    prompt = workflow_files.read(workflow_files.FOLDER / "api" / f"{stem}.json")
    sockets = [socket["name"] for socket in blueprint["nodes"][0]["inputs"] if "widget" not in socket]
    outside = [kind for kind, _ in derived_graphs.DERIVED[stem].outside]
    with its_files(tab, server, blueprint):
        tab.place(blueprint["nodes"][0]["title"], dict(zip(sockets, outside, strict=True)), "SaveVideo")
        assert tab.report().problems == {}
        assert without_sources(tab.prompt(), outside) == without_sources(prompt, outside)
    assert tab.console == []


def without_sources(prompt, outside):
    """What a prompt saves, as a tree, whatever its nodes' ids are; what stands outside a blueprint is a name alone."""

    def tree(node):
        inputs = {} if node["class_type"] in outside else node["inputs"]
        return node["class_type"], {
            name: (*tree(prompt[value[0]]), value[1]) if isinstance(value, list) else value
            for name, value in sorted(inputs.items())
        }

    (end,) = [node for node in without_metadata(prompt).values() if node["class_type"] == "SaveVideo"]
    return tree({**end, "inputs": {"video": end["inputs"]["video"]}})


@pytest.mark.parametrize("path", named(FULL))
def test_full_size_workflow_loads_with_its_files(tab, server, path):
    workflow = workflow_files.read(path)
    with its_files(tab, server, workflow):
        assert_clean(tab.drop(path, nodes=len(workflow["nodes"])))
        assert without_metadata(tab.prompt()) == without_metadata(workflow_files.read(workflow_files.api_form(path)))


@pytest.mark.parametrize("path", named(FULL))
def test_full_size_workflow_offers_exactly_the_public_files(tab, path):
    workflow = workflow_files.read(path)
    report = tab.drop(path, nodes=len(workflow["nodes"]))
    assert set(report.problems) <= {"bad_combos", "red_nodes"}
    assert tab.offered_models() == workflow_files.offered_models(workflow)


def test_saved_video_and_picture_restore_the_graph(tab, server, small_file):
    prompt = workflow_files.with_picture(workflow_files.small_prompt(steps=2))
    small_file.write_text(json.dumps(prompt), encoding="utf-8")
    report = tab.drop(small_file, nodes=len(prompt))
    assert_clean(report)
    graph, done = tab.prompt(), assert_runs(tab, server)
    files = [server.path(file) for file in done.files() if file["type"] == "output"]
    for ending in (".mp4", ".png"):
        saved = next(file for file in files if file.suffix == ending)
        assert_clean(tab.drop(saved, nodes=report.nodes))
        assert without_metadata(tab.prompt()) == without_metadata(graph)


def test_what_is_wrong_is_seen(tab, small_file):
    prompt = workflow_files.small_prompt(steps=2)
    prompt["picture"]["inputs"]["picture"] = "gone.png"
    prompt["frames"]["class_type"] = "NoSuchNode"
    small_file.write_text(json.dumps(prompt), encoding="utf-8")
    report = tab.drop(small_file)
    assert set(report.problems) >= {"bad_combos"}
    assert report.problems or report.dialogs


def test_the_page_resolves_wildcards_in_prompts(tab, small_file):
    prompt = workflow_files.small_prompt(steps=2)
    texts = {name: f"A {{{name}|{name}}} person {{waving|dancing}}." for name in ("first", "later", "negative")}
    prompt["sampler"]["inputs"] |= texts
    small_file.write_text(json.dumps(prompt), encoding="utf-8")
    tab.drop(small_file, nodes=len(prompt))
    (sampler,) = (node for node in tab.prompt().values() if node["class_type"] == "ContextAnyoneSampler")
    for name in texts:
        assert sampler["inputs"][name] in {f"A {name} person {action}." for action in ("waving", "dancing")}


def test_a_note_reaches_the_page_that_ran_and_goes_with_the_next_run(tab, chromium, server, small_file):
    prompt = workflow_files.small_prompt(steps=1)
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    small_file.write_text(json.dumps(prompt), encoding="utf-8")
    tab.drop(small_file, nodes=len(prompt))
    other = page.Page(chromium.new_context(viewport=page.SIZE).new_page(), server)
    other.drop(small_file, nodes=len(prompt))
    for _ in range(2):  # a cached node says it again
        assert_runs(tab, server)
        tab.wait_for_text(f"ContextAnyone Sampler: {NOTE}")
        assert not other.shows(NOTE)
    other.close()
    prompt["picture"] = workflow_files.small_prompt(steps=1)["picture"]
    small_file.write_text(json.dumps(prompt), encoding="utf-8")
    tab.drop(small_file, nodes=len(prompt))
    assert_runs(tab, server)
    assert not tab.shows(NOTE)
    assert tab.console == []
