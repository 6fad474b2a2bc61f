"""One ComfyUI for the tests of the nodes: found or skipped, started once, its folders in a temporary place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # the modules beside this file: comfyui, inside_results, ...

import comfyui
import page
from comfyui_server import Server


@pytest.fixture(scope="session")
def comfy() -> comfyui.ComfyUI:
    """The ComfyUI of this machine; without one the test is skipped and says where it was looked for."""
    found = comfyui.find()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def inside(comfy: comfyui.ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> comfyui.Inside:
    """Results of the checks in inside/; each file is run when the first result of it is asked for."""
    return comfyui.Inside(comfy, tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="session")
def server(comfy: comfyui.ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the pack, one for all tests; its folders are empty but for the pack."""
    started = Server(comfy, tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium; its driver's event loop ends with the file of tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    path = page.find_chromium()
    if path is None:
        pytest.skip(f"none of {', '.join(page.BROWSERS)} is on PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=page.SWITCHES)
        yield browser
        browser.close()
