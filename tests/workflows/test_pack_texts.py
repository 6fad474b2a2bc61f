"""Help pages and translations: every node, input and output of the frozen schema has its own."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
HELP = ROOT / "web" / "docs"


def definitions(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_and_tooltip_has_its_words(language):
    texts = definitions(language)
    assert list(texts) == list(definitions("en"))
    assert set(texts) == set(SCHEMA)
    for node, schema in SCHEMA.items():
        said = texts[node]
        assert said["display_name"]
        assert said["description"]
        assert set(said.get("inputs", {})) == {known["name"] for known in schema["inputs"]}
        assert set(said["outputs"]) == {str(index) for index in range(len(schema["outputs"]))}
        for entry in (*said.get("inputs", {}).values(), *said["outputs"].values()):
            assert set(entry) == {"name", "tooltip"}
            assert all(entry.values())


def test_english_says_what_the_nodes_say():
    texts = definitions("en")
    sources = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    for node, schema in SCHEMA.items():
        assert texts[node]["display_name"] == schema["display_name"]
        said = texts[node]["outputs"]
        assert [said[str(index)]["name"] for index in range(len(said))] == [
            known["name"] for known in schema["outputs"]
        ]
        assert [entry["name"] for name, entry in texts[node].get("inputs", {}).items() if name != entry["name"]] == []
        assert texts[node]["description"][:40] in sources


def test_chinese_is_chinese():
    for node in definitions("zh").values():
        tooltips = [entry["tooltip"] for entry in (*node.get("inputs", {}).values(), *node["outputs"].values())]
        assert all(re.search("[\u4e00-\u9fff]", text) for text in [node["description"], *tooltips])


@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_every_node_has_its_help_page(node):
    page = (HELP / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {SCHEMA[node]['display_name']}\n")
    for part in ("## Inputs", "## Outputs", "## Tips", "## Errors"):
        assert part in page
    assert not re.search(r"^\|", page, re.MULTILINE), "a table squeezes its text in ComfyUI's narrow panel"
    named = re.findall(r"^- \*\*(\w+)\*\* \(", page, re.MULTILINE)
    assert named == [known["name"] for known in (*SCHEMA[node]["inputs"], *SCHEMA[node]["outputs"])]
    pictures = re.findall(r"!\[[^]]+]\(([^)]+)\)", page)
    assert pictures
    assert all((HELP / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_what_a_tip_calls_advanced_is(node):
    advanced = {known["name"] for known in SCHEMA[node]["inputs"] if known.get("advanced")}
    for line in (HELP / f"{node}.md").read_text(encoding="utf-8").splitlines():
        if "advanced inputs" in line:
            assert set(re.findall(r"\*\*(.+?)\*\*", line)) <= advanced


def test_no_help_page_without_its_node():
    assert {path.stem for path in HELP.glob("*.md")} == set(SCHEMA)
