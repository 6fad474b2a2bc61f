"""A step waits for the device once: for its line in the log and the decision whether it is finite."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from cached_world import build, settings_for, write_small_world
from torch import Tensor

from training.config import parse_config
from training.trainer import build_trainer

_READS = {"item", "tolist", "cpu", "numpy", "nonzero", "equal", "__bool__", "__float__", "__int__", "__index__"}


_CARD = torch.device("cuda")


class OnDevice(Tensor):
    """A tensor that a card would have; so is whatever is computed from one. What makes the host wait is noted."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        masked = name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if (name in _READS or masked) and isinstance(args[0], cls):
            cls.reads.append(name)
        return super().__torch_function__(function, types, args, kwargs or {})


class OnCard(OnDevice):
    """One that says so."""

    device = property(lambda _: _CARD)  # type: ignore[assignment]


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
    found = (tensor * 2 + torch.ones(2))[tensor > 0]
    assert bool(found.sum() > 0)
    assert OnDevice.reads == ["__getitem__", "__bool__"]


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


def test_what_a_step_sends_to_a_card_is_pinned(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of other memory waits for all that the card has to do before; what every step needs is there already."""
    pinned: list[Tensor] = []
    sent: list[tuple[Tensor, dict[str, Any]]] = []
    move = Tensor.to

    def sending(self: Tensor, *given: Any, **options: Any) -> Tensor:
        if given[:1] != (_CARD,):
            return move(self, *given, **options)
        sent.append((self, options))
        return self

    def pin(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "to", sending)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    part, batch = trainer.part, trainer.part.batch(0)
    batch |= {k: v.as_subclass(OnCard) for k, v in batch.items() if isinstance(v, Tensor)}
    clips = part.encoded(batch)
    draws = part.draws(clips, 0, torch.Generator().manual_seed(0))
    part.texts(batch, draws)
    each = (len(clips.latents),)  # noise levels, and who keeps the text
    wanted = [clips.latents.shape, each, each, clips.reference_latents.shape, each]
    assert [tensor.shape for tensor, _ in sent] == wanted
    assert all(options == {"non_blocking": True} for _, options in sent)
    assert all(any(tensor is one for one in pinned) for tensor, _ in sent)
