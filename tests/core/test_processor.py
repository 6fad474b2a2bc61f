"""What a processor computes in: read from /proc/cpuinfo, for processors with and without half precision."""

import platform

import pytest
import torch

from contextanyone_core.cli import main
from contextanyone_core.runtime import processor
from contextanyone_core.runtime.processor import Processor, card_dtype, fast_dtype, is_slow, this_processor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HASWELL = "processor\t: 0\nmodel name\t: Xeon E5-2699\nflags\t\t: fpu sse4_2 fma avx avx2 f16c\n"
SKYLAKE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni\n"
SAPPHIRE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8\n"
ZEN4 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp sve bf16 i8mm\n"
GRAVITON2 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp\n"
BFLOAT16 = {HASWELL: False, SKYLAKE: False, SAPPHIRE: True, ZEN4: True, GRAVITON3: True, GRAVITON2: False, "": False}
FLOAT16 = {HASWELL: False, SKYLAKE: False, SAPPHIRE: True, ZEN4: False, GRAVITON3: True, GRAVITON2: True, "": False}


@pytest.mark.parametrize("cpuinfo", BFLOAT16)
def test_a_processor_computes_in_what_it_lists(cpuinfo):
    found = Processor.from_cpuinfo(cpuinfo)
    assert found.computes_in(torch.bfloat16) is BFLOAT16[cpuinfo]
    assert found.computes_in(torch.float16) is FLOAT16[cpuinfo]
    assert found.computes_in(torch.float32)
    assert is_slow(torch.bfloat16, CPU, found) is not BFLOAT16[cpuinfo]
    assert fast_dtype(CPU, found) is (torch.bfloat16 if BFLOAT16[cpuinfo] else torch.float32)


def test_a_card_is_not_asked_for_the_processor():
    assert fast_dtype(CUDA, Processor(frozenset())) is torch.bfloat16
    assert not is_slow(torch.float16, CUDA, Processor(frozenset()))


def test_a_processor_has_the_name_that_the_system_gives_it_or_its_architecture():
    assert Processor.from_cpuinfo(HASWELL).name == "Xeon E5-2699"
    assert Processor.from_cpuinfo(GRAVITON3).name == platform.machine()


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_card_that_emulates_bfloat16_is_slow_in_it(monkeypatch, bfloat16):
    """Those before Ampere: torch computes there too, but neither tensor cores nor fused attention do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
    )
    assert is_slow(torch.bfloat16, CUDA) is not bfloat16
    assert not is_slow(torch.float16, CUDA)
    assert fast_dtype(CUDA) is card_dtype(CUDA) is (torch.bfloat16 if bfloat16 else torch.float32)
    assert card_dtype(CPU) is torch.float32


def test_without_cpuinfo_float32_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    this_processor.cache_clear()
    try:
        assert fast_dtype(CPU) is torch.float32
    finally:
        this_processor.cache_clear()


@pytest.mark.parametrize(("cpuinfo", "warned"), [(HASWELL, True), (SAPPHIRE, False)])
def test_generate_says_that_a_dtype_is_slow_here(tmp_path, tiny_folder, monkeypatch, capsys, cpuinfo, warned):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    this_processor.cache_clear()
    small = ["--frames", "5", "--size", "32x32", "--steps", "1", "--first", "A.", "--weights", str(tiny_folder)]
    try:
        assert main(["generate", *small, "--dtype", "bfloat16", "--out", str(tmp_path / "clip")]) == 0
    finally:
        this_processor.cache_clear()
    assert ("--dtype is bfloat16, which this processor" in capsys.readouterr().err) is warned
