"""Hashes of weights: computed once for a path, size and time, by any number of processes, and never wrong for it."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contextanyone_core.weights.file_hash import sha256_of


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "contextanyone" / "sha256.json"


def write(path: Path, content: bytes, time: int = 1_700_000_000) -> Path:
    path.write_bytes(content)
    os.utime(path, (time, time))
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(cache, tmp_path):
    file = write(tmp_path / "a.safetensors", b"one")
    assert sha256_of(file) == digest(b"one")
    write(file, b"two")  # the same size and time: nothing shows that it is another
    assert sha256_of(file) == digest(b"one")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert sha256_of(link) == digest(b"one")
    assert len(json.loads(cache.read_text())) == 1


def test_another_size_time_or_path_is_another_file(cache, tmp_path):
    file = write(tmp_path / "a.safetensors", b"one")
    sha256_of(file)
    for content, time in ((b"three", 1_700_000_000), (b"two", 1_700_000_001)):
        write(file, content, time)
        assert sha256_of(file) == digest(content)
    assert sha256_of(write(tmp_path / "b.safetensors", b"six")) == digest(b"six")


def test_a_file_that_has_just_changed_is_not_kept(cache, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    assert sha256_of(file) == digest(b"one")
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"x": 3}', b"[" * 100_000])
def test_a_damaged_cache_is_written_anew(cache, tmp_path, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    file = write(tmp_path / "a.safetensors", b"one")
    assert sha256_of(file) == digest(b"one")
    assert json.loads(cache.read_text())[str(file)]["sha256"] == digest(b"one")
    assert list(cache.parent.iterdir()) == [cache]


def test_entries_of_another_form_are_not_believed(cache, tmp_path):
    file = write(tmp_path / "a.safetensors", b"one")
    cache.parent.mkdir(parents=True)
    for entry in (3, {"seen": [3, 1]}, {"seen": [3, 1_700_000_000 * 10**9], "sha256": 5}):
        cache.write_text(json.dumps({str(file): entry}))
        assert sha256_of(file) == digest(b"one")


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    file = write(tmp_path / "a.safetensors", b"one")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sha256_of(file) == digest(b"one")
    assert (tmp_path / "file").read_bytes() == b""


def test_without_the_variable_it_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not absolute: to be ignored, by the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    sha256_of(write(tmp_path / "a.safetensors", b"one"))
    assert (tmp_path / ".cache/contextanyone/sha256.json").is_file()
    assert not Path("relative").exists()


def test_many_at_once(cache, tmp_path):
    files = [write(tmp_path / f"{index}.safetensors", str(index).encode() * 1000) for index in range(40)]
    script = "import sys; from pathlib import Path; from contextanyone_core.weights.file_hash import sha256_of\n"
    script += "for name in sys.argv[1:]: print(sha256_of(Path(name)))"
    command = [sys.executable, "-c", script, *map(str, files)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(sha256_of, files))
    wanted = [digest(file.read_bytes()) for file in files]
    assert found == wanted
    for process in others:
        assert process.communicate()[0].split() == wanted
    held = json.loads(cache.read_text())
    assert all(held[name]["sha256"] == digest(Path(name).read_bytes()) for name in held)
    assert list(cache.parent.iterdir()) == [cache]
