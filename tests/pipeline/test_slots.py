"""Workers of one machine: each has a number of its own, by which those of several GPUs are shared out."""

import pytest
import torch

from data_pipeline.engine import slots
from data_pipeline.engine.slots import own_card, take_slot


@pytest.fixture(autouse=True)
def held(monkeypatch):
    monkeypatch.setattr(slots, "_held", [])
    monkeypatch.setenv("CONTEXTANYONE_WORKER", "0")
    return slots


def test_a_number_is_free_again_when_its_worker_ended(tmp_path):
    assert [take_slot(tmp_path, 3) for _ in range(3)] == [0, 1, 2]
    slots._held.pop(1).close()  # as the system does for a process that ends
    assert take_slot(tmp_path, 3) == 1


def test_workers_go_round_the_cards_and_a_named_card_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for _ in range(3):
        take_slot(tmp_path, 3)
        found.append(own_card("cuda"))
    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    assert [own_card(name) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_card("cuda") == "cuda"
