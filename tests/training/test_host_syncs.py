"""A step waits for the device once: for its line in the log and the decision whether it is finite."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from cached_world import build, settings_for, write_small_world
from on_card import CARD, OnCard, OnDevice
from torch import Tensor

from contextanyone_core.model.regions import Regions
from training.config import parse_config
from training.parts.joint_head import JointHead
from training.trainer import build_trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Any:
    data = settings_for(write_small_world(tmp_path_factory.mktemp("syncs") / "world", 3), tiny_folder)
    assert build(data)
    part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "drop_reference": 0.0}
    run = {"name": "syncs", "steps": 9, "workers": 0, "threads": 1}
    init = {"from": str(tiny_folder / "transformer.safetensors")}
    return build_trainer(parse_config({"run": run, "part": part, "init": init}), None)


def test_a_read_is_noticed() -> None:
    tensor = torch.ones(2).as_subclass(OnDevice)
    OnDevice.reads.clear()
    found = (tensor * 2 + torch.ones(2))[tensor > 0][[0]]
    assert bool(found.sum() > 0)
    assert OnDevice.reads == ["__getitem__", "__getitem__", "__bool__"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_host_waits_once_in_a_step(trainer: Any, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    norm = torch.nn.utils.get_total_norm  # of gradients, which are on the device as the parameters are
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda given: norm(given).as_subclass(OnDevice))
    batches = []
    for number in range(accumulate):
        batch = trainer.part.batch(number)
        tagged = {k: v.as_subclass(OnDevice) if isinstance(v, Tensor) else v for k, v in batch.items()}
        batches.append(batch | tagged)
    OnDevice.reads.clear()
    record = trainer.step(*batches)
    assert {"loss", "video", "reference", "grad_norm"} < record.keys()
    assert OnDevice.reads == ["tolist"]


class Sends:
    """What was copied to a card: the tensors with the options of the copy, and those that were pinned."""

    def __init__(self) -> None:
        self.pinned: list[Tensor] = []
        self.sent: list[tuple[Tensor, dict[str, Any]]] = []

    def shapes(self) -> list[torch.Size]:
        """Of all that was copied, after checking that no copy waits for what the card has to do before."""
        assert all(options == {"non_blocking": True} for _, options in self.sent)
        assert all(any(tensor is one for one in self.pinned) for tensor, _ in self.sent)
        return [tensor.shape for tensor, _ in self.sent]


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Sends:
    noted, move = Sends(), Tensor.to

    def sending(self: Tensor, *given: Any, **options: Any) -> Tensor:
        if given[:1] != (CARD,):
            return move(self, *given, **options)
        noted.sent.append((self, options))
        return self

    def pin(self: Tensor) -> Tensor:
        noted.pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "to", sending)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return noted


def test_what_a_step_sends_to_a_card_is_pinned(trainer: Any, sends: Sends) -> None:
    """A copy of other memory waits for all that the card has to do before; what every step needs is there already."""
    part, batch = trainer.part, trainer.part.batch(0)
    batch |= {k: v.as_subclass(OnCard) for k, v in batch.items() if isinstance(v, Tensor)}
    clips = part.encoded(batch)
    draws = part.draws(clips, 0, torch.Generator().manual_seed(0))
    part.texts(batch, draws)
    each = (len(clips.latents),)  # noise levels, and who keeps the text
    assert sends.shapes() == [clips.latents.shape, each, each, clips.reference_latents.shape, each]


def test_the_tokens_that_name_a_person_are_pinned(sends: Sends) -> None:
    latents = torch.zeros(3, 16, 1, 2, 2).as_subclass(OnCard)
    guide = Regions(torch.ones(3, 1, 1, 2, 2), ((1,), (), (2,))).guide(latents, (1, 2, 2), 8)
    assert guide is not None
    assert sends.shapes() == [(2,), (2, 7)]
    assert guide.groups[0].videos.tolist() == [0, 2]
    assert guide.groups[0].tokens.tolist() == [[0, 2, 3, 4, 5, 6, 7], [0, 1, 3, 4, 5, 6, 7]]


def test_the_host_does_not_wait_for_the_joints_of_a_pose() -> None:
    head, tokens, joints = JointHead(8), torch.randn(2, 4, 8), torch.rand(2, 1, 14, 2)
    wanted = head(tokens, (1, 2, 2), joints)
    OnDevice.reads.clear()
    found = head(tokens.as_subclass(OnDevice), (1, 2, 2), joints.as_subclass(OnDevice))
    assert OnDevice.reads == []
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
