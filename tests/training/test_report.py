"""The page of a run: one file, nothing from the network, everything escaped, resumes included."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.media.video_io import write_clip
from training.report import main
from training.reporting.charts import line_chart, ticks
from training.reporting.history import read_history
from training.reporting.page import report_page


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


def test_the_page_has_the_validation_the_end_and_the_time_left(run):
    validated = [json.dumps({"step": step, "video": 1 / step, "video_at_0.1": 2 / step}) for step in (4, 8)]
    (run / "validation.jsonl").write_text("\n".join(validated) + "\n")
    (run / "config.yaml").write_text("run:\n  steps: 40\n")
    page = report_page(run)
    assert re.search(r"Validation</figcaption>.*video</span> 0.125.*video_at_0.1</span> 0.25", page)
    assert "10 of 40 steps" in page
    assert "01:00 left" in page  # 30 steps of 2 s
    (run / "validation.jsonl").write_text("")
    assert "Validation" not in report_page(run)


def test_quarters_of_sigma_have_the_same_colours_in_every_page(run):
    lines = [line(0, sigma_3=1.0), line(1, sigma_1=1.0)]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    legend = re.findall(r"color:(#\w+)\">(sigma_\d)", report_page(run))
    assert [name for _, name in legend] == ["sigma_0", "sigma_1", "sigma_3"]


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


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        ((0, 1), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ((2, 1344), ["200", "400", "600", "800", "1000", "1200"]),
        ((0.0129, 0.0151), ["0.013", "0.0135", "0.014", "0.0145", "0.015"]),
        ((1e-5, 1.1e-4), ["2e-05", "4e-05", "6e-05", "8e-05", "0.0001"]),
        ((-0.5, 9.3), ["0", "2", "4", "6", "8"]),
        ((0, 39), ["0", "5", "10", "15", "20", "25", "30", "35"]),
        ((7, 7), ["7"]),
    ],
)
def test_axes_have_round_numbers(span, shown):
    assert [label for _, label in ticks(span)] == shown


def test_many_points_are_drawn_faintly_and_smoothed():
    points = [(float(step), float(step % 2)) for step in range(200)]
    chart = line_chart("t", {"a": points}, smooth=True)
    raw, smooth = re.findall(r'<polyline( class="raw")? points="([^"]*)"', chart)
    assert (raw[0], smooth[0]) == (' class="raw"', "")
    heights = [float(place.split(",")[1]) for place in smooth[1].split()]
    assert max(heights) - min(heights) < 30  # of 218
    assert line_chart("t", {"a": points[:20]}, smooth=True).count("<polyline") == 1


def test_there_are_no_broken_steps():
    assert re.findall(r'middle">([^<]*)', line_chart("t", {"a": [(0.0, 1.0), (1.0, 2.0)]})) == ["0", "1"]


def test_what_is_never_negative_has_no_negative_axis():
    assert ">-" not in line_chart("t", {"a": [(0.0, 9.0), (1.0, 0.0)]})


def test_a_chart_of_one_point_or_none():
    assert line_chart("t", {"a": []}) == ""
    assert "polyline" in line_chart("t", {"a": [(3.0, 0.0)]})
