"""The whole chain on rendered sources: outputs, thresholds as a second pass, the commands and their exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_pipeline.chains import job_of
from data_pipeline.commands import main
from data_pipeline.config import read_config
from data_pipeline.decisions.dedup import KeptHashes
from data_pipeline.decisions.measure import CAUGHT_BY
from data_pipeline.decisions.outputs import account_of
from data_pipeline.decisions.rules import Rule, decide, rules_of, what_if
from data_pipeline.decisions.splits import split_rows
from data_pipeline.rows import Row
from data_pipeline.world_sources import FAULTS
from training.data.manifest import read_manifest
from training.validate_data import main as validate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "data_pipeline" / "configs" / "world.yaml"
OUTPUTS = ("decisions.jsonl", "funnel.json", "what_if.json", "manifest.jsonl", "filters.json")


def config(folder, count, seed=5):
    data = yaml.safe_load(CONFIG.read_text())
    data["sources"]["world"] |= {"count": count, "seed": seed}
    path = folder / f"world{count}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def outputs(root):
    return {name: (root / name).read_bytes() for name in OUTPUTS}


def kept(root):
    return json.loads((root / "funnel.json").read_text())["kept"]


def test_each_planted_fault_is_dropped_by_its_filter_and_sound_rows_stay(run):
    filters = json.loads((run / "filters.json").read_text())
    for rule in CAUGHT_BY.values():
        assert filters[f"{rule}.planted"] >= 1, rule
        assert filters[f"{rule}.recall"] == 1, rule
        assert filters[f"{rule}.precision"] == 1, rule
    for kind in ("cut", "dissolve"):
        assert filters[f"shots.{kind}.recall"] == 1


def test_the_manifest_is_what_training_takes(run, tmp_path, capsys):
    settings = tmp_path / "data.yaml"
    buckets = {"sizes": ["64x64"], "frames": [9, 17]}
    part = {"name": "manifest", "data": {"manifest": str(run / "manifest.jsonl"), "buckets": buckets}}
    settings.write_text(yaml.safe_dump({"run": {"name": "x", "seed": 0, "steps": 1}, "part": part}))
    assert validate([str(run / "manifest.jsonl"), "--config", str(settings)]) == 0
    assert f"{kept(run)}  kept" in capsys.readouterr().out
    rows = [line.row for line in read_manifest(run / "manifest.jsonl").lines]
    assert len(rows) == kept(run) > 0
    assert all((run / path).exists() for row in rows for path in row.paths().values())
    assert all(row.start_frame <= row.target_frame_index < row.start_frame + row.num_frames for row in rows)


def test_the_same_command_again_computes_nothing_and_changes_no_byte(copy, tmp_path):
    before = outputs(copy)
    assert main([str(config(tmp_path, len(FAULTS))), "--out", str(copy)]) == 0
    assert outputs(copy) == before
    assert json.loads((copy / "progress.jsonl").read_text().splitlines()[-1])["rows"] == 0


def test_another_threshold_runs_no_stage(copy, capsys):
    parts = {path: path.stat().st_mtime_ns for path in (copy / "parts").rglob("*.jsonl")}
    before = kept(copy)
    assert main(["filter", "--out", str(copy), "--set", "person.min_area=0.99"]) == 0
    assert kept(copy) == 0 < before
    assert "person.min_area" in capsys.readouterr().out
    assert main(["filter", "--out", str(copy), "--set", "person.min_area=0"]) == 0
    assert kept(copy) >= before
    assert {path: path.stat().st_mtime_ns for path in (copy / "parts").rglob("*.jsonl")} == parts


def with_gate(folder, root, gate):
    data = json.loads((root / "settings.json").read_text()) | {"gate": gate}
    path = folder / "gated.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_gate_keeps_the_same_pairs_and_asks_models_about_fewer_rows(copy, tmp_path, capsys):
    before = (copy / "manifest.jsonl").read_bytes()
    path = with_gate(tmp_path, copy, {"dark": {"min_brightness": 0.2}, "person": {"max_count": 1}})
    assert main([str(path), "--out", str(copy)]) == 0
    assert (copy / "manifest.jsonl").read_bytes() == before
    stages = json.loads((copy / "funnel.json").read_text())["stages"]
    assert stages["person"]["dropped"] == {"gate.dark.min_brightness": 1}
    assert stages["masks"]["dropped"] == {"gate.person.max_count": 1}
    assert json.loads((copy / "progress.jsonl").read_text().splitlines()[-1])["rows"] == 0  # all had been answered
    assert "1 gate.person.max_count" in capsys.readouterr().out
    assert main(["filter", "--out", str(copy), "--set", "dark.min_brightness=0.1"]) == 2
    assert "gate" in capsys.readouterr().err
    assert main(["filter", "--out", str(copy), "--set", "dark.min_brightness=0.3"]) == 0


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"dark": {"min_brightness": 0.5}}, "looser than gate.dark.min_brightness"),
        ({"dark": {"max_brightness": 0.5}}, "filters.dark.max_brightness"),
        ({"verify": {"min_same": 0.1}}, "no expensive stage"),
    ],
)
def test_a_gate_that_could_not_hold_is_a_mistake(gate, words, run, tmp_path, capsys):
    assert main([str(with_gate(tmp_path, run, gate)), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_the_what_if_table_says_what_filter_then_gives(run):
    settings = read_config(run / "settings.json")
    job = job_of(settings, run)
    rows = [found.row for found in account_of(job, settings, job.sources.names()).decisions]
    rules = [rule for rule in rules_of(settings.filters) if rule.stage != "dedup"]
    table = what_if(decide(rows, rules))
    assert len(table) == len(rules)
    for rule in rules:
        for entry in table[rule.name]:
            changed = [Rule(x.stage, x.bound, entry["threshold"]) if x is rule else x for x in rules]
            assert decide(rows, changed).kept == entry["kept"]


@pytest.mark.slow
def test_a_kill_at_any_time_and_the_same_command_give_the_same_bytes(run, tmp_path):
    path, out = config(tmp_path, len(FAULTS)), tmp_path / "killed"
    command = [sys.executable, str(ROOT / "data_pipeline" / "run.py"), str(path), "--out", str(out)]
    for count in (3, 30):  # parts on disk when it is killed, workers too
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while len(list((out / "parts").glob("*/*.jsonl"))) < count and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.jsonl").exists()
    assert main([str(path), "--out", str(out)]) == 0
    assert outputs(out) == outputs(run)


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_is_killed(tmp_path):
    """Else it would go on writing beside the next run."""
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "data_pipeline" / "run.py"), str(config(tmp_path, 200)), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not list((out / "parts").glob("*/*.jsonl")) and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    time.sleep(1)  # what was being written is
    before = len(list((out / "parts").glob("*/*.jsonl")))
    time.sleep(3)
    assert len(list((out / "parts").glob("*/*.jsonl"))) == before > 0


def test_status_inspect_and_card(copy, capsys):
    assert main(["status", "--out", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "rows after verify" in said
    assert "rows left" not in said
    part = next(copy.glob("parts/*-verify-*/000000.jsonl"))
    whole = part.read_bytes()
    part.unlink()
    assert main(["status", "--out", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "1  rows left of verify" in said
    assert "with 64 workers" in said
    part.write_bytes(whole)
    name = read_manifest(copy / "manifest.jsonl").lines[0].row.id
    assert main(["inspect", name, "--out", str(copy)]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["person.count"] == 1
    assert main(["inspect", "nobody", "--out", str(copy)]) == 2
    assert main(["card", "--out", str(copy)]) == 0
    card = (copy / "README.md").read_text()
    assert "| person.min_area |" in card
    assert "Apache-2.0" in card
    assert main(["measure", "--out", str(copy)]) == 0


def test_poisoned_files_stop_nothing_and_a_dry_run_writes_nothing(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(run / "sources" / "000000" / "video.mp4", folder / "good.mp4")
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (folder / "empty.mp4").touch()
    (folder / "._good.mp4").touch()  # macOS leaves such files
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(whole[: len(whole) // 2])
    path = tmp_path / "pixels.yaml"
    data = {"chain": "pixels", "source": "test", "license": "CC0-1.0", "sources": {"folder": str(folder)}}
    path.write_text(yaml.safe_dump(data | {"filters": {"dark": {"min_brightness": 0.1}}, "engine": {"workers": 1}}))
    assert main([str(path), "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    assert main([str(path), "--out", str(out)]) == 0
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["kept"], funnel["failed"]) == (1, 0)
    assert funnel["stages"]["probe"]["dropped"] == {"undecodable": 3}
    assert not (out / "manifest.jsonl").exists()
    said = capsys.readouterr().out
    assert f"gallery --out {out}" in said
    assert main(["gallery", "--out", str(out)]) == 0
    page = (out / "gallery" / "probe_undecodable.html").read_text()
    assert page.count("<article") == 3
    assert "<img" not in page  # there is nothing to show
    assert page.count("cannot be decoded") == 3  # but something to say, and without the output folder's name
    assert str(out) not in page
    assert main(["card", "--out", str(out)]) == 0
    assert "References" not in (out / "README.md").read_text()


def test_failed_sources_above_the_share_end_with_3(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(run / "sources" / "000000" / "video.mp4", folder / "good.mp4")
    (folder / "gone.mp4").symlink_to(folder / "good.mp4")
    path = tmp_path / "pixels.yaml"
    data = {"chain": "pixels", "source": "test", "license": "CC0-1.0", "sources": {"folder": str(folder)}}
    path.write_text(yaml.safe_dump(data | {"engine": {"workers": 1, "retries": 0}}))
    out = tmp_path / "out"
    job_of(read_config(path), out).part_path(1, "gone.mp4").mkdir(parents=True)  # where its part cannot be written
    assert main([str(path), "--out", str(out)]) == 3
    assert "traceback" in json.loads((out / "failed" / "gone.mp4.json").read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain": "nothing"}, "chain"),
        ({"filters": {"person": {"area": 1}}}, "person.area"),
        ({"sources": {}}, "one of folder and world"),
        ({"extra": 1}, "extra"),
        ({"filters": {"persn": {"max_count": 1}}}, "has no stage persn: probe, shots"),
        ({"filters": {"ocr": {"max_area": 0.1}}}, "It needs text: true"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(change, words, tmp_path, capsys):
    path = config(tmp_path, 2)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_key_that_is_there_twice_is_a_mistake(tmp_path, capsys):
    """YAML keeps the last one: the rules of the first would be gone without a word."""
    path = config(tmp_path, 2)
    path.write_text(path.read_text() + "filters:\n  dark: {min_brightness: 0.1}\n")
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "the key filters is in line" in capsys.readouterr().err


def test_wrong_overrides_and_stages_are_mistakes_too(copy, tmp_path, capsys):
    assert main(["filter", "--out", str(copy), "--set", "person.min_area"]) == 2
    assert main(["filter", "--out", str(copy), "--set", "person.min_height=1"]) == 2
    assert "person.height" in capsys.readouterr().err
    assert main([str(config(tmp_path, 2)), "--out", str(tmp_path / "o"), "--only", "nothing"]) == 2
    assert main([str(config(tmp_path, 2)), "--out", str(copy)]) == 2  # other sources than the folder's
    assert main(["status", "--out", str(tmp_path)]) == 2


def row(source, track, hashes="0" * 64):
    return Row(source=source, sha256="0" * 64, video="v", labels={"person.track": track, "hashes.frames": hashes})


def test_splits_keep_sources_and_identities_together():
    rows = [row(f"s{number}", f"p{number}") for number in range(200)]
    rows += [row("s0", "p1"), row("s2", "p1"), row("s3", "p199")]
    people = [one.labels["person.track"] for one in rows]
    splits = split_rows((one.source, person) for one, person in zip(rows, people, strict=True))
    assert {"train", "val", "test"} == set(splits)
    assert len({splits[0], splits[1], splits[2], splits[200], splits[201]}) == 1
    assert len({splits[3], splits[199], splits[202]}) == 1
    backwards = split_rows((one.source, person) for one, person in zip(rows[::-1], people[::-1], strict=True))
    assert backwards[::-1] == splits


def test_a_duplicate_of_a_duplicate_is_measured_against_what_is_kept():
    hashes = ["0" * 192, "0" * 191 + "1", "f" * 192]
    kept = KeptHashes(0.1)
    kept.keep(row("a", "p", hashes[0]))
    found = [kept.nearest(row("a", "p", one)) for one in hashes[1:]]
    assert found == [pytest.approx(1 / 768), 1]
