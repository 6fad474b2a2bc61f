"""Looking at the files of rows: what is not known of them yet is found out, shared over threads."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

from training.data.facts import Facts, FactStore, Range, examine
from training.data.manifest import ManifestRow
from training.data.media import MediaError, check_frames
from training.data.progress import Progress
from training.data.work import Share, in_threads, thread_count

_PIECE = 512  # frames that are decoded as one job
_PUBLISH = 20.0  # seconds between writing down what is known


class Unknown(Exception):  # noqa: N818  # not an error: another process finds it out
    """Nothing is known yet of a file as it is now."""


class FileCheck:
    """Examines the files of some rows that a store has no facts about."""

    def __init__(self, store: FactStore, share: Share) -> None:
        self._store, self._share, self._published = store, share, time.monotonic()

    def read(self, rows: Sequence[ManifestRow]) -> None:
        """Hash the files of rows and read their headers.

        Raises:
            Stopped: a stop was requested; what is known by then is kept.
        """
        poses: dict[str, bool] = {}
        for row in rows:
            for column, name in row.paths().items():
                poses[name] = column.rpartition(".")[2] == "pose"
        jobs = [name for name in poses if self._store.stamp(name) and not self._is_known(name)]

        def look(name: str) -> Facts:
            return examine(self._store.folder / name, self._share.between, as_pose=poses[name])

        with Progress("reading files", len(jobs), "files") as progress, self._kept():
            for name, facts in in_threads(look, jobs, self._share, thread_count(), 4):
                self._store.add(name, facts)
                progress.advance()
                self._publish_sometimes()

    def _is_known(self, name: str) -> bool:
        facts = self._store.get(name)
        return facts is not None and not facts.error

    def decode(self, rows: Sequence[ManifestRow]) -> None:
        """Decode the frames that rows use, whose files `read` has found usable.

        Raises:
            Stopped: a stop was requested; what is known by then is kept.
        """
        wanted: dict[str, list[Range]] = defaultdict(list)
        for row in rows:
            for name, ranges in needed_frames(row, self._store).items():
                wanted[name] += ranges
        jobs = [
            (name, piece)
            for name, ranges in wanted.items()
            for piece in _pieces(ranges, [found for found, error in self._store.decoded(name).items() if not error])
        ]
        test = partial(self._test, wanted)
        with Progress("decoding", sum(stop - start for _, (start, stop) in jobs), "frames") as progress, self._kept():
            for (name, piece), errors in in_threads(test, jobs, self._share, thread_count(), 4):
                for found, error in errors.items():
                    self._store.add_decoded(name, found, error)
                progress.advance(piece[1] - piece[0])
                self._publish_sometimes()

    def _test(self, wanted: dict[str, list[Range]], job: tuple[str, Range]) -> dict[Range, str]:
        """Decode a piece; where it has a fault, part by part as the rows use it, so that others keep their frames."""
        name, (start, stop) = job
        if not (error := self._error_of(name, (start, stop))):
            return {(start, stop): ""}
        cuts = {start, stop, *(cut for found in wanted[name] for cut in found if start < cut < stop)}
        ends = sorted(cuts)
        if len(ends) == 2:
            return {(start, stop): error}
        return {found: self._error_of(name, found) for found in pairwise(ends)}

    def _error_of(self, name: str, frames: Range) -> str:
        try:
            check_frames(self._store.folder / name, *frames, self._share.between)
        except (MediaError, OSError) as error:
            return str(error)
        return ""

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._store.publish()

    def _publish_sometimes(self) -> None:
        if time.monotonic() - self._published > _PUBLISH:
            self._published = time.monotonic()
            self._store.publish()


def needed_frames(row: ManifestRow, store: FactStore) -> dict[str, list[Range]]:
    """The frames (start, stop) that a row uses of its video and of the masks of it, by path.

    Raises:
        Unknown: nothing is known of one of the files, or it cannot be read.
    """
    facts = store.get(row.video)
    if facts is None or facts.probe is None:
        raise Unknown
    count = len(facts.probe.times)
    stop = count if row.num_frames is None else min(count, row.start_frame + row.num_frames)
    ranges = [(row.start_frame, stop)]
    index = row.target_frame_index
    if index is not None and not row.start_frame <= index < stop:
        ranges.append((index, index + 1))
    columns = ("mask", *(f"characters.{number}.mask" for number in range(len(row.characters))))
    paths, first = row.paths(), row.companions_start
    of_masks = [(start - first, stop - first) for start, stop in ranges]
    return {row.video: ranges} | {paths[column]: of_masks for column in columns if column in paths}


def _pieces(ranges: Iterable[Range], known: Iterable[Range]) -> list[Range]:
    """What of some ranges is not known yet, joined where they touch and cut into pieces of one job each."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    for begin, end in known:
        joined = [
            part
            for start, stop in joined
            for part in ((start, min(stop, begin)), (max(start, end), stop))
            if part[0] < part[1]
        ]
    return [(at, min(at + _PIECE, stop)) for start, stop in joined for at in range(start, stop, _PIECE)]
