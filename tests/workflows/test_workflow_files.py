"""The shipped workflows as files: sound graphs of known nodes, fixed seeds, notes, thumbnails, API forms."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FLOWS = sorted(path for path in (ROOT / "workflows").glob("*.json") if not path.name.endswith(".app.json"))
SCHEMA = json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC = tuple(f"https://huggingface.co/{owner}/" for owner in ("Comfy-Org", "Kijai", "gudaochangsheng"))
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}
NARROWEST = 225  # what the new design of nodes draws at least
TITLE = 30  # a node's title stands above its position
FOLDERS = {"text_encoders", "vae", "clip_vision", "loras", "diffusion_models", "checkpoints", "background_removal"}
NOTE, BYPASSED = "MarkdownNote", 4
MOTIONS = {path.stem for path in (ROOT / "assets" / "poses").glob("*.json")}
PEOPLE = {path.name for path in (ROOT / "assets" / "personal").glob("*.safetensors")}
EXAMPLES = {path.name for path in (ROOT / "assets" / "examples").glob("*.png")}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=FLOWS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def flow(path):
    return read(path)


def ours(flow):
    return [node for node in flow["nodes"] if node["type"].startswith("ContextAnyone")]


def test_they_are_there_and_each_has_a_number_of_its_own():
    numbers = [int(path.stem[:2]) for path in FLOWS]
    assert set(range(1, 14)) <= set(numbers)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("stem", ["11_photo_refalign", "12_photo_bernini", "13_photo_fast"])
def test_a_photograph_needs_nothing_that_is_not_offered(stem):
    flow = read(ROOT / "workflows" / f"{stem}.json")
    loaders = [node for node in flow["nodes"] if re.search("Load", node["type"]) and node["type"] != "LoadImage"]
    assert [node["type"] for node in loaders if not node["properties"].get("models")] == []


def test_form_is_what_the_page_saves(flow):
    assert flow["version"] == 0.4
    ids = [node["id"] for node in flow["nodes"]]
    assert len(set(ids)) == len(ids)
    assert flow["last_node_id"] == max(ids)
    assert flow["last_link_id"] == max(link[0] for link in flow["links"])


def test_links_agree_with_both_of_their_ends(flow):
    nodes = {node["id"]: node for node in flow["nodes"]}
    known = set()
    for link, source, slot, target, place, kind in flow["links"]:
        output, inlet = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"]
        assert inlet["link"] == link
        assert output["type"] == inlet["type"] == kind
        known.add(link)
    named = {inlet["link"] for node in flow["nodes"] for inlet in node["inputs"]} - {None}
    assert named == known


def test_our_nodes_are_as_the_schema_has_them(flow):
    assert ours(flow)
    for node in ours(flow):
        schema = SCHEMA[node["type"]]
        properties = node["properties"]
        assert (properties["cnr_id"], properties["ver"]) == (PROJECT["name"], PROJECT["version"])
        inlets = {inlet["name"]: inlet["type"] for inlet in node["inputs"]}
        assert inlets == {known["name"]: known["type"] for known in schema["inputs"]}
        assert [outlet["type"] for outlet in node["outputs"]] == [known["type"] for known in schema["outputs"]]
        linked = {inlet["name"] for inlet in node["inputs"] if inlet["link"] is not None}
        sockets = {known["name"] for known in schema["inputs"] if known["required"] and known["type"] not in WIDGETS}
        assert sockets <= linked
        known = {known["name"]: known for known in schema["inputs"] if known["type"] in WIDGETS}
        values = dict(node.get("widgets_values_named", {}))
        values.pop("control_after_generate", None)
        assert set(values) == set(known)
        for name, value in values.items():
            low, high = known[name].get("min", value), known[name].get("max", value)
            assert low <= value <= high


def test_widgets_say_the_same_by_place_and_by_name(flow):
    for node in flow["nodes"]:
        assert node.get("widgets_values", []) == list(node.get("widgets_values_named", {}).values()), node["type"]


def test_seeds_are_fixed(flow):
    modes = [node.get("widgets_values_named", {}).get("control_after_generate") for node in flow["nodes"]]
    assert {mode for mode in modes if mode} == {"fixed"}


def test_pictures_come_with_the_pack_or_with_comfyui(flow):
    for node in flow["nodes"]:
        values = node.get("widgets_values_named", {})
        if node["type"] == "ContextAnyoneExamplePicture":
            assert values["picture"] in EXAMPLES
        if node["type"] == "ContextAnyonePersonalLoader":
            assert values["file"] in PEOPLE | {"me.safetensors"}
            assert (values["file"] in PEOPLE) == ("ContextAnyoneMiniatureLoader" in str(flow))
        if node["type"] == "LoadImage":
            assert values["image"] == "example.png"
        if node["type"] == "LoadVideo":  # ComfyUI ships no video: the user's own
            assert values["file"] == "dance.mp4"
        if node["type"] == "ContextAnyoneExamplePose":
            assert values["motion"] in MOTIONS


def test_a_note_says_what_it_is_and_what_to_try(flow):
    notes = [node for node in flow["nodes"] if node["type"] == NOTE]
    assert len(notes) == 1
    text = notes[0]["widgets_values"][0]
    assert text.startswith("# ")
    assert "## Try this" in text
    assert "`" not in text, "the new design of nodes draws code in blue on blue"


def test_models_for_download_are_public_and_in_the_note(flow):
    text = next(node for node in flow["nodes"] if node["type"] == NOTE)["widgets_values"][0]
    offered = [model for node in flow["nodes"] for model in node["properties"].get("models", [])]
    for node in flow["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith(PUBLIC)
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"] in FOLDERS
            assert model["url"] in text
    files = [node for node in flow["nodes"] if re.fullmatch(r"(CLIP|VAE|CLIPVision)Loader", node["type"])]
    assert len(offered) >= len(files)


def test_nothing_lies_on_anything_else(flow):
    assert [node["type"] for node in flow["nodes"] if node["size"][0] < NARROWEST] == []
    boxes = {node["id"]: box(node) for node in flow["nodes"]}
    ids = sorted(boxes)
    assert [(a, b) for a in ids for b in ids if a < b and overlap(boxes[a], boxes[b])] == []
    groups = [corners(*group["bounding"]) for group in flow["groups"]]
    assert [(a, b) for a in groups for b in groups if a < b and overlap(a, b)] == []
    assert all(group["title"] for group in flow["groups"])
    for node in flow["nodes"]:
        holders = [group for group in groups if inside(boxes[node["id"]], group)]
        assert len(holders) == (0 if node["type"] == NOTE else 1), node["type"]


def corners(x, y, width, height):
    return (x, y, x + width, y + height)


def box(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return corners(x, y - TITLE, width, height + TITLE)


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def test_api_form_is_the_same_graph(path, flow):
    nodes = {node["id"]: node for node in flow["nodes"]}
    links = {link[0]: link for link in flow["links"]}
    expected = {}
    for node in flow["nodes"]:
        if node["type"] == NOTE or node["mode"] == BYPASSED:
            continue
        inputs = {name: value for name, value in node.get("widgets_values_named", {}).items() if name in asked(node)}
        for inlet in node["inputs"]:
            if inlet["link"] is not None:
                inputs[inlet["name"]] = origin(nodes, links, inlet["link"])
        expected[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    given = read(path.parent / "api" / path.name)
    assert {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in given.items()} == expected


def asked(node):
    """Names of the widgets that are inputs; a seed's control and an upload button are none."""
    return {inlet["name"] for inlet in node["inputs"]} - {"upload"}


def origin(nodes, links, link):
    """Where a link comes from, through nodes that are switched off."""
    _, source, slot, *_ = links[link]
    node = nodes[source]
    if node["mode"] != BYPASSED:
        return [str(source), slot]
    kind = node["outputs"][slot]["type"]
    return origin(nodes, links, next(inlet["link"] for inlet in node["inputs"] if inlet["type"] == kind))


def test_thumbnail_is_a_small_picture(path):
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 120_000
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 240
