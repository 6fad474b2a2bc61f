"""The measurement of a processor at the smallest size: every row has both variants and their ratio."""

import json

from benchmarks import cpu


def test_a_row_for_each_pair(tmp_path, capsys):
    assert cpu.main(["--small", "--repeats", "2", "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")][2:]
    found = json.loads((tmp_path / "r.json").read_text())
    assert [row[0].strip() for row in rows] == list(found["seconds"])
    for row, (name, seconds) in zip(rows, found["seconds"].items(), strict=True):
        assert list(seconds) == name.split(": ")[1].split(" / ")
        assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
        assert float(row[3]) > 0
    assert f"precision: auto is {found['auto'].removeprefix('torch.')} on this processor" in printed


def test_a_wrong_option_is_one_line(capsys):
    assert cpu.main(["--repeat", "4"]) == 2
    assert "Did you mean --repeats?" in capsys.readouterr().err
