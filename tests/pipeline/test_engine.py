"""The engine: parts on disk, the same bytes after a kill, failures kept apart, a dead worker survived."""

import errno
import json
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from data_pipeline.commands import _work_through
from data_pipeline.decisions.rules import Rule
from data_pipeline.engine.local import run_local
from data_pipeline.engine.progress import Progress, costs_in, last_line
from data_pipeline.engine.reckoning import Cost
from data_pipeline.engine.work import Done, Failed, Job, Selection, run_source
from data_pipeline.models.picture_files import encode_picture
from data_pipeline.rows import Drop, Dropped, Part, Row, count_part, read_part
from data_pipeline.stage import Stage, UnavailableError, fingerprints


@dataclass(frozen=True)
class Files:
    """Small text files as sources: their text says what happens to them."""

    folder: Path

    def names(self):
        return sorted(path.stem for path in self.folder.iterdir())

    def row(self, name, root):
        return Row(source=name, sha256=name * 8, video=str(self.folder / f"{name}.txt"), stop=10)


@dataclass(frozen=True)
class Split(Stage):
    name: ClassVar[str] = "split"
    pieces: int = 2

    def __call__(self, row):
        with (self.root / "calls.txt").open("a") as file:
            file.write(f"{row.source}\n")
        step = row.stop // self.pieces
        return [row.span(at, at + step) for at in range(0, row.stop, step)]


@dataclass(frozen=True)
class Measure(Stage):
    """Does what the source's text asks for: raises, dies, kills the whole run once, or is dropped."""

    name: ClassVar[str] = "measure"
    factor: float = 1.0

    def __call__(self, row):
        text = Path(row.video).read_text()
        once = self.root / "killed"
        if text == "raise":
            raise ValueError("broken file")
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "hang":
            re.match("(a+)+$", "a" * 64 + "b")  # for ages, and it never lets another thread run
        if text == "once" and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "no server":
            raise UnavailableError("the server cannot be reached")
        if text == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mask")
        if text == "drop":
            return Drop("empty", {"measure.value": 0.0})
        return row.scored("measure", value=self.factor * row.start)


@dataclass(frozen=True)
class Model(Stage):
    """An expensive stage: it notes what it is asked about, and drops a row in the middle."""

    name: ClassVar[str] = "model"

    @property
    def expensive(self):
        return True

    def __call__(self, row):
        with (self.root / "asked.txt").open("a") as file:
            file.write(f"{row.start}\n")
        return Drop("middle") if row.start == 4 else row.scored("model", answer=row.start / 2)


def job(root, texts, selection=None, stages=None, **how):
    folder = root / "in"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    chosen = stages or (Split(root), Measure(root))
    return Job(root, Files(folder), chosen, selection or Selection(), retries=1, backoff=0.0, **how)


def parts(root):
    return {path.relative_to(root / "parts"): path.read_bytes() for path in sorted((root / "parts").rglob("*.jsonl"))}


def calls(root):
    return (root / "calls.txt").read_text().split()


def test_a_source_goes_through_and_is_not_computed_again(tmp_path):
    work = job(tmp_path, {"a": "", "b": "drop"})
    assert run_source(work, "a") == Done("a", 2, 3)
    assert run_source(work, "b") == Done("b", 0, 3)
    before = parts(tmp_path)
    assert run_source(work, "a") == Done("a", 2, 0)
    assert parts(tmp_path) == before
    assert calls(tmp_path) == ["a", "b"]
    dropped = read_part(work.part_path(1, "b")).dropped
    assert [(found.stage, found.drop.reason) for found in dropped] == [("measure", "empty")] * 2


def test_another_setting_recomputes_the_stage_and_those_behind_it_only(tmp_path):
    first = job(tmp_path, {"a": ""})
    run_source(first, "a")
    later = job(tmp_path, {"a": ""}, stages=(Split(tmp_path), Measure(tmp_path, factor=2.0)))
    assert run_source(later, "a").computed == 2
    assert calls(tmp_path) == ["a"]
    keys = [{row.key for row in read_part(work.part_path(1, "a")).rows} for work in (first, later)]
    assert len(keys[0]) == 2
    assert not keys[0] & keys[1]
    assert fingerprints(first.stages)[0] == fingerprints(later.stages)[0]
    earlier = job(tmp_path, {"a": ""}, stages=(Split(tmp_path, pieces=5), Measure(tmp_path)))
    assert run_source(earlier, "a") == Done("a", 5, 6)


def test_only_and_from_compute_anew(tmp_path):
    run_source(job(tmp_path, {"a": ""}), "a")
    assert run_source(job(tmp_path, {}, Selection("split", "split")), "a") == Done("a", 2, 1)
    assert run_source(job(tmp_path, {}, Selection("measure")), "a").computed == 2
    assert calls(tmp_path) == ["a", "a"]


