"""Invalid paths for `inspect`, `init`, `convert` and `generate`: missing files, links, pipes."""

import os

import pytest

from contextanyone_core import cli


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command that must be refused in one line; gives the line."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert cli.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", ""),
        ("convert", "", "--out", "o.safetensors"),
        ("convert", "x.pth", "--out", ""),
        ("init", "--backbone", "", "--out", "o.safetensors"),
        ("init", "--backbone", "x.pth", "--clip-branch", "", "--out", "o.safetensors"),
        ("generate", "--first", "A woman.", "--out", "o.webp", "--weights", ""),
        ("generate", "--first", "A woman.", "--out", "o.webp", "--reference", ""),
        ("generate", "--first", "A woman.", "--out", ""),
        ("generate", "--prompts", "", "--out", "clips"),
    ],
)
def test_an_empty_name_is_no_folder(refused, words):
    assert "the name is empty" in refused(*words)


def test_a_link_is_not_replaced(refused, wan_file, tmp_path):
    target = tmp_path / "kept.safetensors"
    target.write_bytes(b"kept")
    link = tmp_path / "link.safetensors"
    for points_to in (target, tmp_path / "gone.safetensors"):
        link.symlink_to(points_to)
        for command in (("convert", wan_file), ("init", "--backbone", wan_file)):
            assert f"is a link to {points_to}; give the name of the file itself" in refused(*command, "--out", link)
        assert link.is_symlink()
        link.unlink()
    assert target.read_bytes() == b"kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(refused, wan_file, tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for words in (
        ("convert", wan_file, "--out", pipe),
        ("convert", pipe, "--out", "o.safetensors"),
        ("init", "--backbone", pipe, "--out", "o.safetensors"),
        ("inspect", pipe),
    ):
        assert "a pipe or a device" in refused(*words)
    assert pipe.is_fifo()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "pipe.safetensors"}}')
    assert "a pipe or a device" in refused("inspect", index)
