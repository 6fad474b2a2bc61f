"""The page of a run: one file, nothing from the network, everything escaped, resumes included."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.video import write_clip
from training.report import main
from training.reporting.charts import line_chart
from training.reporting.history import read_history


def line(step: int, **values: object) -> str:
    return json.dumps({"step": step, "loss": 1.0 / (1 + step), "lr": 1e-4, "seconds": 2.0, "sigma_0": 0.5} | values)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Killed after step 5 with a checkpoint at 4, one line cut, one step skipped."""
    folder = tmp_path / "<run>"
    folder.mkdir()
    lines = [line(step) for step in range(6)] + ["{cut"]
    lines += [line(step, loss=None, skipped=True, ids=["<b>row"]) if step == 7 else line(step) for step in range(4, 10)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text("run:\n  name: <script>alert(1)</script>\n")
    for step in (4, 8):
        samples = folder / "samples" / f"step-{step:08d}"
        samples.mkdir(parents=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(samples / "a&b.png")
        frames = np.zeros((5, 16, 32, 3), np.uint8)
        write_clip(samples / "clip.mp4", frames, {"id": "<i>person</i>"})
    return folder


def test_history_counts_the_last_line_of_a_step(run):
    history = read_history(run / "log.jsonl")
    assert [entry["step"] for entry in history.lines] == list(range(10))
    assert (history.redone, history.damaged) == ([4], 1)
    assert [step for step, _ in history.series("loss")] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert len(history.series("loss", count=3)) == 3


def test_the_page_holds_everything_and_escapes_it(run, capsys):
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    for word in ("Loss by term", "quarter of sigma", "Learning rate", 'class="redone"', "1 steps were not finite"):
        assert word in page
    assert page.count("data:image/png;base64,") == page.count("data:video/mp4;base64,") == 2
    for raw in ("<script", "<b>row", "<i>person", "<run>", "a&b.png"):
        assert raw not in page
    assert "&lt;i&gt;person" in page
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_another_place_for_the_page(run, tmp_path):
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("no json\n", "has no step yet")])
def test_no_run_is_one_line(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_chart_of_one_point_or_none():
    assert line_chart("t", {"a": []}) == ""
    assert "polyline" in line_chart("t", {"a": [(3.0, 0.0)]})