def test_a_stage_that_raises_is_retried_and_kept_with_its_traceback(tmp_path):
    work = job(tmp_path, {"a": "raise"})
    failed = run_source(work, "a")
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.error) == ("measure", "ValueError: broken file")
    kept = json.loads(work.failure_path("a").read_text())
    assert "raise ValueError" in kept["traceback"]
    assert not work.part_path(1, "a").exists()
    (tmp_path / "in" / "a.txt").write_text("")  # mended: the same command takes it up again
    assert isinstance(run_source(work, "a"), Done)
    assert not work.failure_path("a").exists()
    assert calls(tmp_path) == ["a"]


def test_a_full_disk_ends_the_run_and_is_no_fault_of_a_source(tmp_path):
    """Else a run would go through all sources, compute the first stages of each, and call each one failed."""
    work = job(tmp_path, {"a": "", "b": "full", "c": ""})
    progress = Progress(tmp_path / "progress.jsonl", 3)
    with pytest.raises(OSError, match="No space left"):
        list(run_local(work, work.sources.names(), 1, progress))
    assert not work.failure_path("b").exists()
    (tmp_path / "in" / "b.txt").write_text("")  # there is room again
    assert {type(one) for one in run_local(work, work.sources.names(), 1, progress)} == {Done}


def test_what_every_source_needs_and_is_not_there_ends_the_run(tmp_path):
    """A wrong name of a model, or a server that is not started: else all would fail, each after its attempts."""
    settings = SimpleNamespace(engine=SimpleNamespace(workers=1))
    work = job(tmp_path / "x", dict.fromkeys("abcdefghijkl", "no server"))
    with pytest.raises(UnavailableError, match=r"3 sources in turn failed, the last in measure: .*cannot be reached"):
        _work_through(work, settings, work.sources.names(), "local")
    assert len(calls(tmp_path / "x")) <= 6
    assert "cannot be reached" in json.loads(work.failure_path("a").read_text())["error"]
    texts = {name: "" if name in "ceg" else "no server" for name in "abcdefgh"}  # it is there again and again
    root = tmp_path / "y"
    work = job(root, texts, stages=(Split(root), Measure(root), Model(root)))
    assert _work_through(work, settings, work.sources.names(), "local") == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_picture_on_a_full_disk_says_so(tmp_path):
    (tmp_path / "mask.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        encode_picture(tmp_path / "mask.png", np.zeros((8, 8), np.uint8))


def test_a_worker_that_dies_takes_no_other_source_with_it(tmp_path):
    texts = dict.fromkeys("abcdefgh", "") | {"d": "die", "e": "raise"}
    work = job(tmp_path, texts)
    progress = Progress(tmp_path / "progress.jsonl", len(texts))
    outcomes = {outcome.source: outcome for outcome in run_local(work, work.sources.names(), 2, progress)}
    assert sorted(outcomes) == sorted(texts)
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, Failed)} == {"d", "e"}
    assert outcomes["d"].stage == "measure"  # where it died
    assert not list((tmp_path / "running").iterdir())
    assert work.failure_path("d").exists()
    last = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])
    assert (last["done"], last["failed"], last["eta_s"]) == (8, 2, 0.0)


def test_a_kill_and_another_run_give_the_bytes_of_an_undisturbed_one(tmp_path):
    texts = dict.fromkeys("abcd", "") | {"c": "once"}
    disturbed, plain = job(tmp_path / "x", texts), job(tmp_path / "y", dict.fromkeys(texts, ""))
    for work in (disturbed, plain):
        list(run_local(work, work.sources.names(), 2, Progress(work.root / "progress.jsonl", 4)))
    assert (tmp_path / "x" / "killed").exists()
    found = parts(tmp_path / "x")
    assert len(found) == 8
    root = str(tmp_path / "x").encode()
    assert {name: text.replace(root, str(tmp_path / "y").encode()) for name, text in found.items()} == parts(
        tmp_path / "y"
    )


def test_a_run_with_nothing_to_compute_parses_no_row_and_starts_no_process(tmp_path, monkeypatch):
    work = job(tmp_path, {"a": "", "b": "drop"})
    for source in "ab":
        run_source(work, source)
    monkeypatch.setattr(Row, "model_validate", None)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", None)
    outcomes = list(run_local(work, ["a", "b"], 2, Progress(tmp_path / "progress.jsonl", 2)))
    assert outcomes == [Done("a", 2, 0), Done("b", 0, 0)]


def test_what_killed_workers_left_half_written_is_removed(tmp_path):
    work = job(tmp_path, dict.fromkeys("ab", ""))
    folder = work.part_path(0, "a").parent
    remains = {name: folder / f".contextanyone-{name * 16}.part" for name in ("a", "z")}
    for name, hidden in remains.items():
        (hidden / "written").mkdir(parents=True)
        (hidden / "written" / f"{name}.jsonl").write_text("{")
    list(run_local(work, work.sources.names(), 2, Progress(work.root / "progress.jsonl", 2)))
    assert not remains["a"].exists()
    assert remains["z"].exists()  # of a source that another machine has


