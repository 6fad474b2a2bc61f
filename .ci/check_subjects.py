"""Refuse subjects of commits that are longer than 72 characters: of a message in a file, or of a range of commits."""

import argparse
import subprocess
import sys
from pathlib import Path

LONGEST = 72


def subject(message: str) -> str:
    """The first line of a commit message that is neither empty nor a comment."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")


def subjects_of(commits: str) -> list[str]:
    """The subjects of a range of commits, such as `main..HEAD`, without merges."""
    command = ["git", "log", "--no-merges", "--format=%s", commits]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def main() -> int:
    """Run the check and return its exit code: 0 where all subjects are short enough, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("message", nargs="?", type=Path, help="a file with a commit message, as git gives it to a hook")
    chosen.add_argument("--commits", help="a range of commits, such as main..HEAD")
    given = parser.parse_args()
    found = [subject(given.message.read_text(encoding="utf-8"))] if given.message else subjects_of(given.commits)
    long = [line for line in found if len(line) > LONGEST]
    for line in long:
        sys.stderr.write(f"The subject has {len(line)} characters; at most {LONGEST} are allowed: {line}\n")
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main())
