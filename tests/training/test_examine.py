"""Looking at files: each once ever, shared by processes, remembered by size and time, ended soon when asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from contextanyone_core.media.video_io import write_clip
from training.data import examine, facts
from training.data.buckets import BucketSettings
from training.data.check import check_files, check_shared
from training.data.manifest import ManifestRow, read_manifest, write_manifest
from training.data.progress import Progress
from training.data.work import Share, Stopped, in_threads

SMALL = BucketSettings(sizes=("32x32",), frames=(5,))
ROWS = 16
ROOT = Path(__file__).parents[2]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Rows of five frames, one after the other, of one clip."""
    frames = np.stack([np.full((32, 32, 3), index % 200, np.uint8) for index in range(5 * ROWS)])
    write_clip(tmp_path / "long.mp4", frames, {})
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    given = {"video": "long.mp4", "reference": "a.png", "prompt_later": "A.", "source": "s", "license": "l"}
    rows = [ManifestRow(id=f"{n:02d}", start_frame=5 * n, num_frames=5, **given) for n in range(ROWS)]
    write_manifest(tmp_path / "m.jsonl", rows)
    return tmp_path / "m.jsonl"


class Counted:
    """Counts hashed files and decoded frames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files, self.frames = [], 0
        hashed, decoded = facts.content_hash, examine.check_frames

        def content_hash(path, between):
            self.files.append(path.name)
            return hashed(path, between)

        def check_frames(path, start, stop, between):
            self.frames += stop - start
            decoded(path, start, stop, between)

        monkeypatch.setattr(facts, "content_hash", content_hash)
        monkeypatch.setattr(examine, "check_frames", check_frames)

    def taken(self) -> tuple[list[str], int]:
        found = (sorted(self.files), self.frames)
        self.files, self.frames = [], 0
        return found


def test_a_file_is_looked_at_once_ever(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    first = check_files(read_manifest(manifest), SMALL, decode=True)
    assert (len(first.clips), first.dropped) == (ROWS, [])
    assert counted.taken() == (["a.png", "long.mp4"], 5 * ROWS)
    assert check_files(read_manifest(manifest), SMALL, decode=True) == first
    assert counted.taken() == ([], 0)
    time.sleep(0.01)
    (manifest.parent / "a.png").write_bytes((manifest.parent / "a.png").read_bytes())
    assert check_files(read_manifest(manifest), SMALL, decode=True) == first
    assert counted.taken() == (["a.png"], 0)


def test_eight_processes_do_an_eighth_each(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = check_files(read_manifest(manifest), SMALL, decode=True)
    for part in (manifest.parent / facts.FOLDER).iterdir():
        part.unlink()
    counted = Counted(monkeypatch)
    for rank in (3, 0, 7, 1, 2, 6, 5, 4):
        found = check_shared(read_manifest(manifest), SMALL, Share(rank, 8))
        files, frames = counted.taken()
        assert frames == 5 * ROWS // 8
        assert files == (["a.png", "long.mp4"] if rank == 3 else [])
        assert (found is None) == (rank != 4), "the last one has the account of all"
    assert found == alone


def test_facts_of_another_version_are_not_used(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_files(read_manifest(manifest), SMALL, decode=True)
    monkeypatch.setattr(facts, "_VERSION", facts._VERSION + 1)
    counted = Counted(monkeypatch)
    check_files(read_manifest(manifest), SMALL, decode=True)
    assert counted.taken() == (["a.png", "long.mp4"], 5 * ROWS)


def test_what_could_not_be_read_is_read_again(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(facts, "content_hash", fails)
        dropped = check_files(read_manifest(manifest), SMALL, decode=True).dropped
    assert {drop.reason for drop in dropped} == {"decode_error"}
    assert check_files(read_manifest(manifest), SMALL, decode=True).dropped == []


def test_many_parts_become_one_and_a_damaged_one_is_passed_over(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = manifest.parent / facts.FOLDER
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:020d}-x.jsonl").write_bytes(b"\xff{" if index % 2 else b'{"path": 3}\n[]\n')
    check_files(read_manifest(manifest), SMALL, decode=True)
    assert len(list(folder.iterdir())) == 1
    counted = Counted(monkeypatch)
    check_files(read_manifest(manifest), SMALL, decode=True)
    assert counted.taken() == ([], 0)


def test_a_folder_that_cannot_be_written_to_is_no_error(manifest: Path, caplog: pytest.LogCaptureFixture) -> None:
    (manifest.parent / facts.FOLDER).write_text("a file")
    assert len(check_files(read_manifest(manifest), SMALL, decode=True).clips) == ROWS
    assert "are checked anew next time" in caplog.text


def test_a_stop_keeps_what_is_known(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "_PIECE", 5)
    monkeypatch.setattr(examine, "thread_count", lambda: 1)
    counted = Counted(monkeypatch)
    with pytest.raises(Stopped):
        check_files(read_manifest(manifest), SMALL, decode=True, share=Share(asked=lambda: counted.frames > 40))
    before = counted.taken()[1]
    check_files(read_manifest(manifest), SMALL, decode=True)
    assert counted.taken()[0] == []
    assert before < 5 * ROWS


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's account of a process")
def test_sigterm_ends_the_command_within_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    picture = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8))[1].tobytes()
    for index in range(600):
        (tmp_path / "clip" / f"{index:04d}.png").write_bytes(picture)
    row = {
        "id": "a",
        "video": "clip",
        "reference": "clip/0000.png",
        "prompt_later": "A.",
        "source": "s",
        "license": "l",
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    command = [sys.executable, str(ROOT / "training/validate_data.py"), str(tmp_path / "m.jsonl")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    assert process.stderr.readline().startswith("reading files: 2 of 2")  # no terminal, so lines
    before = cpu_seconds(process.pid)
    process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert usage.ru_utime + usage.ru_stime - before < 5  # of its own time: a busy machine makes the clock run on
    assert process.stderr.read() == ""


def cpu_seconds(process: int) -> float:
    """What a running process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_results_come_in_order_and_no_more_than_asked_wait() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        return number * number

    for number, found in in_threads(work, range(50), Share(), 3, 2):
        assert found == number * number
        assert len(started) <= number + 5
    with pytest.raises(Stopped):
        list(in_threads(work, range(50), Share(asked=lambda: len(started) > 60), 3, 2))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0], Share(), 2, 2))


def test_progress_is_lines_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Progress("counting", 3, "things") as progress:
        for _ in range(3):
            progress.advance()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("counting: 3 of 3, ")
