"""What grows with a run: counted, not timed. Work must be linear in the rows, and rows must not stay in memory."""

import copy
import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from contextanyone_core.errors import InputError
from data_pipeline import simulate
from data_pipeline.config import PipelineSettings
from data_pipeline.decisions.dedup import KeptHashes
from data_pipeline.decisions.outputs import account_of, write_outputs
from data_pipeline.decisions.rules import DEDUP, Rule, decide
from data_pipeline.engine.progress import Progress, costs_in, last_line
from data_pipeline.engine.reckoning import Cost, reckoning
from data_pipeline.engine.work import Job, run_source
from data_pipeline.rows import Row
from data_pipeline.sources import FolderSources
from data_pipeline.stage import Stage

BITS = 768


@dataclass(frozen=True)
class Numbers:
    """Sources that are numbers."""

    count: int

    def names(self):
        return [f"{number:05d}" for number in range(self.count)]

    def row(self, name, root):
        return Row(source=name, sha256=f"{int(name):064x}", video="v", stop=100)


@dataclass(frozen=True)
class Cut(Stage):
    name: ClassVar[str] = "shots"

    def __call__(self, row):
        return [row.span(at, at + 10).scored("shots", frames=at) for at in range(0, 100, 10)]


def hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, BITS // 8), np.uint8)


def hashed(number, bits):
    return Row(source=f"{number}", sha256="0" * 64, video="v", labels={"hashes.frames": bits.tobytes().hex()})


def copies_of(bits, flipped, seed=1):
    """Each hash with so many of its bits flipped."""
    rng, unpacked = np.random.default_rng(seed), np.unpackbits(bits, axis=1)
    for row in unpacked:
        row[rng.permutation(BITS)[:flipped]] ^= 1
    return np.packbits(unpacked, axis=1)


@pytest.fixture(scope="module")
def many():
    """6,000 kept rows, and how many each was compared with when it came."""
    kept, compared = KeptHashes(0.1), []
    for number, bits in enumerate(hashes(6000)):
        before = kept.compared
        assert kept.nearest(hashed(number, bits)) >= 0.1
        kept.keep(hashed(number, bits))
        compared.append(kept.compared - before)
    return kept, compared


def test_dedup_compares_each_row_with_few_however_many_are_kept(many):
    _, compared = many
    assert max(compared) <= 4096  # all of them, while they are few
    assert max(compared[-1000:]) <= 40  # of more than 5000; buckets beyond that


@pytest.mark.parametrize(("flipped", "most_missed"), [(8, 0), (38, 0), (76, 5)])
def test_dedup_finds_the_copies_among_many(many, flipped, most_missed):
    """The bound is 76.8 bits. A pair just within it may share no bucket, once in a thousand."""
    kept = copy.deepcopy(many[0])
    copies = copies_of(hashes(6000)[::10], flipped)
    found = [kept.nearest(hashed(number, bits)) for number, bits in enumerate(copies)]
    near = [distance for distance in found if distance < 0.1]
    assert len(found) - len(near) <= most_missed
    assert near == pytest.approx([flipped / BITS] * len(near))


def test_dedup_is_exact_while_few_rows_are_kept():
    bits = np.concatenate([hashes(60), copies_of(hashes(60), 60), copies_of(hashes(60), 100)])
    before, expected = [], []
    for one in bits:
        nearest = min((int(np.bitwise_count(one ^ other).sum()) / BITS for other in before), default=1.0)
        expected.append(nearest)
        before += [one] if nearest >= 0.1 else []
    rows = [hashed(number, one) for number, one in enumerate(bits)]
    assert decide(rows, [Rule("dedup", "min_distance", 0.1)]).nearest == pytest.approx(expected)
    assert sum(nearest < 0.1 for nearest in expected) == 60


@pytest.mark.parametrize("distance", [0.0, 0.02, 0.3, 1.0])
def test_any_distance_is_a_bound(distance):
    rows = [hashed(number, bits) for number, bits in enumerate(hashes(4))]
    decisions = decide([*rows, rows[0]], [Rule("dedup", "min_distance", distance)])
    assert decisions.kept == {0.0: 5, 0.02: 4, 0.3: 4, 1.0: 1}[distance]
    assert set(decisions.reasons()) <= {DEDUP}


def run_of(root, count):
    job = Job(root, Numbers(count), (Cut(root),))
    for name in job.sources.names():
        run_source(job, name)
    filters = {"shots": {"min_frames": 20, "max_frames": 80}}
    return job, PipelineSettings(chain="pixels", sources={"folder": "x"}, source="s", license="l", filters=filters)


def test_the_account_holds_one_sources_rows_at_a_time(tmp_path, monkeypatch):
    job, settings = run_of(tmp_path, 30)
    alive, most = weakref.WeakSet(), 0
    validate = Row.model_validate

    def counted(*arguments):
        nonlocal most
        row = validate(*arguments)
        alive.add(row)
        most = max(most, len(alive))
        return row

    monkeypatch.setattr(Row, "__hash__", object.__hash__)
    monkeypatch.setattr(Row, "model_validate", counted)
    account = account_of(job, settings, job.sources.names())
    write_outputs(job, settings, account)
    assert len(account.decisions) == 300
    assert account.funnel["kept"] == 7 * 30
    assert account.funnel["dropped"] == {"shots.min_frames": 60, "shots.max_frames": 30}
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 300
    assert most <= 30  # ten of the source at hand, and the one before it


