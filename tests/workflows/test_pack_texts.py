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


def page_of(node, language):
    """ComfyUI's page asks for `<node>/<language>.md` and falls back to `<node>.md`, the English one."""
    return HELP / (f"{node}.md" if language == "en" else f"{node}/{language}.md")


HEADINGS = {"en": ["Inputs", "Outputs", "Tips", "Errors"], "zh": ["输入", "输出", "使用提示", "报错"]}
FLAGS = {"en": ("advanced", "optional"), "zh": ("高级", "可选")}
BOLD = re.compile(r"\*\*(.+?)\*\*")


def row(language, known, said):
    """The line of an input or output: its name, kind and default, and the words of its tooltip."""
    advanced, optional = FLAGS[language]
    what = [known["type"]]
    what += [advanced] * known.get("advanced", False) + [optional] * (not known.get("required", True))
    if known.get("default", "") != "":
        what.append(f"`{known['default']}`")
    if language == "en":
        return f"- **{said['name']}** ({', '.join(what)}): {said['tooltip']}"
    what.insert(0, known["name"])  # which errors say
    return f"- **{said['name']}**（{'，'.join(what)}）：{said['tooltip']}"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_every_node_has_its_help_page(node, language):
    page, texts, schema = page_of(node, language).read_text(encoding="utf-8"), definitions(language)[node], SCHEMA[node]
    assert page.startswith(f"# {texts['display_name']}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == HEADINGS[language]
    assert not re.search(r"^\|", page, re.MULTILINE), "a table squeezes its text in ComfyUI's narrow panel"
    sections = page.split("\n## ")
    inputs = [row(language, known, texts["inputs"][known["name"]]) for known in schema["inputs"]]
    outputs = [row(language, known, texts["outputs"][str(at)]) for at, known in enumerate(schema["outputs"])]
    assert [line for line in sections[1].splitlines() if line.startswith("-")] == inputs
    assert [line for line in sections[2].splitlines() if line.startswith("-")] == outputs
    pictures = re.findall(r"!\[[^]]+]\(([^)]+)\)", page)
    assert pictures
    assert all((HELP / picture).is_file() for picture in pictures), "ComfyUI resolves them from web/docs"


def facts(line):
    """What a line says in any language: is it an item, and its addresses, code and numbers."""
    addresses = re.findall(r"https?://[^)\s]+", line)
    return (
        line.startswith("- "),
        addresses,
        sorted(re.findall("`[^`]+`", line)),
        sorted(re.findall(r"\d+(?:\.\d+)?", line)),
    )


def names(node, language):
    """Names of a node's outputs and inputs as they are shown, by their English ones."""
    said = definitions(language)[node]
    outputs = {known["name"]: said["outputs"][str(at)]["name"] for at, known in enumerate(SCHEMA[node]["outputs"])}
    return outputs | {name: entry["name"] for name, entry in said.get("inputs", {}).items()}


@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_both_languages_say_the_same(node):
    english, chinese = (page_of(node, language).read_text(encoding="utf-8").splitlines() for language in LANGUAGES)
    assert [facts(line) for line in chinese] == [facts(line) for line in english]
    shown = {name: word for other in (*SCHEMA, node) for name, word in names(other, "zh").items()}
    ours = {*shown, *(word for other in SCHEMA for word in names(other, "zh").values())}
    told = english.index("## Tips")  # a bold name is an input's or output's as the page shows it
    for line_en, line_zh in zip(english[told:], chinese[told:], strict=True):
        wanted = [shown[name] for name in BOLD.findall(line_en) if name in shown]
        assert sorted(name for name in BOLD.findall(line_zh) if name in ours) == sorted(wanted)


@pytest.mark.parametrize("node", sorted(SCHEMA))
def test_what_a_tip_calls_advanced_is(node):
    advanced = {known["name"] for known in SCHEMA[node]["inputs"] if known.get("advanced")}
    for line in page_of(node, "en").read_text(encoding="utf-8").splitlines():
        if "advanced inputs" in line:
            assert set(BOLD.findall(line)) <= advanced


def test_no_help_page_without_its_node():
    pages = {page_of(node, language) for node in SCHEMA for language in LANGUAGES}
    assert set(HELP.rglob("*.md")) == pages
