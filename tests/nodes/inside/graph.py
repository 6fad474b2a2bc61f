"""What the checks use: nodes called one at a time, and whole graphs through ComfyUI's own validation and executor.

run = Session().run({"1": {"class_type": "EmptyImage", "inputs": {...}}, ...}, keep={"image": ("1", 0)})
assert run.ok, run.problem
run.values["image"], run.executed, run.cached, run.previews
"""

from __future__ import annotations

import asyncio
import importlib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import execution
import main as comfy_main
import torch

import nodes


@dataclass(frozen=True)
class Pack:
    """The pack as ComfyUI's loader left it."""

    path: Path
    module: str
    loaded: bool
    wall_seconds: float
    cpu_seconds: float
    messages: list[str]
    new_modules: list[str]
    node_ids: list[str]


PACK = Pack(Path(), "", False, 0.0, 0.0, [], [], [])  # set by run.py
DATA = Path()  # the folder that prepare/<name>.py filled, if there is one; set by run.py


def pack(name: str) -> ModuleType:
    """A module of the pack as ComfyUI sees it, such as pack("contextanyone_core.sampling.flow")."""
    return importlib.import_module(f"{PACK.module}.{name}")


class LackingError(Exception):
    """This ComfyUI has not what a check needs; the check is skipped, and says what."""


def needed(node_id: str) -> None:
    """Skip the check where this ComfyUI has no such node."""
    if node_id not in nodes.NODE_CLASS_MAPPINGS:
        raise LackingError(f"this ComfyUI has no node {node_id}")


def node(node_id: str) -> Any:
    """The class of a node; a V3 one is called as node("ContextAnyoneApply").execute(model=..., ...)."""
    return nodes.NODE_CLASS_MAPPINGS[node_id]


def call(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Call one node of either API with values and give its outputs; nothing is validated and no default filled in."""
    kind = node(node_id)
    with torch.inference_mode():
        if hasattr(kind, "GET_SCHEMA"):
            found = kind.execute(**inputs)
            return tuple(found.args if hasattr(found, "args") else found)
        return tuple(getattr(kind(), kind.FUNCTION)(**inputs))


class Keep:
    """An output node that only remembers what reaches it. Registered for the tests, not part of the pack."""

    CATEGORY = "tests"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "keep"
    kept: dict[str, Any] = {}  # noqa: RUF012 - the executor makes an instance for itself

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"value": ("*",), "name": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):  # noqa: N802
        return True

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")

    def keep(self, value, name):
        Keep.kept[name] = value
        return ()


nodes.NODE_CLASS_MAPPINGS["TestsKeep"] = Keep


@dataclass
class Run:
    """What became of one prompt. `executed` and `cached` are node ids in order, `Keep` left out."""

    node_errors: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    interrupted: bool = False
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    ui: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    previews: int = 0
    events: list[tuple[str, Any, str | None]] = field(default_factory=list, repr=False)

    def told(self, node_id: str) -> dict[str, Any]:
        """What the page was sent as the UI output of a node."""
        sent = [
            data["output"] or {} for event, data, _ in self.events if event == "executed" and data["node"] == node_id
        ]
        return sent[-1] if sent else {}

    @property
    def ok(self) -> bool:
        return not self.node_errors and self.error is None and not self.interrupted

    @property
    def problem(self) -> str:
        """The words that the artist reads: of the refusal before the run, or of the error in it."""
        if self.node_errors:
            found = [error for one in self.node_errors.values() for error in one.get("errors", [one])]
            return "; ".join(f"{error.get('message')}: {error.get('details')}" for error in found)
        if self.interrupted:
            return "interrupted"
        return str(self.error["exception_message"]).strip() if self.error else ""


class Recorder:
    """In the place of the web server: notes the events of a run, and interrupts it at a given step."""

    def __init__(self, interrupt_at: int | None) -> None:
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.sockets_metadata: dict[str, Any] = {}
        self.interrupt_at = interrupt_at
        self.executing: list[str] = []
        self.events: list[tuple[str, Any, str | None]] = []
        self.steps = 0
        self.previews = 0

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        if isinstance(event, str):
            self.events.append((event, data, sid))
        if event == "executing" and data["node"] is not None:
            self.executing.append(data["node"])
        elif event == "progress":
            self.steps += 1
            if self.steps == self.interrupt_at:
                nodes.interrupt_processing()
        elif not isinstance(event, str):
            self.previews += 1


class Session:
    """One executor with its cache: runs of one session re-use each other's nodes as runs of one server do."""

    def __init__(self) -> None:
        none = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        self._executor = execution.PromptExecutor(Recorder(None), execution.CacheType.CLASSIC, none)

    def run(
        self, prompt: dict[str, Any], keep: dict[str, tuple[str, int]] | None = None, interrupt_at: int | None = None
    ) -> Run:
        """Validate and execute a prompt in API form.

        `keep` names outputs (node id, slot) whose values are wanted; `interrupt_at` presses Stop at that progress step.
        """
        graph = {node_id: {**one, "inputs": dict(one["inputs"])} for node_id, one in prompt.items()}
        for name, (node_id, slot) in (keep or {}).items():
            inputs = {"value": [node_id, slot], "name": name}
            graph[f"keep-{name}"] = {"class_type": "TestsKeep", "inputs": inputs}
        prompt_id = str(uuid.uuid4())
        valid, refused, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, graph, None))
        if not valid or node_errors:
            return Run(node_errors=node_errors or {"prompt": refused})
        recorder = Recorder(interrupt_at)
        comfy_main.hijack_progress(recorder)
        self._executor.server = recorder
        Keep.kept = {}
        self._executor.execute(graph, prompt_id, {"client_id": "tests"}, outputs)
        return self._read(recorder, set(graph) - set(prompt))

    def _read(self, recorder: Recorder, kept: set[str]) -> Run:
        messages: dict[str, Any] = dict(self._executor.status_messages)
        return Run(
            error=messages.get("execution_error"),
            interrupted="execution_interrupted" in messages,
            executed=[node_id for node_id in recorder.executing if node_id not in kept],
            cached=[node_id for node_id in messages["execution_cached"]["nodes"] if node_id not in kept],
            values=dict(Keep.kept),
            ui=self._executor.history_result["outputs"],
            steps=recorder.steps,
            previews=recorder.previews,
            events=recorder.events,
        )
