"""Lets the tests of this folder import their own helper modules (linear_part); a pool of small shards."""

import sys
from pathlib import Path

import pytest

from training.data import pool

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs a file, so that a pool of four has more than one."""
    monkeypatch.setattr(pool, "_SHARD", 2)
