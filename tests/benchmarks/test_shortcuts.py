"""The measurement of shortcuts at the smallest size: a row for each, and plain is compared with itself."""

import json

from benchmarks import shortcuts


def test_a_row_for_each_shortcut(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shortcuts, "THRESHOLDS", (0.5,))
    words = ["--frames", "1", "--size", "64x64", "--steps", "4", "--clips", "1", "--json", str(tmp_path / "r.json")]
    assert shortcuts.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "shortcut",
        "-" * 16,
        "none",
        "step cache 0.5",
        "memory low (fp8)",
    ]
    found = json.loads((tmp_path / "r.json").read_text())["shortcuts"]
    assert found["none"]["computed"] == found["memory low (fp8)"]["computed"] == 1
    assert 0 < found["step cache 0.5"]["computed"] < 1
    assert found["none"]["psnr"] == [100.0]
    assert 5 < found["step cache 0.5"]["psnr"][0] < 90


def test_a_wrong_option_is_one_line(capsys):
    assert shortcuts.main(["--step", "4"]) == 2
    assert "Did you mean --steps?" in capsys.readouterr().err
