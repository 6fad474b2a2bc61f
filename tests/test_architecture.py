"""The import rules and limits of docs/ARCHITECTURE.md, checked on the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE, TRAINING, NODES, BENCHMARKS = "contextanyone_core", "training", "nodes", "benchmarks"
EVALUATION, PIPELINE = "evaluation", "data_pipeline"
MAX_LINES = 420
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}

# What each layer may import beside the standard library and itself. Whatever is not here needs a decision.
CORE_LIBRARIES = {"torch", "einops", "safetensors", "numpy", "PIL"}
COMFYUI = {
    *("comfy", "comfy_api", "comfy_extras", "comfy_config", "folder_paths", "node_helpers", "server", "nodes"),
    "latent_preview",
}


class Import(NamedTuple):
    """One imported module, absolute, and where it stands."""

    module: str
    relative: bool
    line: int
    typing_only: bool


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> list[Import]:
    """Every import of a file, those inside functions included; relative ones resolved from the repository's root."""
    typing_only = {
        inner
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    folder = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [Import(name.name, False, node.lineno, node in typing_only) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            for name in node.names:
                module = f"{stem}.{name.name}" if module_file(f"{stem}.{name.name}") else stem
                found.append(Import(module, node.level > 0, node.lineno, node in typing_only))
    return found


def module_file(module: str) -> Path | None:
    """The file of one of our own modules."""
    if top(module) not in (CORE, TRAINING, NODES, BENCHMARKS, EVALUATION, PIPELINE):
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def top(module: str) -> str:
    return module.split(".", 1)[0]


def at(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


OUR_FILES = sources(CORE, TRAINING, NODES, BENCHMARKS, EVALUATION, PIPELINE)


ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
ORDERS = {CORE: "## The order inside the core", TRAINING: "## The order inside training"}


def section(package: str) -> str:
    """What docs/ARCHITECTURE.md says about the order inside a package."""
    return ARCHITECTURE.split(ORDERS[package], 1)[1].split("\n## ", 1)[0]


def rooms(package: str) -> dict[str, int]:
    """Each room of a package and its storey, as docs/ARCHITECTURE.md lists them: 0 is the highest."""
    lines = section(package).split("```")[1].strip().splitlines()
    return {name: storey for storey, line in enumerate(lines) for name in line.split("  ")[0].split(", ")}


def libraries() -> dict[str, set[str]]:
    """The files that may import each library late, as docs/ARCHITECTURE.md lists them."""
    table = section(CORE).split("| library | files |", 1)[1].split("\n\n", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {name: set(files.replace("`", "").split(", ")) for name, files in rows}


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[1]


def package_files(package: str) -> list[Path]:
    """Every file of a package but its own first lines."""
    return [path for path in sources(package) if path.parts[-2:] != (package, "__init__.py")]


def own_imports(path: Path) -> Iterator[tuple[Import, Path]]:
    """What a file imports of its own package, late imports by a module's name included."""
    package = path.relative_to(ROOT).parts[0]
    named = [Import(module, False, line, False) for line, module in module_names(path, package)]
    for found in [*imports(path), *named]:
        target = module_file(found.module)
        if top(found.module) == package and target is not None:
            yield found, target


@pytest.mark.parametrize("package", ORDERS)
def test_every_room_is_listed(package: str):
    found = {room(path) for path in package_files(package)} - {"miniature"}
    assert found == set(rooms(package))


@pytest.mark.parametrize("package", ORDERS)
def test_files_import_only_lower_rooms(package: str):
    storeys, wrong = rooms(package), []
    for path in package_files(package):
        for found, target in own_imports(path):
            if not (room(target) == room(path) or storeys[room(target)] > storeys[room(path)]):
                wrong.append(f"{at(path, found.line)} imports {found.module}")
    assert wrong == []


def test_core_files_import_the_core_relatively():
    wrong = [
        at(path, found.line) for path in package_files(CORE) for found, _ in own_imports(path) if not found.relative
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ORDERS)
def test_no_imports_of_a_room_go_round_in_a_circle(package: str):
    files = package_files(package)
    left = {path: {target for _, target in own_imports(path) if room(target) == room(path)} for path in files}
    while free := [path for path, targets in left.items() if not (targets - {path}) & left.keys()]:
        for path in free:
            del left[path]
    assert sorted(at(path) for path in left) == []


def test_core_imports_no_library_that_is_not_allowed_there():
    listed, wrong = libraries(), []
    plain = CORE_LIBRARIES | {CORE} | set(sys.stdlib_module_names)
    for path in sources(CORE):
        place = path.relative_to(ROOT / CORE).as_posix()
        allowed = plain | {name for name, files in listed.items() if place in files}
        used = [(x.line, x.module) for x in imports(path)] + late_imports(path)
        wrong += [f"{at(path, line)} imports {module}" for line, module in used if top(module) not in allowed]
    assert wrong == []


def late_imports(path: Path) -> list[tuple[int, str]]:
    """Names of library modules that stand in strings, as late imports have them: `"diffusers.hooks"`."""
    return module_names(path, "|".join(libraries()))


def module_names(path: Path, tops: str) -> list[tuple[int, str]]:
    """Strings that are a module's whole name under one of some packages (`a|b`), and their lines."""
    strings = [
        node for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [(node.lineno, node.value) for node in strings if re.fullmatch(rf"({tops})(\.\w+)+", node.value)]


def test_every_named_library_is_used_where_it_is_named():
    named = [(name, ROOT / CORE / file) for name, files in libraries().items() for file in files]
    unused = [at(path) for name, path in named if not re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))]
    assert unused == []


def test_training_and_benchmarks_never_import_nodes_or_comfyui():
    paths = sources(TRAINING, BENCHMARKS, EVALUATION, PIPELINE)
    wrong = [(at(path), x.module) for path in paths for x in imports(path) if top(x.module) in COMFYUI]
    assert wrong == []


def test_nothing_imports_the_benchmarks_the_evaluation_or_the_pipeline():
    outside = {BENCHMARKS, EVALUATION, PIPELINE}
    paths = sources(CORE, TRAINING, NODES, BENCHMARKS, EVALUATION, PIPELINE)
    own = [(path, x.module) for path in paths for x in imports(path)]
    assert [(at(path), name) for path, name in own if top(name) in outside - {path.relative_to(ROOT).parts[0]}] == []


def test_the_pipeline_takes_of_training_the_row_model_two_readers_the_world_and_the_commands():
    allowed = tuple(f"training.{name}" for name in ("data.manifest", "data.video", "settings", "world", "commands"))
    own = [(path, x) for path in sources(PIPELINE) for x in imports(path) if top(x.module) == TRAINING]
    assert own != []
    assert [(at(path, x.line), x.module) for path, x in own if not x.module.startswith(allowed)] == []


def test_the_row_model_imports_nothing_else_of_training():
    """The data pipeline and the evaluation read manifests by it."""
    found = imports(ROOT / TRAINING / "data" / "manifest.py")
    assert [x.module for x in found if top(x.module) == TRAINING] == []


def test_nodes_are_thin():
    wrong = []
    for path in sources(NODES):
        adapter = "_comfy" in path.relative_to(ROOT).parts
        for found in imports(path):
            name = top(found.module)
            absolute_core = name == CORE and not found.relative  # ComfyUI loads the pack by path
            adapters_only = not adapter and (
                name in COMFYUI - {"comfy_api", NODES} or (name == "torch" and not found.typing_only)
            )
            if absolute_core or adapters_only or name == TRAINING:
                wrong.append(f"{at(path, found.line)} imports {found.module}")
    assert wrong == []


def test_files_have_one_idea_and_a_name_that_says_it():
    assert [at(path) for path in OUR_FILES if path.stem in VAGUE_NAMES] == []
    lengths = {at(path): len(path.read_text(encoding="utf-8").splitlines()) for path in OUR_FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_functions_are_short_and_take_few_parameters():
    wrong = []
    for path in OUR_FILES:
        for node in functions(path):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(parameter.arg not in ("self", "cls") for parameter in given)
            if code_lines(node) > MAX_FUNCTION_LINES or count > MAX_PARAMETERS:
                wrong.append(f"{at(path, node.lineno)} {node.name}: {code_lines(node)} lines, {count} parameters")
    assert wrong == []


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0


def test_weights_are_data_never_code():
    wrong = []
    for path in OUR_FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
                if called in ("pickle.load", "pickle.loads", "eval", "exec") or (called == "torch.load" and not safe):
                    wrong.append(f"{at(path, node.lineno)} calls {called}")
    assert wrong == []


def test_files_take_their_names_in_one_module():
    """Whole files, synced, with the mode of the umask, are `atomic_file`'s. Of one argument `replace` is a path's."""
    alone = {"rename", "mkstemp", "chmod", "fsync", "NamedTemporaryFile"}
    wrong = []
    for path in OUR_FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                moves = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
                if (moves or node.func.attr in alone) and path.name != "atomic_file.py":
                    wrong.append(f"{at(path, node.lineno)} calls {node.func.attr}")
    assert wrong == []


def test_opencv_opens_no_file_by_its_name():
    """On Windows it finds none with a letter of another code page (C:/Users/Jörg): pictures are read as bytes."""
    named = ("cv2.imread", "cv2.imwrite", "cv2.imreadmulti", "cv2.imwritemulti")
    calls = [(path, node) for path in OUR_FILES for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert [at(path, node.lineno) for path, node in calls if ast.unparse(node.func) in named] == []


def test_tests_are_no_packages():
    assert [at(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_nothing_is_committed_that_git_ignores_and_no_link():
    """A link, such as one to another checkout's .venv, replaces what lies at its place in every clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    listed = [line.split() for line in _git("ls-files", "--stage")]
    assert [words[-1] for words in listed if words[0] == "120000"] == []
    assert _git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


def _git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
