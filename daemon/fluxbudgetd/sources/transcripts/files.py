"""Reading one transcript from where the last reading stopped."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from fluxbudgetd.model import Copy, TranscriptFile
from fluxbudgetd.sources.transcripts import stamps
from fluxbudgetd.sources.transcripts.lines import Harvest
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

    `scanned` is how many bytes after the last complete line are known to contain no newline (0 if only a few), and
    `scanned_mark` the digest of the last of them. `stamp` is the file's stamp at that time, unless there was more to
    read; `meta` is its companion's.
    """

    file: TranscriptFile
    scanned: int = 0
    scanned_mark: bytes = b""
    stamp: stamps.PathStamp = stamps.UNSETTLED
    meta: stamps.PathStamp = stamps.UNSETTLED


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


def is_openable(path: str) -> bool:
    """Return True if a file can be opened now."""
    try:
        with opened(path):
            return True
    except OSError:
        return False


def require_same(path: str, file: TranscriptFile) -> None:
    """Raise `ReplacedError` if the file is not the one that was read, `OSError` if that cannot be determined."""
    with opened(path) as (fd, info):
        _require_same(fd, info, file)


def read_new(path: str, known: ReadFile, limit: int) -> NewPart:
    """Read a file's new complete lines, from at most `limit` new bytes; raises `OSError` or `ReplacedError`.

    The cost depends on what is new, not on what was read before.
    """
    with opened(path) as (fd, info):
        file = known.file
        _require_same(fd, info, file)
        start = file.offset
        if known.scanned and _is_same(fd, info, file, start + known.scanned, known.scanned_mark):
            start += known.scanned
        stop = min(info.st_size, start + limit)
        harvest = Harvest(file.number, file.agent)
        offset, end = _take_lines(fd, harvest, file.offset, start, stop)
        after = msgspec.structs.replace(
            file,
            dev=info.st_dev,
            ino=info.st_ino,
            offset=offset,
            mark=_mark(fd, offset),
            skipped=file.skipped + harvest.skipped,
            anomalies=file.anomalies + harvest.anomalies,
        )
        scanned = end - offset if end - offset >= _CHUNK_BYTES else 0
        stamp = stamps.stamp_of(info) if end == info.st_size else stamps.UNSETTLED
        now = ReadFile(after, scanned, _mark(fd, end) if scanned else b"", stamp, known.meta)
        return NewPart(now, harvest.copies, end - start, end == stop < info.st_size)


def _take_lines(fd: int, harvest: Harvest, offset: int, start: int, stop: int) -> tuple[int, int]:
    """Add the lines that end between `start` and `stop` to a harvest; the first of them begins at `offset`.

    Return where the last of them ends, and where reading stopped: at `stop`, unless the file was truncated meanwhile.
    """
    at = start
    while at < stop:
        chunk = os.pread(fd, min(_CHUNK_BYTES, stop - at), at)
        if not chunk:
            break
        first, last = chunk.find(b"\n") + 1, chunk.rfind(b"\n") + 1
        if last:
            if offset == at:
                first = 0
            elif not _take_long(fd, harvest, offset, at + first):
                break
            _take_whole(harvest, chunk[first:last], at + first)
            offset = at + last
        at += len(chunk)
    return offset, at


def _take_long(fd: int, harvest: Harvest, begin: int, end: int) -> bool:
    """Add a line that began in an earlier chunk to a harvest. Return True if it is still there."""
    if end - begin > LINE_BYTES:
        harvest.skipped += 1
        return True
    line = os.pread(fd, end - begin, begin)
    if len(line) < end - begin:
        return False
    harvest.add(line, begin)
    return True


def _take_whole(harvest: Harvest, lines: bytes, begin: int) -> None:
    for line in lines.split(b"\n")[:-1]:
        harvest.add(line, begin)
        begin += len(line) + 1


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
