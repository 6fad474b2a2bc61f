"""The house's order, held by reading the sources: nodes -> contextanyone_core <- training <- benchmarks."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CORE, TRAINING, NODES, BENCHMARKS = "contextanyone_core", "training", "nodes", "benchmarks"
MAX_LINES = 420
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}

# From low to high: a file imports only files named before it. A new file gets its place here.
ORDER = [
    *(
        "errors",
        "sizes",
        "config",
        "precision",
        "devices",
        "rope",
        "attention",
        "blocks",
        "transformer",
        "flow",
        "guidance",
        "reading",
        "losses",
        "keymap",
    ),
    *("weights/tensors", "weights/safetensors_file", "weights/torch_file", "weights/gguf_file", "weights/container"),
    *("weights/naming", "weights/recognition", "weights/inferred", "weights/source", "weights/writer"),
    *(
        "checkpoint",
        "lora",
        "starting",
        "pictures",
        "conditioning",
        "prompts",
        "kinds",
        "parts",
        "execution",
        "memory",
        "video",
        "contact",
        "familiarity",
    ),
    *(
        "hosts/loading",
        "hosts/vae",
        "hosts/text",
        "hosts/image",
        "hosts/schedulers",
        "hosts/expected",
        "conversion",
        "hosts/kernels",
        "hosts/offload",
        "hosts/lent",
        "hosts/step_cache",
    ),
    *(
        "budget",
        "compiled",
        "assembly",
        "pipeline",
        "hosts/vace",
        "cli_options",
        "cli_files",
        "cli_clips",
        "cli_inspect",
        "cli_init",
        "cli_convert",
        "cli_generate_options",
        "cli_processes",
        "cli_record",
        "cli_generate",
        "cli",
    ),
]

# What each layer may import beside the standard library and itself. Whatever is not here needs a decision.
CORE_LIBRARIES = {"torch", "safetensors", "numpy", "PIL"}
CLI_LIBRARIES = {"imageio_ffmpeg", "imageio", "tqdm"}
HOST_LIBRARIES = {"diffusers", "transformers", "sentencepiece", "ftfy"}
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
    if top(module) not in (CORE, TRAINING, NODES, BENCHMARKS):
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def top(module: str) -> str:
    return module.split(".", 1)[0]


def place(path: Path) -> str:
    return path.relative_to(ROOT / CORE).with_suffix("").as_posix()


def at(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


OUR_FILES = sources(CORE, TRAINING, NODES, BENCHMARKS)


def test_every_core_file_has_its_place():
    found = {place(path) for path in sources(CORE) if path.name != "__init__.py"}
    assert found - set(ORDER) == set(), "give them a place in ORDER of this test"
    assert set(ORDER) - found == set(), "these files are gone"


def test_core_files_import_only_lower_ones_and_relatively():
    wrong = []
    for path in (ROOT / CORE / f"{name}.py" for name in ORDER):
        lower = ORDER[: ORDER.index(place(path))]
        for found in imports(path):
            if top(found.module) == CORE:
                target = module_file(found.module)
                if not found.relative or target is None or place(target) not in lower:
                    wrong.append(f"{at(path, found.line)} imports {found.module}")
    assert wrong == []


def test_core_imports_no_library_that_is_not_allowed_there():
    wrong = []
    for path in sources(CORE):
        allowed = CORE_LIBRARIES | {CORE} | set(sys.stdlib_module_names)
        allowed |= HOST_LIBRARIES if path.parent.name == "hosts" else set()
        allowed |= CLI_LIBRARIES if path.stem == "video" or path.stem.startswith("cli") else set()
        wrong += [f"{at(path, x.line)} imports {x.module}" for x in imports(path) if top(x.module) not in allowed]
    assert wrong == []


def test_training_and_benchmarks_never_import_nodes_or_comfyui():
    paths = sources(TRAINING, BENCHMARKS)
    wrong = [(at(path), x.module) for path in paths for x in imports(path) if top(x.module) in COMFYUI]
    assert wrong == []


def test_nothing_imports_the_benchmarks():
    paths = sources(CORE, TRAINING, NODES)
    assert [(at(path), x.module) for path in paths for x in imports(path) if top(x.module) == BENCHMARKS] == []


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


def test_tests_are_no_packages():
    assert [at(path) for path in (ROOT / "tests").rglob("__init__.py")] == []
