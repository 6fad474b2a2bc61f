"""The workflow on GitHub, and the check of commits' subjects."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "check_subjects.py"


def check(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("x" * 72, 0),
        ("é" * 72, 0),
        ("x" * 73, 1),
        ("# a comment of git's, which may have any length whatever, as it is removed from messages\n\nShort\n", 0),
        ("Short\n\n" + "A long line of the body. " * 9, 0),
    ],
)
def test_a_message(tmp_path: Path, message: str, code: int):
    (tmp_path / "message").write_text(message, encoding="utf-8")
    found = check(str(tmp_path / "message"))
    assert found.returncode == code
    assert ("has 73 characters; at most 72 are allowed" in found.stderr) == bool(code)


def test_a_range_of_commits(tmp_path: Path):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch", "main")
    for subject in ("a" * 80, "First", "b" * 75):
        git("commit", "--allow-empty", "--message", subject)
    found = check("--commits", "HEAD~2..HEAD", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.splitlines() == [f"The subject has 75 characters; at most 72 are allowed: {'b' * 75}"]
    assert check("--commits", "HEAD~2..HEAD~1", cwd=tmp_path).returncode == 0


def test_the_workflow_runs_what_a_contributor_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"].values()
    assert all(job["timeout-minutes"] <= 60 for job in jobs)
    steps = [step for job in jobs for step in job["steps"]]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert "3.11" in [step.get("with", {}).get("python-version") for step in steps]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_forms_are_yaml(path: Path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
