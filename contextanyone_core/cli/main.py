"""The command `contextanyone`: dispatch, exit codes, Ctrl-C.

Exit codes: 0 done; 1 failed while running (disk full, out of memory); 2 invalid request (one line says why);
130 interrupted. Results go to stdout, everything else to stderr. No heavy library is imported here.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..atomic_file import is_disk_full
from ..errors import ContextAnyoneError, InputError, did_you_mean
from .parsing import EXAMPLES, Parser, package_version
from .streams import steady_streams

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_NO_MEMORY = re.compile(  # from Python, CUDA, MPS, C++, the dynamic loader, threads
    "out of memory|not enough memory|allocate memory|failed to map segment|start new thread|bad_alloc", re.IGNORECASE
)
_LEAST_MEMORY = 10**9  # bytes of address space needed to load torch
_COMPILERS = ("torch._inductor", "torch._dynamo", "triton")

_PURPOSES = {
    "generate": "make a video",
    "pose": "poses of a video or a file of keypoints, fitted to a body",
    "inspect": "say what a weight file is, or how a video was made",
    "init": "make a starting checkpoint for training",
    "convert": "weights under other names, in another dtype",
    "doctor": "say what this machine has and which models fit its GPU",
}
SUMMARY = "One picture of a character and two prompts become a video of that same character.\n\ncommands:\n" + "".join(
    f"  {name:<10} {purpose}: contextanyone {name} {EXAMPLES[name]}\n" for name, purpose in _PURPOSES.items()
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the command's name; None takes those of the process.

    Returns: the exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with steady_streams(), _interrupts() as seen, _warnings():
        try:
            try:
                return _run(words)
            finally:
                sys.stdout.flush()  # flushed here, where a full disk becomes a one-line error
        except KeyboardInterrupt:
            return _say("interrupted", INTERRUPTED)
        except Exception as error:
            if seen:  # a library turned the interrupt into another error
                return _say("interrupted", INTERRUPTED)
            if isinstance(error, ContextAnyoneError):
                return _say(str(error), REFUSED)
            if message := _failure(error, words):
                return _say(message, FAILED)
            raise


def _run(words: list[str]) -> int:
    commands = {
        "generate": _generate,
        "pose": _pose,
        "inspect": _inspect,
        "init": _init,
        "convert": _convert,
        "doctor": _doctor,
    }
    if words and words[0] in commands:
        _check_memory()
        return commands[words[0]](words[1:])
    parser = Parser("contextanyone", SUMMARY)
    parser.add_argument("--version", action="version", version=f"contextanyone {package_version()}")
    if words and not words[0].startswith("-"):
        raise InputError(
            f"there is no command {words[0]!r}; use {', '.join(commands)}.{did_you_mean(words[0], commands)}"
        )
    parser.parse(words)
    parser.print_help(sys.stderr)
    return REFUSED


def _check_memory() -> None:
    """Check that there is memory to load torch; otherwise the process would abort, or fail with an obscure error.

    Raises: MemoryError if not.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST_MEMORY:
        raise MemoryError(
            f"this process may use {limit // 10**6:,} MB (ulimit -v), and torch alone needs {_LEAST_MEMORY // 10**6:,}"
        )


def _generate(words: Sequence[str]) -> int:
    from .generate import generate

    return generate(words)


def _pose(words: Sequence[str]) -> int:
    from .pose import pose

    return pose(words)


def _inspect(words: Sequence[str]) -> int:
    from .inspect import inspect

    return inspect(words)


def _init(words: Sequence[str]) -> int:
    from .weight_commands import init

    return init(words)


def _convert(words: Sequence[str]) -> int:
    from .weight_commands import convert

    return convert(words)


def _doctor(words: Sequence[str]) -> int:
    from .doctor import doctor

    return doctor(words)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C raises KeyboardInterrupt and is recorded, because some libraries turn it into another error."""
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _warnings() -> Iterator[None]:
    """Write the core's warnings to stderr, one line each."""
    logger, handler = logging.getLogger(__package__.partition(".")[0]), _Line(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Line(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write the message with control characters escaped, as names from files may contain them."""
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(record.getMessage().split()))
        sys.stderr.write(f"contextanyone: {text}\n")


def _failure(error: Exception, words: list[str]) -> str | None:
    """One line for a lack of memory or disk space, or a system error; None for a bug, which shows its traceback."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if named or _NO_MEMORY.search(str(error)):
        if "ulimit" in str(error):
            return f"out of memory: {error}; raise the limit"
        less = "ask for fewer --frames or a smaller --size" if words[:1] == ["generate"] else "close other programs"
        return f"out of memory; {less}"
    if "--compile" in words and type(error).__module__.startswith(_COMPILERS):
        return f"the compiler failed ({_cause(error)}); leave --compile out, or repair the compiler"
    if not isinstance(error, OSError):
        return None
    if is_disk_full(error):
        return f"no room left to write ({error}); nothing was kept. Free some space and run it again"
    return f"the system refused: {error}"


def _cause(error: Exception) -> str:
    """The reason of a failed compilation: the first line of the error, and of the compiler's output."""
    text, _, output = str(error).partition("\nOutput:\n")
    lines = [part.strip().partition("\n")[0] for part in (text, output)]
    return ": ".join(line for line in lines if line)[:300] or type(error).__name__


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"contextanyone: {' '.join(message.split())}\n")
    return code
