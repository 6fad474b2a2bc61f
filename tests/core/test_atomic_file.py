"""Files appear under their names whole, together and with the mode of the umask, or not at all."""

import errno
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from contextanyone_core.atomic_file import whole_file, whole_files, write_text
from contextanyone_core.encoders.vae import build_vae, mini_vae_config, save_vae
from contextanyone_core.errors import CheckpointError
from contextanyone_core.weights.tensors import TensorInfo
from contextanyone_core.weights.writer import write_streamed
from training.data.manifest import write_lines
from training.data.shards import ShardStore
from training.state import CheckpointStore, Progress


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_writer_gives_the_mode_of_the_umask(tmp_path, umask):
    """The safetensors library writes its files as 0600, whatever the umask says."""
    write_text(tmp_path / "text", "a")
    write_lines(tmp_path / "rows.jsonl", ["{}"])
    save_vae(build_vae(mini_vae_config() | {"base_dim": 4}), tmp_path / "vae.safetensors")
    plan = {"a": TensorInfo("F32", (2,))}
    write_streamed(tmp_path / "streamed.safetensors", plan, lambda name: torch.ones(2), {})
    ShardStore(tmp_path / "cache").write({"key": {"a": torch.ones(2)}})
    CheckpointStore(tmp_path / "run").save(Progress(step=1), {"model": {"a": torch.ones(2)}})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: oct(mode(path)) for path in files if mode(path) != 0o666 & ~umask} == {}
    assert mode(tmp_path / "run/step-00000001") == 0o777 & ~umask


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, SystemExit])
def test_nothing_is_left_of_a_block_that_ends_ill(tmp_path, stop):
    (tmp_path / "a").write_text("old")

    def write_half():
        with whole_files(tmp_path / "a", tmp_path / "b") as folder:
            (folder / "a").write_text("new")
            (folder / "b").mkdir()
            raise stop

    with pytest.raises(stop):
        write_half()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("there", ["full folder", "empty folder"])
def test_all_take_their_places_or_none(tmp_path, there):
    """The last one finds a folder in its place, which it must not replace."""
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").mkdir()
    if there == "full folder":
        (tmp_path / "c" / "work").write_text("of somebody")

    def write():
        with whole_files(tmp_path / "a", tmp_path / "b", tmp_path / "c") as folder:
            for name in "abc":
                (folder / name).write_text("new")

    with pytest.raises(IsADirectoryError):
        write()
    assert names(tmp_path) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "old a"
    assert names(tmp_path / "c") == (["work"] if there == "full folder" else [])


def test_a_folder_replaces_an_empty_folder_only(tmp_path):
    def write():
        with whole_file(tmp_path / "out") as beside:
            beside.mkdir()
            (beside / "frame").write_text("new")

    (tmp_path / "out").mkdir()
    write()
    assert names(tmp_path / "out") == ["frame"]
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        write()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["frame", "mine"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    monkeypatch.setattr("os.fsync", lambda number: synced.append((os.fstat(number).st_ino, path.exists())))
    write_text(path, "text")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


MANY = """
import sys
from pathlib import Path
from contextanyone_core.atomic_file import write_text
for _ in range(50):
    write_text(Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_several_processes_write_one_file(tmp_path):
    """Also with equal process ids, as on several hosts: the names beside do not depend on them."""
    path = tmp_path / "shared"
    processes = [subprocess.Popen([sys.executable, "-c", MANY, str(path), letter]) for letter in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    text = path.read_text()
    assert text == text[0] * 5000
    assert names(tmp_path) == ["shared"]


def test_a_name_as_long_as_the_system_allows(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert names(tmp_path) == ["x" * 255]


def test_an_error_names_the_folder_that_the_user_knows(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "no" / "a", "text")
    assert caught.value.filename == str(tmp_path / "no")


def test_a_file_that_windows_keeps_open_is_named(tmp_path, monkeypatch):
    """As by ComfyUI, which maps the weights that it has loaded: there the system does not let them be replaced."""
    path = tmp_path / "me.safetensors"
    path.write_text("in use")
    replace = Path.replace

    def refuse(self, target):
        if target == path:
            raise PermissionError(errno.EACCES, "Access is denied", str(self), None, str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("contextanyone_core.atomic_file._WINDOWS", True)
    with pytest.raises(PermissionError) as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)
    assert caught.value.strerror == "Access is denied; close the program that has it open, such as ComfyUI"
    assert (names(tmp_path), path.read_text()) == (["me.safetensors"], "in use")


def test_a_full_disk_is_named_with_the_file(tmp_path):
    path = tmp_path / "state.json"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*state\.json'"):
            write_text(path, "0123456789 and more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_weights_need_their_folder(tmp_path):
    with pytest.raises(CheckpointError, match="make it before saving"):
        write_streamed(tmp_path / "no" / "a.safetensors", {}, torch.ones, {})
