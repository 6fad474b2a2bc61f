"""The state of a run on disk: checkpoints as safetensors and JSON, written so that a kill at any moment leaves a
complete one.

    DIR/checkpoints/step-00000500/{model,ema,optimizer}.safetensors, state.json
    DIR/checkpoints/latest        the name of the newest folder

A checkpoint is written beside its name, synced and renamed. state.json holds the progress and the SHA-256 of every
file.
"""

import errno
import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from contextanyone_core.atomic_file import ENDING, PREFIX, whole_file, write_text
from contextanyone_core.errors import CheckpointError, InputError
from training.files import file_sha256, write_tensors

_LOG = logging.getLogger(__name__)
_VERSION = 1


@dataclass
class Progress:
    """The progress of a run.

    seconds is the training's wall-clock time over all starts; skipped counts non-finite steps; world is the number of
    processes; start is the SHA-256 of `init.from` where checkpoints leave out its unchanged tensors;
    learning_rates maps the step from which an `optim.lr` holds to that rate.
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


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory: tensors by file (model, ema, and optimizer if it was read) and name, on the CPU."""

    folder: Path
    progress: Progress
    tensors: dict[str, dict[str, Tensor]]


class CheckpointStore:
    """The checkpoints of one run; all but the newest keep_last are removed."""

    def __init__(self, folder: Path, keep_last: int = 1) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def save(self, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Write a checkpoint, point `latest` at it and remove the oldest ones.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints stay complete.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_remains()
        final = self.folder / f"step-{progress.step:08d}"
        with whole_file(final) as beside:
            beside.mkdir()
            self._write(beside, progress, tensors)
            if final.exists():
                shutil.rmtree(final)
        write_text(self.folder / "latest", final.name + "\n")
        self._rotate(final.name)
        return final

    def load_latest(self, *, optimizer: bool = True) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there is no checkpoint at all.

        A damaged one is reported, and the previous one is used.

        Args:
            optimizer: whether to read the optimizer's state too, which only a resumed run needs.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        names = self._names()
        for name in reversed(names):
            try:
                return _read(self.folder / name, optimizer=optimizer)
            except (CheckpointError, OSError) as error:
                _LOG.warning("Checkpoint %s is damaged: %s", name, error)
        if names:
            raise CheckpointError(
                f"All checkpoints in {self.folder} are damaged: remove them, or choose another run.out."
            )
        return None

    def _write(self, folder: Path, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        sums = {}
        for file, named in tensors.items():
            path = folder / f"{file}.safetensors"
            write_tensors(path, named, {"format": "pt"})
            sums[path.name] = file_sha256(path)
        text = json.dumps({"version": _VERSION, "progress": asdict(progress), "sha256": sums}, indent=1)
        write_text(folder / "state.json", text + "\n")

    def _names(self) -> list[str]:
        """Return the folders' names, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def _rotate(self, newest: str) -> None:
        """Remove all but the newest. One with a later step is damaged: the run was resumed from an earlier one.

        Network file systems refuse to remove a folder while a process has one of its files open. This does not end the
        run: the next rotation tries again.
        """
        names = self._names()
        present = [name for name in names if name <= newest]
        for name in sorted(set(names) - set(present[-self.keep_last :])):
            _remove("The old checkpoint", self.folder / name)

    def _remove_remains(self) -> None:
        """A killed process may have left half a checkpoint; `only_trainer` sees that no other one writes here."""
        for path in self.folder.glob(f"{PREFIX}*{ENDING}"):
            _remove("The unfinished checkpoint", path)


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
            # A record lock: worker processes, being forks, do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"Another process is training in {folder}: wait for it, or choose another run.out."
                ) from None
            _LOG.warning(
                "%s cannot be locked (%s): make sure that no other process trains there.", folder, error.strerror
            )
        yield


def _read(folder: Path, *, optimizer: bool) -> Checkpoint:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        progress, sums = Progress(**state["progress"]), dict(state["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"state.json cannot be read ({error}).") from None
    tensors = {}
    for name, expected in sums.items():
        if Path(name).stem == "optimizer" and not optimizer:
            continue
        if file_sha256(folder / name) != expected:
            raise CheckpointError(f"{name} does not have the checksum in state.json.")
        tensors[Path(name).stem] = load_file(folder / name)
    return Checkpoint(folder, progress, tensors)
