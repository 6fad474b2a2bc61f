"""Boots ComfyUI in this process, loads the pack as ComfyUI does, runs checks, writes what became of them.

Started by test_inside.py with ComfyUI's own interpreter; that has neither pytest nor what this repository installs:

    python run.py --comfy FOLDER --pack LINK --out results.json check_a.py check_b.py -- --cpu ...

A check is a function `check_<what>()` of one of the files; an exception is its failure. The results are
{"check_file.py::check_name": null, the traceback, or "skipped: " and what this ComfyUI lacks}. What stands behind `--`
goes to ComfyUI's command line.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
SKIPPED = "skipped: "
"""How the result of a check begins that this ComfyUI cannot run."""


def main() -> int:
    own, for_comfy = _split(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--pack", type=Path, required=True, help="the pack as it lies in custom_nodes, a link is fine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="what prepare/<name>.py wrote for the checks")
    parser.add_argument("--schema", action="store_true", help="write the nodes' schema to --out, no checks")
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args(own)
    boot(given.comfy.resolve(), for_comfy)
    import graph

    graph.PACK = load_pack(str(given.pack))
    graph.DATA = given.data or Path()
    if given.schema:
        import schema

        write(given.out, schema.snapshot())
        return 0
    results: dict[str, str | None] = {}
    for file in given.files:
        results |= run_checks(file)
        write(given.out, results)
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def boot(comfy: Path, arguments: list[str]) -> None:
    """ComfyUI's own start without its web server: its main.py is imported, its nodes are registered."""
    sys.path[:] = [str(comfy), *(entry for entry in sys.path if Path(entry or ".").resolve() != HERE), str(HERE)]
    sys.argv = [str(comfy / "main.py"), "--disable-all-custom-nodes", *arguments]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import main as comfy_main

    comfy_main.start_comfyui()


def load_pack(path: str):
    """Load the pack by ComfyUI's own loader and note what that did: time, modules, log records, nodes."""
    import graph

    import nodes

    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    modules, before = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        wall, cpu = time.perf_counter(), time.thread_time()
        loaded = asyncio.run(nodes.load_custom_node(path, before, module_parent="custom_nodes"))
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    logging.getLogger().removeHandler(handler)
    return graph.Pack(
        path=Path(path),
        module=path.replace(".", "_x_"),
        loaded=loaded,
        wall_seconds=wall,
        cpu_seconds=cpu,
        messages=[record.getMessage() for record in records] + [str(warning.message) for warning in warned],
        new_modules=sorted(set(sys.modules) - modules),
        node_ids=[name for name in nodes.NODE_CLASS_MAPPINGS if name not in before],
    )


def run_checks(file: Path) -> dict[str, str | None]:
    """Run every `check_*` of a file in the order in which they stand there."""
    from graph import LackingError

    try:
        module = import_file(file)
    except BaseException:
        return {file.name: traceback.format_exc()}
    results: dict[str, str | None] = {}
    for name in [name for name in vars(module) if name.startswith("check_")]:
        started = time.perf_counter()
        try:
            getattr(module, name)()
            results[f"{file.name}::{name}"] = None
        except LackingError as lacking:
            results[f"{file.name}::{name}"] = f"{SKIPPED}{lacking}"
        except Exception:
            results[f"{file.name}::{name}"] = traceback.format_exc()
        outcome = "did not pass" if results[f"{file.name}::{name}"] else "passed"
        logging.info("%s %s %s in %.1f s", file.name, name, outcome, time.perf_counter() - started)
    return results


def import_file(file: Path) -> ModuleType:
    """A file of checks as a module, its bare comparisons made to say both sides where they fail."""
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    sys.modules[file.stem] = module
    tree = BothSides().visit(ast.parse(file.read_text(encoding="utf-8"), str(file)))
    exec(compile(ast.fix_missing_locations(tree), str(file), "exec"), vars(module))
    return module


class BothSides(ast.NodeTransformer):
    """`assert a == b` becomes `assert a == b, "repr(a) == repr(b)"`, shortened; asserts with a message stay."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        if node.msg is None and isinstance(node.test, ast.Compare):
            sides = [ast.unparse(side) for side in (node.test.left, *node.test.comparators)]
            values = ", ".join(f"repr({side})[:2000]" for side in sides)
            node.msg = ast.parse(f"' | '.join([{values}])", mode="eval").body
        return node


def write(path: Path, value: object) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # ComfyUI's worker threads do not end by themselves
