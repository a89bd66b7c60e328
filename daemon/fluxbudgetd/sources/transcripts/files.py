"""Reading one transcript from where the last reading stopped."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from fluxbudgetd.model import Copy, TranscriptFile
from fluxbudgetd.sources import stamps
from fluxbudgetd.sources.transcripts.lines import Harvest
from fluxbudgetd.sources.transcripts.records import USAGE
from fluxbudgetd.wire.text import fold

#: A longer line is skipped and never held in memory.
LINE_BYTES = 8 << 20

_CHUNK_BYTES = 256 << 10
_MARK_BYTES = 256
_DIGEST_BYTES = 16


class NotRegularError(OSError):
    """The path names something that is not a regular file."""


class ReplacedError(Exception):
    """The file is not the one that was read before: it was truncated, rewritten or replaced."""


class ReadFile(NamedTuple):
    """A file, and how far it has been read.

    `scanned` is how many bytes after the last complete line are known to contain no newline (0 if only a few),
    `scanned_mark` the digest of the last of them, and `has_usage` is True if they may have usage. `stamp` is the file's
    stamp at that time, unless there was more to read; `meta` is its companion's, which names the tool `call` that
    launched the sub-agent.
    """

    file: TranscriptFile
    scanned: int = 0
    scanned_mark: bytes = b""
    has_usage: bool = False
    stamp: stamps.PathStamp = stamps.UNSETTLED
    meta: stamps.PathStamp = stamps.UNSETTLED
    call: str = ""


class NewPart(NamedTuple):
    """What was read of a file. `size` is how many bytes were read for the first time."""

    file: ReadFile
    copies: list[Copy]
    size: int
    more: bool


def unread_file(number: int, path: str, agent: str) -> TranscriptFile:
    """Return a file that has not been read yet."""
    return TranscriptFile(number, fold(os.fsencode(path)), 0, 0, 0, b"", agent)


@contextmanager
def opened(path: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file. Raise `NotRegularError` for anything else: opening it may hang or have side effects."""
    _require_regular(os.lstat(path))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        _require_regular(info)
        yield fd, info
    finally:
        os.close(fd)


def read_new(path: str, known: ReadFile, limit: int, session: str, clock: Callable[[], int]) -> NewPart:
    """Read a file's new complete lines, from at most `limit` new bytes; raises `OSError` or `ReplacedError`.

    The cost depends on what is new, not on what was read before.
    """
    with opened(path) as (fd, info):
        file = known.file
        _require_same(fd, info, file)
        lines = _Lines(fd, Harvest(file, session, clock), file.offset)
        if known.scanned and _is_same(fd, info, file, file.offset + known.scanned, known.scanned_mark):
            lines.skip(known.scanned, known.has_usage)
        start = lines.end
        stop = min(info.st_size, start + limit)
        lines.read(stop)
        scanned = lines.end - lines.offset if lines.end - lines.offset >= _CHUNK_BYTES else 0
        now = ReadFile(
            _after(file, fd, info, lines),
            scanned,
            _mark(fd, lines.end) if scanned else b"",
            lines.has_usage if scanned else False,
            stamps.file_stamp(info) if lines.end == info.st_size else stamps.UNSETTLED,
            known.meta,
            known.call,
        )
        return NewPart(now, lines.harvest.copies, lines.end - start, lines.end == stop < info.st_size)


def _after(file: TranscriptFile, fd: int, info: os.stat_result, lines: "_Lines") -> TranscriptFile:
    harvest = lines.harvest
    return msgspec.structs.replace(
        file,
        dev=info.st_dev,
        ino=info.st_ino,
        offset=lines.offset,
        mark=_mark(fd, lines.offset),
        skipped=file.skipped + harvest.skipped,
        anomalies=file.anomalies + harvest.anomalies,
        latest=harvest.latest,
        placeholders=harvest.placeholders,
        stated_billing=harvest.stated_billing,
        stated_total=harvest.stated_total,
        ends_turn=harvest.ends_turn,
    )


class _Lines:
    """Reads a file's lines into a harvest: from `offset`, the end of the last complete line, to `end`."""

    def __init__(self, fd: int, harvest: Harvest, offset: int) -> None:
        self.harvest = harvest
        self.offset = offset
        self.end = offset
        self.has_usage = False
        """True if the incomplete line between them may have usage."""
        self._fd = fd
        self._tail = b""

    def skip(self, size: int, has_usage: bool) -> None:
        """Begin after a part of an incomplete line that was read before."""
        self.end += size
        self.has_usage = has_usage
        self._tail = os.pread(self._fd, len(USAGE), self.end - len(USAGE))

    def read(self, stop: int) -> None:
        """Read up to `stop`, unless the file is truncated meanwhile."""
        while self.end < stop:
            chunk = os.pread(self._fd, min(_CHUNK_BYTES, stop - self.end), self.end)
            if not chunk:
                break
            first, last = chunk.find(b"\n") + 1, chunk.rfind(b"\n") + 1
            if last:
                if self.offset == self.end:
                    first = 0
                elif not self._take_long(chunk[:first]):
                    break
                for line in chunk[first:last].split(b"\n")[:-1]:
                    self.harvest.add(line)
                self.offset = self.end + last
                self.has_usage, self._tail = False, b""
            self._look_for_usage(chunk[last:])
            self.end += len(chunk)

    def _take_long(self, rest: bytes) -> bool:
        """Take a line that began in an earlier chunk. Return True if it is still there."""
        size = self.end + len(rest) - self.offset
        if size > LINE_BYTES:
            self._look_for_usage(rest)
            self.harvest.skipped += self.has_usage
            return True
        line = os.pread(self._fd, size, self.offset)
        if len(line) < size:
            return False
        self.harvest.add(line[:-1])
        return True

    def _look_for_usage(self, part: bytes) -> None:
        self.has_usage = self.has_usage or USAGE in self._tail + part
        self._tail = (self._tail + part)[-len(USAGE) :]


def _mark(fd: int, offset: int) -> bytes:
    """Return a digest of the bytes just before an offset. It differs if the file ends before the offset."""
    begin = max(0, offset - _MARK_BYTES)
    return blake2b(os.pread(fd, offset - begin, begin), digest_size=_DIGEST_BYTES).digest() if offset else b""


def _require_same(fd: int, info: os.stat_result, file: TranscriptFile) -> None:
    # If nothing was read from the file yet, it does not matter whether it was replaced.
    if file.offset and not _is_same(fd, info, file, file.offset, file.mark):
        raise ReplacedError


def _is_same(fd: int, info: os.stat_result, file: TranscriptFile, offset: int, mark: bytes) -> bool:
    return (info.st_dev, info.st_ino) == (file.dev, file.ino) and _mark(fd, offset) == mark


def _require_regular(info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise NotRegularError("is a directory")
    if not stat.S_ISREG(info.st_mode):
        raise NotRegularError("is not a regular file")