def test_each_part_is_opened_as_often_however_many_there_are(tmp_path, monkeypatch):
    opened, real = [], Path.open

    def counted(path, *arguments, **named):
        opened.append(path)
        return real(path, *arguments, **named)

    for count in (5, 10):
        job, settings = run_of(tmp_path / str(count), count)
        monkeypatch.setattr(Path, "open", counted)
        write_outputs(job, settings, account_of(job, settings, job.sources.names()))
        monkeypatch.setattr(Path, "open", real)
        assert len([path for path in opened if path.suffix == ".jsonl" and "parts" in path.parts]) == 3 * count
        opened.clear()


def test_a_sources_file_is_found_without_a_list_of_the_folder(tmp_path, monkeypatch):
    """Else a folder of N videos is listed N times."""
    folder = tmp_path / "in"
    for path in ("a.mp4", "b__c.mp4", "d/e.mp4", "d__f/g__h.mp4", "d/i__j/k.mp4"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    sources = FolderSources(folder)
    names = sources.names()
    assert names == ["a.mp4", "b__c.mp4", "d__e.mp4", "d__f__g__h.mp4", "d__i__j__k.mp4"]
    for name in ("rglob", "glob", "iterdir"):
        monkeypatch.setattr(Path, name, None)
    for name in names:
        row = sources.row(name, tmp_path / "out")
        assert (tmp_path / "out" / row.video).read_text().replace("/", "__") == name
    with pytest.raises(FileNotFoundError):
        sources.row("d__gone.mp4", tmp_path / "out")


def test_two_files_of_one_name_are_a_mistake(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.mp4").touch()
    (tmp_path / "a__b.mp4").touch()
    with pytest.raises(InputError, match=r"a/b.mp4 and a__b.mp4"):
        FolderSources(tmp_path).names()


@dataclass(frozen=True)
class Edit(Stage):
    """A stage of a GPU."""

    name: ClassVar[str] = "edit"

    @property
    def gpu(self):
        return True

    def __call__(self, row):
        return row


def test_hours_are_reckoned_from_measured_and_stated_seconds(tmp_path):
    stages = (Cut(tmp_path), Edit(tmp_path))
    costs = {"shots": Cost(sources=10, rows=10, seconds=36.0)}
    told = reckoning(stages, costs, {"edit": 7.2, "shots": 100.0}, [1000, 1000])
    assert "1000  rows left of shots: 3.6 s a row (measured), 1 CPU-hours" in told
    assert "1000  rows left of edit: 7.2 s a row (stated), 2 GPU-hours" in told
    assert "2  GPU-hours and 1 CPU-hours left: 3 h with 1 GPUs, 0.375 h with 8 GPUs, 0.04688 h with 64 GPUs" in told
    costs["edit"] = Cost(sources=10, rows=70, seconds=252.0)  # seven of ten rows pass what is before it
    assert "7000  rows left of edit: 3.6 s a row (measured), 7 GPU-hours" in reckoning(stages, costs, {}, [1000, 1000])
    assert "not measured: shots, edit" in reckoning(stages, {}, {}, [1, 1])


def test_costs_outlive_a_run_and_what_was_only_read_has_no_time(tmp_path):
    job = Job(tmp_path, Numbers(3), (Cut(tmp_path),))
    path = tmp_path / "progress.jsonl"
    for first, total in ((0, 2), (0, 3)):  # the second run reads two sources and computes one
        progress = Progress(path, total, job.stages)
        progress.begin()
        for name in job.sources.names()[first:total]:
            progress.add(run_source(job, name))
    assert costs_in(last_line(path))["shots"].sources == 3
    assert costs_in(last_line(path))["shots"].rows == 3
    with path.open("a") as file:
        file.write('{"half": ')
    assert last_line(path)["total"] == 3
    assert last_line(tmp_path / "none.jsonl") == {}


def test_an_account_stays_as_it_was_while_a_run_goes_on(tmp_path):
    job, settings = run_of(tmp_path, 2)
    later = Job(tmp_path, Numbers(3), job.stages)
    account = account_of(later, settings, later.sources.names())
    run_source(later, "00002")
    assert len(list(account.decisions)) == len(account.decisions) == 20
    assert len(account_of(later, settings, later.sources.names()).decisions) == 30


def test_a_simulated_run_counts_its_rows_and_leaves_its_numbers_alone(tmp_path, capsys):
    assert simulate.main(["--out", str(tmp_path), "--rows", "200", "--workers", "1"]) == 0
    (found,) = json.loads((tmp_path / "simulated.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["rows"], found["sources"]) == (200, 2)
    assert found["kept"] + sum(found["dropped"].values()) == 200
    assert found["dropped"]["dedup.min_distance"] == 1  # of two copies the other has a score too high
    assert 0 < found["open_files"] <= 64
    assert [path.name for path in tmp_path.iterdir()] == ["simulated.json"]
