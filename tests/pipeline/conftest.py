"""A finished run of the chain world over a source of each fault, for every test file of the pipeline."""

import shutil
from pathlib import Path

import pytest
import yaml

from data_pipeline.commands import main
from data_pipeline.world_sources import FAULTS

CONFIG = Path(__file__).resolve().parents[2] / "data_pipeline" / "configs" / "world.yaml"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The output folder; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    data = yaml.safe_load(CONFIG.read_text())
    data["sources"]["world"] |= {"count": len(FAULTS), "seed": 5}
    path = folder / "world.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    assert main([str(path), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def copy(run, tmp_path):
    """The run again, to change."""
    return Path(shutil.copytree(run, tmp_path / "out"))
