"""The documentation is true: symbols import, tests and links exist, commands are accepted, lists are complete."""

import ast
import importlib
import json
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel

from contextanyone_core.cli.generate import read_request
from training import config, settings
from training.parts import manifest, transformer

ROOT = Path(__file__).resolve().parents[1]
PAPER_MAP = ROOT / "docs" / "PAPER_MAP.md"
PACKAGES = ("contextanyone_core", "training", "evaluation")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / ".github" / "SECURITY.md"])
NAMES = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]
SYMBOL = re.compile(rf"`((?:{'|'.join((*PACKAGES, 'data_pipeline'))})\.[\w.]+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headings and rules left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip(" |") for cell in cells] for cells in lines]


def module_of(symbol: str) -> str:
    """The longest leading part of a dotted name that is a file of ours."""
    parts = symbol.split(".")
    for end in range(len(parts), 0, -1):
        if (ROOT.joinpath(*parts[:end])).with_suffix(".py").is_file():
            return ".".join(parts[:end])
    raise AssertionError(f"{symbol} is in no file")


def resolves(symbol: str) -> bool:
    module = module_of(symbol)
    found: object = importlib.import_module(module)
    for name in symbol.removeprefix(module).strip(".").split("."):
        fields = found.model_fields if isinstance(found, type) and issubclass(found, BaseModel) else {}
        named = {**fields, **getattr(found, "__annotations__", {})}
        if not hasattr(found, name) and name not in named:
            return False
        found = getattr(found, name, None)
    return True


@cache
def names_in(name: str) -> set[str]:
    tree = ast.parse(read(name))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_symbol_of_the_map_imports():
    symbols = set(SYMBOL.findall(PAPER_MAP.read_text(encoding="utf-8")))
    assert len(symbols) > 30
    assert [symbol for symbol in sorted(symbols) if not resolves(symbol)] == []


def test_every_test_of_the_map_exists():
    named = set(TEST.findall(PAPER_MAP.read_text(encoding="utf-8")))
    assert len(named) > 30
    assert [f"{file}::{test}" for file, test in sorted(named) if test not in names_in(file)] == []


def test_every_row_of_the_map_has_a_place_and_a_test_or_says_not_yet():
    wrong = []
    for cells in rows(PAPER_MAP.read_text(encoding="utf-8")):
        line = " | ".join(cells)
        heading = cells[0].startswith("**") or cells[0] in ("claim", "open")
        if not heading and "not yet (" not in line and not (SYMBOL.search(line) and TEST.search(line)):
            wrong.append(line)
    assert wrong == []


def test_every_paper_comment_has_its_row():
    """As many rows name a symbol of a file as the file has comments; rows may be more."""
    lines = PAPER_MAP.read_text(encoding="utf-8").splitlines()
    named = Counter(module for line in lines for module in {module_of(symbol) for symbol in SYMBOL.findall(line)})
    missing = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        comments = len(re.findall(r"\bPaper: ", path.read_text(encoding="utf-8")))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if named[module] < comments:
            missing.append(f"{module}: {comments} comments, {named[module]} rows")
    assert missing == []


@pytest.mark.parametrize("document", NAMES)
def test_local_links_lead_somewhere(document):
    folder, broken = (ROOT / document).parent, []
    for link in LINK.findall(read(document)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = (folder / target) if target else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", NAMES)
def test_make_targets_and_scripts_exist(document):
    text = read(document)
    code = "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z][a-z-]*)", code, re.MULTILINE)) - targets == set()
    files = re.findall(r"(training/[\w/-]+\.(?:py|yaml)|tests/[\w/]+\.py)", code)
    assert [file for file in files if not (ROOT / file).is_file()] == []


