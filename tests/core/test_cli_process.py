"""The command as a process: Ctrl-C at any moment, a full disk, and a quick start."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from contextanyone_core import cli
from contextanyone_core.cli import streams
from contextanyone_core.media.video_io import read_metadata

COMMAND = [sys.executable, "-c", "import sys; from contextanyone_core.cli import main; sys.exit(main())"]


@pytest.fixture
def words(tmp_path, tiny_folder) -> list[str]:
    """A command that writes into the folder `out`."""
    (tmp_path / "out").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    asked = ["--reference", str(tmp_path / "good.png"), "--first", "A woman.", "--weights", str(tiny_folder)]
    small = ["--frames", "5", "--size", "32x32", "--steps", "1"]
    return [*COMMAND, "generate", *asked, *small, "--out", str(tmp_path / "out" / "clip.mp4")]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, seen
        seen += piece
    return seen


def test_interrupted_while_sampling(words, tmp_path):
    process = start([*words, "--steps", "1000"])
    wait_for(process, b"/1000")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert out == b""
    assert b"Traceback" not in err
    assert err.endswith(b"contextanyone: interrupted\n")
    assert list((tmp_path / "out").iterdir()) == []


def assert_interrupted(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command in this process; something in it raises SIGINT."""
    assert cli.main(words) == 130
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.endswith("contextanyone: interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "module", "name"),
    [
        ("cli", "generate", "read_request"),
        ("cli", "generate", "_load"),
        ("media", "video_io", "_check_free"),
        ("media", "video_io", "_write_mp4"),
        ("media", "video_io", "_save_png"),
    ],
)
def test_interrupted_elsewhere(words, tmp_path, monkeypatch, capsys, package, module, name):
    place = f"contextanyone_core.{package}.{module}.{name}"
    monkeypatch.setattr(place, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert_interrupted(words[3:], tmp_path / "out", capsys)


def test_interrupted_where_a_library_makes_another_error_of_it(words, tmp_path, monkeypatch, capsys):
    def angry(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("half a library") from error

    monkeypatch.setattr("contextanyone_core.cli.generate._load", angry)
    assert_interrupted(words[3:], tmp_path / "out", capsys)


def assert_no_room(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1
    assert "no room left" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_no_room_for_the_file(words, tmp_path, capsys, name):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
    try:
        assert_no_room([*words[3:-1], str(tmp_path / "out" / name)], tmp_path / "out", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(words, tmp_path, capsys):
    disk = tmp_path / "out"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        for name in ("clip.mp4", "clip.webp", "clip"):
            assert_no_room([*words[3:-1], str(disk / name)], disk, capsys)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 9 GB)",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
        "DefaultCPUAllocator: can't allocate memory",
        "libtorch_cpu.so: failed to map segment from shared object",
        "can't start new thread",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_in_whatever_words(monkeypatch, capsys, said):
    def fail(words):
        raise RuntimeError(said)

    for command, module in (("generate", "generate"), ("convert", "weight_commands")):
        monkeypatch.setattr(f"contextanyone_core.cli.{module}.{command}", fail)
        assert cli.main([command]) == 1
        err = capsys.readouterr().err
        assert err.startswith("contextanyone: out of memory; ")
        assert err.count("\n") == 1
        assert ("--frames" in err) is (command == "generate")


def test_chinese_where_the_output_has_another_encoding(tmp_path):
    file = tmp_path / "\u4eba.safetensors"
    save_file({"weight": torch.zeros(1)}, file, {"note": "\u4e00\u4e2a\u4eba"})
    for path in (file, file.with_name("\u65e0.safetensors")):
        command, plain = [*COMMAND, "inspect", str(path)], os.environ | {"PYTHONIOENCODING": "cp1252"}
        result = subprocess.run(command, capture_output=True, check=False, env=plain)
        assert result.returncode == (0 if path == file else 2), result.stderr
        assert path.name in (result.stdout + result.stderr).decode()
        assert ("note: \u4e00\u4e2a\u4eba" in result.stdout.decode()) is (path == file)


LOADED = """
import sys
from contextanyone_core.cli import main
try:
    main(sys.argv[1:])
finally:
    found = {name.partition(".")[0] for name in sys.modules}
    sys.stderr.write("loaded: " + " ".join(sorted(found & {"torch", "diffusers", "transformers", "numpy", "PIL"})))
"""


@pytest.mark.parametrize(
    ("words", "heavy"),
    [([], ""), (["generate"], "PIL numpy"), (["inspect"], "PIL numpy"), (["init"], ""), (["convert"], "")],
)
def test_help_loads_nothing_that_is_slow(words, heavy):
    command = [sys.executable, "-c", LOADED, *words, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: " in result.stdout
    assert set(result.stderr.removeprefix("loaded: ").split()) <= set(heavy.split())


def test_a_quick_start():
    """Counted in processor time, so that a busy machine does not fail it."""
    before = os.times()
    subprocess.run([*COMMAND, "--version"], check=True, capture_output=True)
    subprocess.run([*COMMAND, "generate", "--help"], check=True, capture_output=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


WEIGHTS = Path(cli.__file__).parents[1] / "miniature" / "vae.safetensors"


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which $C is the command; the exit code is that of the command, also in front of a pipe."""
    command = " ".join(f"'{word}'" for word in COMMAND)
    lines = f'C() {{ {command} "$@"; }}\n{script}\nexit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", lines], capture_output=True, check=False, env=os.environ | variables)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("inspect $FILE >&-", 0),
        ("inspect $FILE <&- >&- 2>&-", 0),
        ("inspect nothing 2>&-", 2),
        ("inspect $FILE | true", 0),
        ("inspect $FILE | head -n 1", 0),
        ("inspect nothing 2>&1 | true", 2),
        ("generate --help | true", 0),
        ("inspect $FILE > /dev/full", 1),
        ("inspect nothing 2> /dev/full", 2),
    ],
)
def test_streams_that_are_closed_full_or_not_read(words, code):
    result = shell(f"C {words}", FILE=str(WEIGHTS))
    assert result.returncode == code, result.stderr
    assert result.stderr.count(b"\n") == (1 if "dev/full" in words and code == 1 else 0), result.stderr
    assert b"Traceback" not in result.stderr
    assert (b"no room left" in result.stderr) is (code == 1)


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&1 | true", "2> /dev/full"])
def test_a_clip_is_made_though_nobody_reads(words, tmp_path, streams):
    """Closed streams leave their numbers to the next files, which must not take what is meant for a terminal."""
    asked = " ".join(f"'{word}'" for word in words[3:])
    result = shell(f"C {asked} --steps 2 {streams}")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.contact.png", "clip.mp4"]
    assert read_metadata(tmp_path / "out" / "clip.mp4")["first"] == "A woman."


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("megabytes", [60, 500, 900])
def test_too_little_memory_for_the_libraries_themselves(words, tmp_path, megabytes):
    asked = " ".join(f"'{word}'" for word in words[3:-1])
    result = shell(f"ulimit -v {megabytes}000; C {asked} '{tmp_path / 'out' / 'clip.webp'}'", OMP_NUM_THREADS="1")
    assert b"Traceback" not in result.stderr
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith(b"contextanyone: out of memory: this process may use ")
    assert result.stderr.count(b"\n") == 1


BROKEN_COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "g++ 13.2.0"; exit 0;; esac
echo "cc1plus: fatal error: it is broken" >&2
exit 1
"""


def test_a_compiler_that_fails_is_told_in_one_line(words, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(BROKEN_COMPILER)
    compiler.chmod(0o755)
    plain = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run([*words, "--compile"], capture_output=True, check=False, env=plain)
    assert result.returncode == 1, result.stderr
    assert b"Traceback" not in result.stderr
    last = result.stderr.decode().rstrip().splitlines()[-1]
    assert last.startswith("contextanyone: the compiler failed (")
    assert "cc1plus: fatal error: it is broken" in last
    assert "leave --compile out" in last
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])  # as images for containers set it
def test_a_line_of_progress_is_written_when_it_is_made(unbuffered):
    """The process ends at once behind it, as by a kill, and writes nothing that it held back."""
    made = "import os, sys; from contextanyone_core.cli.streams import steady_streams\n"
    made += "with steady_streams(): sys.stderr.write('a line\\n'); os._exit(0)"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run([sys.executable, "-c", made], capture_output=True, check=True, env=environment)
    assert result.stderr == b"a line\n"


class Console(io.RawIOBase):
    """As Windows' console, which takes characters as UTF-8; bytes written to its descriptor show as another text."""

    def __init__(self) -> None:
        self.shown = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data) -> int:
        self.shown += bytes(data)
        return len(data)


@pytest.mark.parametrize("unbuffered", [False, True])
def test_windows_console_gets_characters(monkeypatch, unbuffered):
    console = Console()
    buffer = console if unbuffered else io.BufferedWriter(console)
    stream = io.TextIOWrapper(buffer, encoding="utf-8", line_buffering=True, write_through=unbuffered)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "__stderr__", stream)
    with streams.steady_streams():
        sys.stderr.write("C:/Users/Jörg/张伟.safetensors\n")
    assert console.shown.decode() == "C:/Users/Jörg/张伟.safetensors\n"


class PipeWithoutReader(io.FileIO):
    """As Windows has it: writing to it is an invalid argument."""

    def write(self, data) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_pipe_without_reader_on_windows_ends_nothing(tmp_path):
    class Output(streams._Steady, PipeWithoutReader):
        pass

    with (tmp_path / "out").open("wb") as file:
        assert Output(file.fileno(), errors_raise=True).write(b"text") == 4
