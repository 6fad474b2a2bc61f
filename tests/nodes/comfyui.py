"""Finds the ComfyUI that the tests of the nodes run in, and makes it a folder of its own to work in."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK_FOLDER = "ComfyUI-ContextAnyone"
INSIDE = Path(__file__).parent / "inside"
PREPARE = Path(__file__).parent / "prepare"
BOOT_SECONDS = 180.0  # about ten on a free machine
FILE_SECONDS = 900.0  # one file of checks


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on this machine and the interpreter that has what it needs."""

    root: Path
    python: Path

    def environment(self) -> dict[str, str]:
        """The environment of its processes: ours without what would show it our packages."""
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return kept | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def find() -> ComfyUI | str:
    """The ComfyUI to test in, or the reason why there is none.

    Looked for in this order: COMFYUI_PATH (interpreter: COMFYUI_PYTHON, else its own .venv or venv), the ComfyUI whose
    custom_nodes holds this repository, ~/ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        candidates = [Path(named).expanduser()]
    else:
        inside = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
        candidates = [*inside, Path.home() / "ComfyUI"]
    for root in candidates:
        if (root / "main.py").is_file() and (root / "comfy").is_dir():
            python = _python(root)
            return ComfyUI(root.resolve(), python) if isinstance(python, Path) else python
    looked = ", ".join(str(root) for root in candidates)
    return f"no ComfyUI in {looked}; set COMFYUI_PATH to its folder (and COMFYUI_PYTHON to its interpreter)"


def _python(root: Path) -> Path | str:
    """The interpreter of a ComfyUI, or why it has none."""
    given = os.environ.get("COMFYUI_PYTHON")
    places = [Path(given).expanduser()] if given else []
    places += [root / name / "bin" / "python" for name in (".venv", "venv")]
    places += [root / name / "Scripts" / "python.exe" for name in (".venv", "venv")]
    for place in places:
        if place.is_file():
            return place.absolute()  # never resolved: a venv's python is a link
    return f"{root} has no interpreter in .venv or venv; set COMFYUI_PYTHON to the one that it runs with"


def make_base(base: Path, pack: Path = ROOT) -> Path:
    """Make `base` a base directory of ComfyUI (models, input, ...) and link the pack there; gives the link."""
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name in ("diffusion_models", "text_encoders", "vae", "clip_vision", "loras"):
        (base / "models" / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_FOLDER
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    return link


def arguments(base: Path) -> list[str]:
    """The start options that every process of the tests has."""
    options = ["--cpu", "--disable-api-nodes", "--disable-auto-launch", "--preview-method", "latent2rgb"]
    return [*options, "--base-directory", str(base), "--database-url", "sqlite:///:memory:"]


def run_inside(comfy: ComfyUI, base: Path, *options: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run inside/run.py by ComfyUI's interpreter, with the pack linked into `base`; output ends in `stderr`.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds; it is killed.
    """
    pack = make_base(base)
    command = [str(comfy.python), str(INSIDE / "run.py"), "--comfy", str(comfy.root), "--pack", str(pack), *options]
    return subprocess.run(
        [*command, "--", *arguments(base)],
        cwd=base,
        env=comfy.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


class Inside:
    """Runs files of checks in processes of ComfyUI, each file once, and keeps the results."""

    def __init__(self, comfy: ComfyUI, folder: Path) -> None:
        self._comfy, self._folder = comfy, folder
        self._results: dict[str, dict[str, str | None]] = {}

    def problem(self, file: Path, check: str) -> str | None:
        """None where a check passed, else its traceback or how its process ended."""
        if file.name not in self._results:
            self._results[file.name] = self._run(file)
        results = self._results[file.name]
        for name in (f"{file.name}::{check}", file.name, ""):
            if name in results:
                return results[name]
        return f"{file.name} has no {check}"

    def _run(self, file: Path) -> dict[str, str | None]:
        """The results of a file; the key "" stands for all that are missing."""
        base, out = self._folder / file.stem, self._folder / f"{file.stem}.json"
        make_base(base)
        options = ["--out", str(out), str(file)]
        prepare = PREPARE / file.name.removeprefix("check_")
        if prepare.is_file():
            data = self._folder / f"{file.stem}-data"
            data.mkdir()
            runpy.run_path(str(prepare))["prepare"](data)
            options = ["--data", str(data), *options]
        try:
            done = run_inside(self._comfy, base, *options, timeout=FILE_SECONDS)
            ended = f"ComfyUI's process ended with {done.returncode}:\n{done.stdout[-4000:]}"
        except subprocess.TimeoutExpired as late:
            said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
            ended = f"not done after {FILE_SECONDS:g} s:\n{said[-4000:]}"
        results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        return results | {"": ended}