def commands(text: str) -> list[list[str]]:
    """The words of every `contextanyone` command in the code blocks."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines() if line.startswith("contextanyone ")]


def test_the_readmes_commands_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = read("README.md")
    for name in ("me.png", "front.png", "side.png"):
        Image.new("RGB", (32, 32)).save(name)
    line = next(found for found in re.findall(r"`(\{.*\})`", readme))
    assert set(json.loads(line)) == {"first", "later", "out", "seed"}
    Path("clips.jsonl").write_text(f"{line}\n")
    Path("clips").mkdir()
    Path("assets").symlink_to(ROOT / "assets")  # the README's commands run in the checkout
    asked = [words[2:] for words in commands(readme) if words[1] == "generate"]
    assert len(asked) >= 5
    made = [len(read_request(words).clips) for words in asked]
    assert max(made) == 2


def test_the_readmes_python_names_what_exists():
    block = re.search(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    assert block is not None
    for node in ast.walk(ast.parse(block[1])):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_readme_starts_with_a_command_and_stays_short():
    lines = read("README.md").splitlines()
    assert any(line.startswith("make demo") for line in lines[:15])
    assert len(lines) < 150
    assert [lines.count(f"<!-- metrics:{mark} -->") for mark in ("start", "end")] == [1, 1]


def test_the_documents_name_the_limits_that_the_architecture_test_holds():
    assert len(read("docs/ARCHITECTURE.md").splitlines()) < 240
    rules = architecture_rules()
    for document in ("docs/ARCHITECTURE.md", "CONTRIBUTING.md"):
        said = " ".join(read(document).split())
        for number, unit in (("MAX_LINES", "lines"), ("MAX_FUNCTION_LINES", "lines"), ("MAX_PARAMETERS", "parameters")):
            assert f"{rules[number]} {unit}" in said, (document, number)


def architecture_rules() -> dict[str, object]:
    """The constants at the top of tests/test_architecture.py."""
    tree = ast.parse(read("tests/test_architecture.py"))
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if isinstance(value, ast.Constant):
                found[name] = value.value
    return found


def test_training_names_every_setting_of_a_run_and_of_the_transformer_and_every_preset():
    text = read("docs/TRAINING_SETTINGS.md")
    sections = {"run": config.RunSettings, "optim": config.OptimSettings, "init": config.InitSettings}
    fields = {section: dict(model.model_fields) for section, model in sections.items()}
    fields["part"] = transformer.Settings.model_fields | manifest.Settings.model_fields
    for section, model_fields in fields.items():
        known = {f"{section}.{field.alias or name}" for name, field in model_fields.items()}
        named = set(re.findall(rf"`({section}\.\w+)`", text))
        assert named - known == set()
        assert known - named == set()
    pages = "".join(read(f"docs/{name}.md") for name in ("TRAINING", "MINIATURE", "PERSONAL_TRAINING"))
    assert [path.name for path in settings.presets() if path.name not in pages] == []


def test_training_starts_with_the_commands_and_leads_to_every_page_about_it():
    text = read("docs/TRAINING.md")
    assert len(text.splitlines()) < 200
    first = re.findall(r"```\n(.*?)```", text, re.DOTALL)[0].splitlines()
    scripts = [re.search(r"contextanyone \w+|training/\w+\.py", line) for line in first]
    assert [script and script[0] for script in scripts] == [
        "contextanyone init",
        *(f"training/{name}.py" for name in ("make_manifest", "cache", "train", "export")),
    ]
    pages = {path.name for path in (ROOT / "docs").glob("*TRAINING*.md")} - {"TRAINING.md"}
    assert pages - set(LINK.findall(text)) == set()


def test_what_a_message_names_of_the_training_page_is_there():
    named = re.search(r'docs/TRAINING\.md, "([^"]+)"', read("training/commands.py"))
    assert named is not None
    assert f"| {named[1]} |" in read("docs/TRAINING.md")


CITED = re.compile(r"(?<![\w*/.-])((?:[\w-]+/)*[A-Z][\w-]*\.md)\b|\b([A-Z]{4,}) \d\b(?!\.)")
"""A document by its file name, or by a name in capitals with the number of a section."""


def cited_documents(text: str) -> set[str]:
    return {file or f"{name}.md" for file, name in CITED.findall(text)}


def test_every_document_that_is_cited_exists():
    documents = [path for path in ROOT.rglob("*.md") if not {".venv", ".git", "runs"} & set(path.parts)]
    names = {path.name for path in documents} | {path.relative_to(ROOT).as_posix() for path in documents}
    code = [path for folder in (*PACKAGES, "nodes", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    code += (ROOT / "training").rglob("*.yaml")
    missing = [
        f"{path.relative_to(ROOT)} cites {cited}"
        for path in [*code, *DOCUMENTS]
        for cited in sorted(cited_documents(path.read_text(encoding="utf-8")) - names)
    ]
    assert missing == []


def test_a_citation_is_found():
    assert cited_documents('"""Blocks (DESIGN 1), see docs/SPEED.md and [this](../PLAN.md)."""') >= {
        "DESIGN.md",
        "docs/SPEED.md",
    }
