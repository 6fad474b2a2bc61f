"""`precision: auto` and every other choice of bf16, on processors with and without arithmetic for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import linear_part
import pytest
import torch

from contextanyone_core.errors import InputError
from contextanyone_core.runtime import processor
from training.config import TrainConfig, load_config, parse_config
from training.data.pool import open_pool
from training.evaluation.settings import load_settings
from training.loop import train
from training.muon import orthogonal
from training.parts.base import PartContext
from training.parts.transformer import Settings, TransformerPart
from training.settings import presets

assert linear_part.__name__  # lists its part
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLAGS = {"new": "avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "old": "avx2 fma"}
EVALUATION = next(path for path in presets()[0].parents if path.name == "configs") / "miniature" / "evaluate.yaml"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes this a machine with the processor of that name."""

    def switch(name: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"flags : {FLAGS[name]}\n")
        monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
        processor.this_processor.cache_clear()

    yield switch
    processor.this_processor.cache_clear()


def make_config(out: Path, precision: str, **run: Any) -> TrainConfig:
    run = {"name": "t", "steps": 2, "threads": 1, "workers": 0, "out": out} | run
    return parse_config({"run": run, "part": {"name": "linear"}, "precision": precision})


@pytest.mark.parametrize(("name", "precision"), [("new", "bf16"), ("old", "fp32")])
def test_auto_goes_by_the_processor_and_the_run_keeps_it(
    tmp_path: Path, on: Callable[[str], None], caplog: pytest.LogCaptureFixture, name: str, precision: str
) -> None:
    on(name)
    caplog.set_level("INFO")
    train(make_config(tmp_path / "run", "auto"))
    assert load_config(tmp_path / "run" / "config.yaml").precision == precision
    assert f"precision: auto is {precision} here" in caplog.text
    assert "many times slower" not in caplog.text
    on("old" if name == "new" else "new")
    train(make_config(tmp_path / "run", "auto", steps=3))
    assert load_config(tmp_path / "run" / "config.yaml").precision == precision
    assert ("many times slower" in caplog.text) is (precision == "bf16")
    with pytest.raises(InputError, match="precision"):
        train(make_config(tmp_path / "run", "fp32" if precision == "bf16" else "bf16", steps=4))


@pytest.mark.parametrize(("name", "slow"), [("new", False), ("old", True)])
def test_bf16_that_is_asked_for_is_kept_and_called_slow(
    tmp_path: Path, on: Callable[[str], None], caplog: pytest.LogCaptureFixture, name: str, slow: bool
) -> None:
    on(name)
    train(make_config(tmp_path / "run", "bf16"))
    assert load_config(tmp_path / "run" / "config.yaml").precision == "bf16"
    assert ("precision is bf16, which this processor computes many times slower" in caplog.text) is slow


def test_no_preset_for_the_miniature_forces_bf16() -> None:
    forced = {path.stem for path in presets() if load_config(path).precision == "bf16"}
    assert forced == {"contextanyone_1.3b", "lora_1.3b"}


def test_muon_computes_in_what_the_processor_has(on: Callable[[str], None]) -> None:
    matrix = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    for name, dtype in (("new", torch.bfloat16), ("old", torch.float32)):
        on(name)
        found = orthogonal(matrix[None])
        assert found.dtype is dtype
        values = torch.linalg.svdvals(found.float())
        assert 0.6 < values.min() <= values.max() < 1.35


def test_pairs_are_encoded_in_what_the_processor_has_into_one_pool(
    tmp_path: Path, tiny_folder: Path, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.pool._SHARD", 2)
    settings = Settings(weights=tiny_folder, pools=tmp_path, num_frames=5, size=32, batch=2, pairs=2, sample_steps=1)
    pools, hashes = [], []
    for name, dtype in (("new", torch.bfloat16), ("old", torch.float32)):
        on(name)
        part = TransformerPart(settings, PartContext(5, CPU, tiny_folder / "transformer.safetensors"))
        assert part.vae.dtype is dtype
        hashes.append((part._key, part.data_hash()))
        pools.append(open_pool(tmp_path / name, part._key, part.vae, part.image_encoder))
    assert hashes[0] == hashes[1]
    assert not torch.equal(pools[0].latents, pools[1].latents)
    torch.testing.assert_close(pools[0].latents, pools[1].latents, atol=0.1, rtol=0.1)


def test_an_evaluation_is_made_in_what_the_processor_has(
    on: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    shipped = load_settings(EVALUATION)
    for name, dtype in (("new", "bfloat16"), ("old", "float32")):
        on(name)
        settled = shipped.settled(CPU)
        assert (settled.dtype, settled.vae_dtype) == (dtype, dtype)
        assert shipped.settled(CUDA).dtype == "bfloat16"
    assert caplog.text == ""
    forced = load_settings(EVALUATION, ["dtype=bfloat16"]).settled(CPU)
    assert (forced.dtype, forced.vae_dtype) == ("bfloat16", "float32")
    assert "dtype is bfloat16, which this processor computes many times slower" in caplog.text