def test_a_row_that_takes_too_long_has_failed_and_the_run_goes_on(tmp_path):
    work = job(tmp_path, {"a": "", "b": "hang", "c": ""}, row_seconds=1.0)
    progress = Progress(tmp_path / "progress.jsonl", 3)
    outcomes = {outcome.source: outcome for outcome in run_local(work, work.sources.names(), 1, progress)}
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, Failed)} == {"b"}
    assert outcomes["b"].stage == "measure"
    assert "row_seconds" in outcomes["b"].error
    assert "in __call__" in json.loads(work.failure_path("b").read_text())["traceback"]
    (tmp_path / "in" / "b.txt").write_text("")  # mended: the next run takes it up
    assert isinstance(run_source(work, "b"), Done)
    assert not work.failure_path("b").exists()


def gated(root, bound, factor=1.0):
    """Ten rows of a source, with values 0 to 9 times the factor, a gate, and the part that the model leaves."""
    gate = () if bound is None else (Rule("measure", "min_value", bound),)
    stages = (Split(root, pieces=10), Measure(root, factor), Model(root))
    work = job(root, {"a": ""}, stages=stages, gate=gate)
    done = run_source(work, "a")
    asked = root / "asked.txt"
    told = [int(line) for line in asked.read_text().split()] if asked.exists() else []
    asked.unlink(missing_ok=True)
    return work.part_path(2, "a"), told, done


def test_the_gate_keeps_rows_from_expensive_stages_only(tmp_path):
    path, asked, done = gated(tmp_path, 3)
    assert asked == [3, 4, 5, 6, 7, 8, 9]
    assert done == Done("a", 6, 1 + 10 + 7)
    part = read_part(path)
    refused = [found for found in part.dropped if found.drop.reason == "gate.measure.min_value"]
    assert [(found.row.start, found.drop.scores) for found in refused] == [(x, {"measure.value": x}) for x in range(3)]
    assert [found.stage for found in refused] == ["model"] * 3
    assert [row.start for row in part.rows] == [3, 5, 6, 7, 8, 9]


def test_another_gate_asks_about_no_row_twice_and_leaves_the_same_bytes(tmp_path):
    asked, parts = {}, {}
    for bound in (8, 2, 6, None, 0, 8):
        path, asked[bound], _ = gated(tmp_path / "x", bound)
        parts[bound] = path.read_bytes()
    assert asked == {8: [], 2: [2, 3, 4, 5, 6, 7], 6: [], None: [0, 1], 0: []}
    for bound in (2, None):
        path, _, _ = gated(tmp_path / "y" / str(bound), bound)
        there, here = (str(tmp_path / name).encode() for name in (f"y/{bound}", "x"))
        assert path.read_bytes().replace(there, here) == parts[bound]
    _, told, _ = gated(tmp_path / "x", 2, factor=2.0)  # other scores are other rows
    assert told == list(range(1, 10))


def test_few_files_are_open_whatever_the_number_of_sources(tmp_path):
    work = job(tmp_path, {f"s{number:03d}": "" for number in range(150)})
    before, most = len(list(Path("/proc/self/fd").iterdir())), 0
    for _ in run_local(work, work.sources.names(), 2, Progress(tmp_path / "progress.jsonl", 150)):
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))
    assert most - before <= 40


def test_a_part_is_counted_without_parsing_its_rows(tmp_path):
    work = job(tmp_path, {"a": "", "b": "drop"})
    for source, count in (("a", 2), ("b", 0)):
        run_source(work, source)
        path = work.part_path(1, source)
        part = read_part(path)
        assert count_part(path) == (len(part.rows), Counter(found.drop.reason for found in part.dropped))
        assert read_part(path, dropped_only=True) == Part((), part.dropped)
        assert len(part.rows) == count


def test_what_a_stage_says_of_a_dropped_row_is_kept(tmp_path):
    row = Row(source="a", sha256="0" * 64, video="v")
    part = Part((), (Dropped(row, "x", Drop("bad", {}, "line 3 is missing")), Dropped(row, "x", Drop("bad"))))
    path = tmp_path / "part.jsonl"
    path.write_text(part.text())
    assert read_part(path) == part
    assert count_part(path) == (0, Counter(bad=2))
    assert '"why"' not in path.read_text().splitlines()[1]


def test_keys_tell_spans_and_sources_apart(tmp_path):
    work = job(tmp_path, {"a": "", "b": ""})
    for source in "ab":
        run_source(work, source)
    keys = [row.key for source in "ab" for row in read_part(work.part_path(1, source)).rows]
    assert len(set(keys)) == 4


def test_a_line_that_a_full_disk_cut_off_costs_that_line_only(tmp_path):
    path = tmp_path / "progress.jsonl"
    whole = json.dumps({"done": 1, "costs": {"probe": [1, 2, 3.0]}})
    path.write_text(f"{whole}\n{whole[:20]}{whole}\n")  # the next run went on behind what was cut off
    assert last_line(path) == json.loads(whole)
    assert costs_in(last_line(path)) == {"probe": Cost(1, 2, 3.0)}
