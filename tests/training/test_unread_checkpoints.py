"""Checkpoints that cannot be read, and are not damaged: nothing of them is lost."""

import json
from pathlib import Path
from typing import Any

import linear_part
import pytest
from processes import make_config

from training import state
from training.config import TrainConfig
from training.loop import train
from training.state import VersionError

assert linear_part.__name__  # it lists its part


def config_of(out: Path, steps: int) -> TrainConfig:
    return make_config(out, {"name": "linear"}, {"steps": steps, "save_every": 2, "keep_last": 2})


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": 99}, r"state.json: version 99\); this one reads"), ({}, r"state.json: version \d+, later_key\)")],
)
def test_one_of_another_version_ends_the_start_and_stays(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    train(config_of(tmp_path, 4))
    path = tmp_path / "checkpoints/step-00000004/state.json"
    written = json.loads(path.read_text())
    if not change:
        written["progress"]["later_key"] = 1
    path.write_text(json.dumps(written | change))
    with pytest.raises(VersionError, match=said):
        train(config_of(tmp_path, 6))
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_one_that_the_disk_does_not_give_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    train(config_of(tmp_path, 6))
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    hashed = state.file_sha256

    def stale(path: Path) -> str:
        if path.parent.name == "step-00000006":
            raise OSError(116, "Stale file handle", str(path))
        return hashed(path)

    with monkeypatch.context() as patch:
        patch.setattr(state, "file_sha256", stale)
        train(config_of(tmp_path, 5))
    assert "step-00000006 cannot be read: [Errno 116] Stale file handle" in caplog.text
    assert names(tmp_path) == ["step-00000004", "step-00000005", "step-00000006"]
    train(config_of(tmp_path, 8))
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
