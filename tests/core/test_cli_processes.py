"""Clips over several processes, each clip once, killed and started again; `--resume` and what it takes for finished."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from contextanyone_core import cli
from contextanyone_core.cli.clips import Clip, Process, this_process
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline

COMMAND = [sys.executable, "-c", "import sys; from contextanyone_core.cli import main; sys.exit(main())"]
SMALL = ("--frames", "1", "--size", "32x32", "--guidance-scale", "1")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with five prompts and an empty folder for clips, in which the command runs, as no launcher's child."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "clips").mkdir()
    lines = [{"first": f"A woman {index}.", "out": f"c{index}.webp", "seed": index} for index in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return tmp_path


@pytest.fixture
def words(desk, tiny_folder) -> list[str]:
    """The command's words after `contextanyone`."""
    asked = ["generate", "--weights", str(tiny_folder), *SMALL, "--prompts", "p.jsonl", "--out", "clips"]
    return [*asked, "--steps", "1"]


@pytest.fixture
def run(words, monkeypatch, capsys):
    """Run the command as a process of several; gives the clips it made and stderr."""

    def run(*more: str, **environment: str) -> tuple[list[str], str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = cli.main([*words, *more])
        out, err = capsys.readouterr()
        assert code == 0, err
        return [Path(line).name for line in out.splitlines()[::2]], err

    return run


def names(*indexes: int) -> list[str]:
    return [f"c{index}.webp" for index in indexes]


def test_each_clip_once_whatever_the_number_of_processes(desk):
    clips = [Clip("a", "", index, desk / f"{index}.webp") for index in range(7)]
    for count in (1, 2, 3, 7, 9):
        shares = [Process(rank, count).share(clips) for rank in range(count)]
        assert sorted(clip.seed for share in shares for clip in share) == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_process_makes_its_share(run, desk):
    assert run(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")[0] == names(1, 3)
    assert len(list((desk / "clips").iterdir())) == 4
    assert run(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")[0] == names(0, 2, 4)
    made, err = run(RANK="6", WORLD_SIZE="7")
    assert (made, "process 6 of 7 has no clip" in err) == ([], True)


def test_resume_leaves_only_what_this_very_command_made(run, desk, monkeypatch):
    assert run()[0] == names(0, 1, 2, 3, 4)
    stamp = (desk / "clips" / "c0.webp").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(ContextAnyonePipeline, "encode_ahead", None)  # there is nothing to encode
        made, err = run("--resume")
    assert (made, err.count("is finished")) == ([], 5)
    assert (desk / "clips" / "c0.webp").stat().st_mtime_ns == stamp
    (desk / "clips" / "c1.webp").unlink()
    (desk / "clips" / "c2.contact.png").unlink()
    (desk / "clips" / "c3.webp").write_bytes((desk / "clips" / "c4.webp").read_bytes())
    (desk / "clips" / "c4.webp").write_bytes(b"no picture")
    assert run("--resume")[0] == names(1, 2, 3, 4)
    assert run("--resume", RANK="1", WORLD_SIZE="2")[0] == []
    assert run("--resume", "--shift", "2", RANK="1", WORLD_SIZE="2")[0] == names(1, 3)
    assert run(RANK="1", WORLD_SIZE="2")[0] == names(1, 3)  # without --resume what exists is replaced


def test_resume_with_folders_of_pictures(words, desk, capsys):
    command = [*words, "--resume"]
    (desk / "p.jsonl").write_text('{"first": "A woman.", "out": "a"}\n{"first": "A man.", "out": "b"}')
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert capsys.readouterr().err.count("is finished") == 2
    assert cli.main(words) == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.main([*command, "--shift", "2"]) == 2
    assert "not empty" in capsys.readouterr().err


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words], env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_two_processes_killed_and_started_again(words, run, desk):
    slow = ("--steps", "60", "--resume")
    ranks = [start([*words, *slow], RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    first = Path(ranks[0].stdout.readline().strip())
    ranks[0].kill()
    assert ranks[1].wait(timeout=600) == 0
    assert ranks[1].stdout.read().split()[::2] == ["clips/c1.webp", "clips/c3.webp"]
    ranks[0].wait()
    done = {path.name for path in first.parent.glob("*.webp")}
    assert set(names(0)) <= done < set(names(0, 1, 2, 3, 4))
    stamps = {name: (first.parent / name).stat().st_mtime_ns for name in done}
    made = [name for rank in "01" for name in run(*slow, RANK=rank, WORLD_SIZE="2")[0]]
    assert sorted(made) == sorted(set(names(0, 1, 2, 3, 4)) - done)
    assert {name: (first.parent / name).stat().st_mtime_ns for name in done} == stamps


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "RANK is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "from 0 to 1"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is ''"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "\u0661", "WORLD_SIZE": "2"}, "RANK is"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '99"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "first"}, "LOCAL_RANK is 'first'"),
    ],
)
def test_an_environment_that_makes_no_sense(words, monkeypatch, capsys, environment, hint):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = time.perf_counter()
    assert cli.main(words) == 2
    assert time.perf_counter() - before < 5  # told before anything is loaded
    err = capsys.readouterr().err
    assert hint in err
    assert err.count("\n") == 1
    with pytest.raises(InputError):
        this_process(environment)


def test_the_card_of_a_process(words, monkeypatch, capsys):
    assert Process(3, 4, 1).device("cuda") == "cuda:1"
    assert Process(3, 4, 1).device("cuda:0") == "cuda:0"
    assert Process(3, 4, 1).device("cpu") == "cpu"
    assert Process(3, 4).device("cuda") == "cuda"
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    if torch.cuda.device_count() < 2:
        assert cli.main([*words, "--device", "cuda"]) == 2
        assert "cuda:1" in capsys.readouterr().err
