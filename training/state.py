"""The state of a run on disk: checkpoints as safetensors and JSON, written so that a kill at any moment leaves a
complete one.

    DIR/checkpoints/step-00000500/{model,ema,optimizer}.safetensors, state.json
    DIR/checkpoints/latest        the name of the newest folder

Processes that each hold a share of a network write a file each, `model-00001-of-00008.safetensors`. A checkpoint is
written beside its name, synced and renamed. state.json holds the progress and the SHA-256 of every file.
"""

import errno
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from contextanyone_core.atomic_file import ENDING, PREFIX, publish, write_text
from contextanyone_core.errors import CheckpointError, InputError
from training.files import file_sha256
from training.tensor_files import Rows, TensorFiles, write_hashed

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOG = logging.getLogger(__name__)
_VERSION = 1
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass
class Progress:
    """The progress of a run.

    seconds is the training's wall-clock time over all starts; skipped counts non-finite steps, skipped_in_a_row those
    at the end, of this start; world is the number of processes; start is the SHA-256 of `init.from` where checkpoints
    leave out its unchanged tensors; learning_rates maps the step from which an `optim.lr` holds to that rate; batches
    are the clips of a batch, of all processes together, by bucket, where the part has buckets.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    ema_updates: int = 0
    world: int = 1
    start: str | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: tensors by file (model, ema, and optimizer if it is wanted) and name, read when they are used."""

    folder: Path
    progress: Progress
    tensors: dict[str, TensorFiles]


@dataclass(frozen=True)
class Writers:
    """This process among those that write, or read, one checkpoint together.

    Attributes:
        gather: the objects of all of them, in every one; each must call it as often as the others.
        pause: called after every piece of a file that is written, with the seconds that its hash took.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda mine: [mine]
    pause: Callable[[float], None] = lambda worked: None


class VersionError(CheckpointError):
    """A checkpoint that another version of the trainer has written: whole, but not to be read by this one."""


class ShareError(OSError):
    """Another process could not write its share of a checkpoint."""


class CheckpointStore:
    """The checkpoints of one run; all but the newest keep_last are removed.

    One of steps that were not finite, whose weights may be the cause, removes none.
    """

    def __init__(self, folder: Path, keep_last: int = 1) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self._damaged: set[str] = set()  # those that `load_latest` has read and found so

    def save(
        self, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor | Rows]], writers: Writers | None = None
    ) -> Path:
        """Write a checkpoint, point `latest` at it and, if its last step was finite, remove the oldest ones.

        Args:
            tensors: by file, on the CPU. writers: where several processes write their shares together.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints stay complete.
            ShareError: that is so in another process.
        """
        writers = writers or Writers()
        final = self.folder / f"step-{progress.step:08d}"
        staged = self.folder / f"{PREFIX}{final.name}{ENDING}"
        try:
            together(writers, lambda: self._stage(staged) if writers.rank == 0 else None)
            sums = together(writers, lambda: _write(staged, tensors, writers))
            merged = {file: value for each in sums for file, value in (each or {}).items()}
            together(writers, lambda: self._commit(staged, final, progress, merged) if writers.rank == 0 else None)
        finally:
            if writers.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)
        return final

    def load_latest(self, *, optimizer: bool = True, writers: Writers | None = None) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there is no checkpoint at all.

        A damaged one is reported, and the previous one is used; so is one that the disk does not give.

        Args:
            optimizer: whether to read the optimizer's state too, which only a resumed run needs.
            writers: where several processes read it: each compares its share of the files with their checksums.

        Raises:
            VersionError: the newest is of another version of the trainer.
            CheckpointError: there are checkpoints, and all are damaged.
        """
        writers = writers or Writers()
        names = writers.gather(self.names())[0]
        for name in reversed(names):
            found, damage = None, None
            try:
                found = _read(self.folder / name, optimizer=optimizer, writers=writers)
            except (CheckpointError, OSError) as error:
                damage = error
            damages = [each for each in writers.gather(damage) if each is not None]
            if not damages:
                return found
            if others := [each for each in damages if isinstance(each, VersionError)]:
                raise VersionError(str(others[0]))
            if any(isinstance(each, CheckpointError | FileNotFoundError) for each in damages):
                self._damaged.add(name)
            if writers.rank == 0:
                reasons = " ".join(dict.fromkeys(str(each) for each in damages))
                state = "is damaged" if name in self._damaged else "cannot be read"
                _LOG.warning("Checkpoint %s %s: %s", name, state, reasons)
        if names:
            raise CheckpointError(
                f"All checkpoints in {self.folder} are damaged: remove them, or choose another run.out."
            )
        return None

    def _stage(self, staged: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_remains()
        staged.mkdir()

    def _commit(self, staged: Path, final: Path, progress: Progress, sums: Mapping[str, str]) -> None:
        text = json.dumps({"version": _VERSION, "progress": asdict(progress), "sha256": sums}, indent=1)
        write_text(staged / "state.json", text + "\n")
        publish(staged, final)
        write_text(self.folder / "latest", final.name + "\n")
        if not progress.skipped_in_a_row:
            self._rotate(final.name)

    def names(self) -> list[str]:
        """Return the folders' names, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def _rotate(self, newest: str) -> None:
        """Remove all but the newest, and of those with a later step, which could not be resumed, the damaged ones.

        Network file systems refuse to remove a folder while a process has one of its files open. This does not end the
        run: the next rotation tries again.
        """
        names = self.names()
        present = [name for name in names if name <= newest]
        damaged = [name for name in names if name > newest and name in self._damaged]
        for name in present[: -self.keep_last] + damaged:
            _remove("The old checkpoint", self.folder / name)

    def _remove_remains(self) -> None:
        """A killed process may have left half a checkpoint; `only_trainer` sees that no other one writes here."""
        for path in self.folder.glob(f"{PREFIX}*{ENDING}"):
            _remove("The unfinished checkpoint", path)


def together(writers: Writers, act: Callable[[], Any]) -> list[Any]:
    """Act in every process, then return the results of all. Raises this one's error, or ShareError."""
    failed, result = None, None
    try:
        result = act()
    except Exception as error:  # also what nobody expects: the others wait for this process's result
        failed = error
    results = writers.gather((result, failed is not None))
    if failed is not None:
        raise failed
    if any(bad for _, bad in results):
        raise ShareError("Another process could not write its share of the checkpoint; the previous one is complete.")
    return [each for each, _ in results]


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor | Rows]], writers: Writers) -> dict[str, str]:
    share = "" if writers.size == 1 else f"-{writers.rank + 1:05d}-of-{writers.size:05d}"
    files = {f"{file}{share}.safetensors": named for file, named in tensors.items()}
    return {name: write_hashed(folder / name, named, writers.pause) for name, named in files.items()}


