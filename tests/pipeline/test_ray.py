"""The engine of Ray Data: the same bytes as processes write, resumption of one by the other, a poisoned source."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from data_pipeline.commands import main
from data_pipeline.engine.ray_data import packed, unpacked
from data_pipeline.engine.work import Done, Failed

CONFIG = Path(__file__).resolve().parents[2] / "data_pipeline" / "configs" / "world.yaml"
needs_ray = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("ray", "pyarrow", "pandas")),
    reason='needs Ray Data: pip install "ray[data]"',
)
OUTPUTS = ("decisions.jsonl", "funnel.json", "what_if.json", "manifest.jsonl", "filters.json", "clusters.json")


def config(folder, count):
    data = yaml.safe_load(CONFIG.read_text())
    data["sources"]["world"] |= {"count": count, "seed": 5}
    data["engine"] = {"workers": 2, "retries": 0, "max_failed": 0.5}
    path = folder / f"world{count}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@needs_ray
@pytest.mark.slow
def test_both_engines_write_the_same_bytes_and_resume_one_another(tmp_path):
    path = config(tmp_path, 4)
    assert main([str(path), "--out", str(tmp_path / "local")]) == 0
    assert main([str(path), "--out", str(tmp_path / "ray"), "--limit", "2"]) == 0
    assert main([str(path), "--out", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    for name in OUTPUTS:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    parts = {p.relative_to(tmp_path / "ray"): p.read_bytes() for p in (tmp_path / "ray" / "parts").rglob("*.jsonl")}
    assert parts
    assert all((tmp_path / "local" / name).read_bytes() == content for name, content in parts.items())
    assert not list((tmp_path / "ray" / "tries").iterdir())


@needs_ray
@pytest.mark.slow
def test_a_source_whose_actor_dies_each_time_fails_and_stops_nothing(tmp_path):
    path, out = config(tmp_path, 2), tmp_path / "out"
    (out / "tries").mkdir(parents=True)
    (out / "tries" / "000001.0").touch()  # what an actor leaves that dies at its only attempt
    assert main([str(path), "--out", str(out), "--engine", "ray"]) == 0
    assert json.loads((out / "failed" / "000001.json").read_text())["stage"] == "worker"
    assert json.loads((out / "funnel.json").read_text())["failed"] == 1
    assert main([str(path), "--out", str(out)]) == 0  # tried anew by the next run
    assert json.loads((out / "funnel.json").read_text())["failed"] == 0


@pytest.mark.parametrize(
    "outcome", [Done("a", 2, 3, ((2, 3, 0.5), (2, 0, 0.0))), Failed("done", "probe", "OSError: x", "Traceback")]
)
def test_an_outcome_comes_back_as_it_was_sent(outcome):
    found = unpacked(packed(outcome))
    assert found == outcome
    assert isinstance(found, Failed) or found.stages == outcome.stages


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_engine_is_a_mistake_of_one_line(tmp_path, capsys):
    assert main([str(config(tmp_path, 1)), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
