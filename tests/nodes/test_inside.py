"""The checks in inside/, run in a process of ComfyUI's own interpreter and listed here one by one.

A new check is a function `check_<what>()` in a file inside/check_<about>.py, with plain asserts; graph.py there runs
nodes and graphs. What a file needs from our own interpreter (the headless pipeline's numbers) is written by
prepare/<about>.py: a function `prepare(folder)`; the checks find it in graph.DATA.
"""

import ast

import comfyui
import pytest

FILES = sorted(comfyui.INSIDE.glob("check_*.py"))


def checks(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]


SKIPPED = "skipped: "  # as inside/run.py begins what this ComfyUI lacks
SLOW = {"check_compiler", "check_from_videos"}  # minutes of tracing, or of all commands one after the other
CHECKS = [
    pytest.param(file, name, id=f"{file.stem}::{name}", marks=[pytest.mark.nightly] if file.stem in SLOW else [])
    for file in FILES
    for name in checks(file)
]


@pytest.mark.comfy
@pytest.mark.parametrize(("file", "check"), CHECKS)
def test_inside_comfyui(inside, file, check):
    problem = inside.problem(file, check)
    if problem is not None and problem.startswith(SKIPPED):
        pytest.skip(problem.removeprefix(SKIPPED))
    if problem is not None:
        pytest.fail(problem, pytrace=False)


def test_a_file_of_checks_is_found():
    assert "check_harness" in {file.stem for file in FILES}
