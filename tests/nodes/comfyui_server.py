"""A real ComfyUI server with the pack in it, and what the tests ask of it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui import BOOT_SECONDS, ComfyUI, arguments, make_base

RUN_SECONDS = 600.0  # one prompt; the miniature takes about twenty on two free cores


class RefusedError(AssertionError):
    """POST /prompt answered that the prompt is not valid; `answer` is what it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=1)[:4000])
        self.answer = answer


@dataclass(frozen=True)
class Finished:
    """An entry of the history: how a prompt ended and which files it left."""

    prompt_id: str
    status: str
    messages: list[tuple[str, dict[str, Any]]]
    outputs: dict[str, Any] = field(repr=False)

    @property
    def interrupted(self) -> bool:
        return any(name == "execution_interrupted" for name, _ in self.messages)

    @property
    def error(self) -> str:
        """Node and message of the error, empty without one."""
        found = [data for name, data in self.messages if name == "execution_error"]
        return f"{found[0]['node_type']}: {found[0]['exception_message'].strip()}" if found else ""

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that did not have to run."""
        return {node for name, data in self.messages if name == "execution_cached" for node in data["nodes"]}

    @property
    def seconds(self) -> float:
        """From the start of execution to its end, by the server's clock."""
        stamps = [data["timestamp"] for _, data in self.messages]
        return (max(stamps) - min(stamps)) / 1000.0

    def files(self) -> list[dict[str, str]]:
        """Every saved file: filename, subfolder, type."""
        groups = [group for one in self.outputs.values() for group in one.values() if isinstance(group, list)]
        return [item for group in groups for item in group if isinstance(item, dict) and "filename" in item]


class Server:
    """A ComfyUI server of its own folder. Start it with `start`; `stop` ends it with all that it started.

    `more` is put behind the start options that every process of the tests has.
    """

    def __init__(self, comfy: ComfyUI, base: Path, *more: str) -> None:
        self.base = base
        self.log = base / "server.log"
        make_base(base)
        example = comfy.root / "input" / "example.png"  # the picture that ComfyUI ships
        if example.is_file():
            shutil.copy(example, base / "input")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = ["--listen", "127.0.0.1", "--port", str(port), *arguments(base), *more]
        self._command = [str(comfy.python), str(comfy.root / "main.py"), *options]
        self._comfy = comfy
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended, or does not answer in time; with the end of its log.
        """
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.base,
                env=self._comfy.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self.get("/queue")
                return
            time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.said()}")

    def stop(self) -> None:
        """End the process group that `start` made."""
        if self._process is None:
            return
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, wanted)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                break

    def said(self, characters: int = 4000) -> str:
        """The end of the server's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def request(self, path: str, body: Any = None, method: str | None = None) -> bytes:
        """The answer's bytes; a body is sent as JSON by POST.

        Raises:
            urllib.error.HTTPError: any status that is no success.
        """
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """The JSON that a path gives."""
        return json.loads(self.request(path))

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> str:
        """POST a prompt in API form; its id. `workflow` is what the page would store in saved files.

        Raises:
            RefusedError: it is not valid.
        """
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = {"prompt": prompt, "client_id": str(uuid.uuid4()), "extra_data": extra}
        try:
            return json.loads(self.request("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise RefusedError(json.loads(refused.read())) from None

    def wait(self, prompt_id: str, timeout: float = RUN_SECONDS) -> Finished:
        """Wait until a prompt has ended in any way.

        Raises:
            TimeoutError: it has not.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                status = entry["status"]
                messages = [(name, data) for name, data in status["messages"]]
                return Finished(prompt_id, status["status_str"], messages, entry["outputs"])
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} is not done after {timeout:g} s:\n{self.said()}")

    def run(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> Finished:
        """Queue a prompt and wait for it."""
        return self.wait(self.queue(prompt, workflow))

    def interrupt(self, prompt_id: str) -> None:
        """Press Stop while the prompt runs."""
        self.request("/interrupt", {"prompt_id": prompt_id})

    def interrupt_when_running(self, prompt_id: str) -> None:
        """Press Stop as soon as the prompt has left the queue."""
        while any(item[1] == prompt_id for item in self.get("/queue")["queue_pending"]):
            time.sleep(0.05)
        self.interrupt(prompt_id)

    def wait_for_log(self, pattern: str, start: int, timeout: float = RUN_SECONDS) -> None:
        """Wait until the log holds a match of `pattern` behind byte `start`.

        Raises:
            TimeoutError: it does not.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if re.search(pattern.encode(), self.log.read_bytes()[start:]):
                return
            time.sleep(0.05)
        raise TimeoutError(f"{pattern!r} did not appear in the log:\n{self.said()}")

    def forget(self) -> None:
        """Empty the cache of node outputs and unload the models, so that the next run does everything."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def path(self, file: dict[str, str]) -> Path:
        """Where a saved file lies."""
        return self.base / file["type"] / file["subfolder"] / file["filename"]

    def set(self, settings: dict[str, Any]) -> None:
        """Change settings of the page, such as {"Comfy.VueNodes.Enabled": True}."""
        self.request("/settings", settings)