def _remove(what: str, folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        _LOG.warning("%s %s cannot be removed: %s.", what, folder, error.strerror)


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Lock the run's folder for this process. The lock ends with the process, however it ends.

    A file system without locks gives a warning instead.

    Raises:
        InputError: another process trains there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"Another process is training in {folder}: wait for it, or choose another run.out."
                ) from None
            _LOG.warning(
                "%s cannot be locked (%s): make sure that no other process trains there.", folder, error.strerror
            )
        yield


def _lock(descriptor: int) -> None:
    """A record lock: worker processes, which may be forks, do not inherit it. Raises OSError at once if it is held."""
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read(folder: Path, *, optimizer: bool, writers: Writers) -> Checkpoint:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        unknown = sorted(state["progress"].keys() - Progress.__dataclass_fields__.keys())
        if state["version"] > _VERSION or unknown:
            raise VersionError(
                f"{folder} was written by another version of this trainer (state.json: version {state['version']}"
                f"{''.join(f', {name}' for name in unknown)}); this one reads version {_VERSION}. Resume with the "
                "version that wrote it, or choose another run.out."
            )
        progress, sums = Progress(**state["progress"]), dict(state["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"state.json cannot be read ({error}).") from None
    files: dict[str, list[Path]] = {}
    for name in sorted(sums):
        kind = _SHARD.sub("", Path(name).stem)
        if kind != "optimizer" or optimizer:
            files.setdefault(kind, []).append(folder / name)
    wanted = [path for paths in files.values() for path in paths]
    for path in wanted[writers.rank :: writers.size]:
        if file_sha256(path) != sums[path.name]:
            raise CheckpointError(f"{path.name} does not have the checksum in state.json.")
    try:
        return Checkpoint(folder, progress, {kind: TensorFiles(paths) for kind, paths in files.items()})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"its tensors cannot be read ({error}).") from None
