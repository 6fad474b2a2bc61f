"""What is installed: the core alone. The trainer, the benchmarks and the nodes run from the repository."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_namespace_packages

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "__init__.py")
FOLDERS = ("contextanyone_core", "training", "benchmarks", "nodes", "tests")
CODE = ("contextanyone_core", "training", "nodes", "evaluation", "data_pipeline")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_core_alone_is_packaged():
    settings = project()["tool"]["setuptools"]
    found = find_namespace_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert {name.split(".")[0] for name in found} == {"contextanyone_core"}
    assert {"contextanyone_core", "contextanyone_core.model", "contextanyone_core.cli"} <= set(found)


def test_pip_commands_install_a_clone_or_packages_of_the_registry():
    """The registry has no contextanyone: an extra is named after a folder, `-e ".[pose]"`, and exists."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    paths += [path for name in CODE for path in (ROOT / name).rglob("*.py")]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert [name for name, text in texts.items() if re.search(r"install [^`\n]*\bcontextanyone\[", text)] == []
    named = re.findall(r'pip install [^\n`"]*-e "\S*\[(\S+)\]"', "\n".join(texts.values()))
    extras = {extra for names in named for extra in names.split(",")}
    assert {"cli", "pose", "train"} <= extras
    assert extras - set(project()["project"]["optional-dependencies"]) == set()


@pytest.mark.slow
def test_a_wheel_holds_the_core_alone(tmp_path: Path):
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, tmp_path / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path / "wheels", tmp_path], check=True, timeout=300)
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"contextanyone_core"}
    assert {Path("contextanyone_core/py.typed"), Path("contextanyone_core/miniature/transformer.safetensors")} <= names
