"""The same work on Ray Data: one machine, or a cluster whose machines share the output folder and the repository."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contextanyone_core.errors import MissingDependencyError
from data_pipeline.engine.progress import Progress
from data_pipeline.engine.work import Done, Failed, Job, died, remove_remains, run_source
from data_pipeline.pixels.decode import prepare_process

_STORE = 200 << 20  # bytes of Ray's object store: rows have no pixels
_ROOT = Path(__file__).resolve().parents[2]
_SOURCES_A_TASK = 16


class _Worker:
    """An actor: a source's name in, its outcome out as JSON. Everything else goes by the parts on disk."""

    def __init__(self, job: Job) -> None:
        prepare_process()
        self._job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return {"outcome": packed(self._tried(str(row["item"])))}

    def _tried(self, source: str) -> Done | Failed:
        """Ray starts a dead actor and its tasks again without end: a file for each attempt ends that."""
        tries = self._job.root / "tries"
        tries.mkdir(exist_ok=True)
        marks = [tries / f"{source}.{number}" for number in range(self._job.retries + 1)]
        mark = next((path for path in marks if not path.exists()), None)
        if mark is None:
            outcome: Done | Failed = died(self._job, source)
        else:
            mark.touch()
            outcome = run_source(self._job, source)
        for path in marks:
            path.unlink(missing_ok=True)
        return outcome


def run_ray(job: Job, names: Sequence[str], workers: int, progress: Progress) -> Generator[Done | Failed]:
    """As `run_local`, by actors of Ray Data; with a GPU for each where the chain needs one.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise MissingDependencyError(
            '--engine ray needs Ray Data, which is not installed. Run: pip install -e ".[ray]"'
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    progress.begin()
    remove_remains(job, set(names))
    started = not ray.is_initialized()
    if started:
        alone = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "object_store_memory": _STORE}
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}}
        ray.init(include_dashboard=False, log_to_driver=False, runtime_env=environment, **alone)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        blocks = max(1, -(-len(names) // _SOURCES_A_TASK))
        outcomes = ray.data.from_items(list(names), override_num_blocks=blocks).map(
            _Worker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.5,
            num_gpus=1 if any(stage.gpu for stage in job.stages) else 0,
        )
        for row in outcomes.iter_rows():
            outcome = unpacked(row["outcome"])
            progress.add(outcome)
            yield outcome
    finally:
        if started:
            ray.shutdown()


def packed(outcome: Done | Failed) -> str:
    """An outcome as JSON, which a column of Ray Data can hold."""
    return json.dumps(asdict(outcome))


def unpacked(text: str) -> Done | Failed:
    """The outcome that `packed` gave."""
    fields = json.loads(text)
    if "error" in fields:
        return Failed(**fields)
    return Done(**fields | {"stages": tuple((out, computed, seconds) for out, computed, seconds in fields["stages"])})
