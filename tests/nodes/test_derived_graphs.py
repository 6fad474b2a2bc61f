"""The apps and blueprints as files: what is made of the graphs today, with every widget that an artist sets."""

import derived_graphs
import pytest
import workflow_files

FILES = derived_graphs.files()


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in FILES])
def test_a_file_is_what_is_made_of_its_graph(path):
    again = f"run {derived_graphs.__file__}"
    assert path.is_file(), again
    assert path.read_text(encoding="utf-8") == derived_graphs.text_of(FILES[path]), again


def test_no_file_is_left_over():
    assert sorted(FILES) == sorted([*workflow_files.apps(), *derived_graphs.SUBGRAPHS.glob("*")])


@pytest.mark.parametrize("stem", derived_graphs.DERIVED)
def test_an_app_shows_what_an_artist_sets(stem):
    graph = derived_graphs.app_of(stem)
    nodes = {node["id"]: node for node in graph["nodes"]}
    shown = [widget for _, widget in graph["extra"]["linearData"]["inputs"]]
    assert {"first", "later", "width", "height"} <= set(shown)
    assert {"picture", "image"} & set(shown)
    assert {"seed", "noise_seed"} & set(shown)
    for node_id, widget in graph["extra"]["linearData"]["inputs"]:
        assert widget in nodes[node_id]["widgets_values_named"]
    assert [nodes[node_id]["type"] for node_id in graph["extra"]["linearData"]["outputs"]] == ["SaveVideo"]


@pytest.mark.parametrize("stem", derived_graphs.DERIVED)
def test_a_blueprint_is_one_node_whose_links_agree_with_both_ends(stem):
    graph = derived_graphs.blueprint_of(stem)
    (outer,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"]
    assert outer["title"] == inner["name"]
    assert [socket["name"] for socket in outer["inputs"]] == [socket["name"] for socket in inner["inputs"]]
    assert [socket["type"] for socket in outer["outputs"]] == ["VIDEO"]
    nodes, known = {node["id"]: node for node in inner["nodes"]}, set()
    for link in inner["links"]:
        source, target = (link[f"{end}_id"] for end in ("origin", "target"))
        slot, place = (link[f"{end}_slot"] for end in ("origin", "target"))
        output = inner["inputs"][slot] if source == derived_graphs.ENTRY else nodes[source]["outputs"][slot]
        inlet = inner["outputs"][place] if target == derived_graphs.EXIT else nodes[target]["inputs"][place]
        assert output["type"] == inlet["type"] == link["type"]
        assert link["id"] in (output["linkIds"] if source == derived_graphs.ENTRY else output["links"])
        assert link["id"] in (inlet["linkIds"] if target == derived_graphs.EXIT else [inlet["link"]])
        known.add(link["id"])
    named = {inlet["link"] for node in inner["nodes"] for inlet in node["inputs"]} - {None}
    assert named <= known
    assert known - named == set(inner["outputs"][0]["linkIds"])
