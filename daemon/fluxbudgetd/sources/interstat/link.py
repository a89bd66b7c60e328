"""Two read-only connections to one database file, and a cheap check for changes.

`reader` belongs to the worker thread that reads snapshots. The other connection only runs `PRAGMA data_version`, on the
event loop's thread, for about 3 µs each time, so the loop never waits for a reader's mutex.

A WAL database that no program has open consists of its main file alone. SQLite would create `-wal` and `-shm` files to
read it, and could not read it at all in a directory without write permission. Such a file is opened `immutable`, which
creates nothing, and is opened again as soon as a `-wal` appears or the main file changes.
"""

import os
import sqlite3
import stat
import time
from typing import NamedTuple, Self
from urllib.parse import quote

# How long the worker waits for a lock before the state is `locked`. It must leave enough of the client's 200 ms to
# answer with the last known numbers.
READER_BUSY_SECONDS = 0.06

# On some file systems, file times have a granularity of two seconds: a file that was written just before its times were
# read may be written again without changing them, so its signature is not relied on.
_RACY_NANOSECONDS = 2_000_000_000

_HEADER_BYTES = 20
_WRITE_VERSION_AT = 18
_WAL_VERSION = 2
_MAGIC = b"SQLite format 3\0"

Signature = tuple[int, int, int, int, int]


class NotRegularError(OSError):
    """The path names something that is not a regular file."""


def signature(path: str) -> Signature:
    """Return what identifies a file's current content; raises `OSError`, or `NotRegularError` for a directory or FIFO.

    Opening a FIFO in the database's place would block forever.
    """
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise NotRegularError(f"{path} is not a regular file")
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


class Content(NamedTuple):
    """What identifies the content of a database: the signatures of its main file and of its WAL, if there is one."""

    main: Signature
    wal: Signature | None

    @classmethod
    def at(cls, path: str, wal_path: str) -> Self:
        """Return the present content; raises `OSError`."""
        try:
            wal = signature(wal_path)
        except FileNotFoundError:
            wal = None
        return cls(signature(path), wal)


class ClosedFile(NamedTuple):
    """A database that was closed, and its content at that time."""

    path: str
    wal_path: str
    content: Content

    def changed(self) -> bool:
        """Return True if a commit may have landed since."""
        try:
            return Content.at(self.path, self.wal_path) != self.content
        except OSError:
            return True


def file_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode, or None if there is no such file."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


class Link:
    """Two connections to one file. Construct it only while this process has no other connection to that file.

    (Closing any descriptor of a file drops all of the process's POSIX locks on it, SQLite's included. The constructor
    reads the file's header, which is safe only while SQLite holds none.)
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # SQLite puts the WAL beside the file that a symlink leads to.
        target = os.path.realpath(path)
        self._wal = f"{target}-wal"
        self._signature = signature(path)
        self.immutable = _is_wal_database(target) and not os.path.lexists(self._wal)
        self._settled = time.time_ns() - self._signature[3] > _RACY_NANOSECONDS
        self.schema_version = -1
        self._version = -1
        self._wal_identity: tuple[int, int] | None = None
        self.reader = _connect(target, immutable=self.immutable, busy_seconds=READER_BUSY_SECONDS)
        try:
            self._probe = _connect(target, immutable=self.immutable, busy_seconds=READER_BUSY_SECONDS)
        except BaseException:
            self.reader.close()
            raise

    def settle(self) -> None:
        """Record the state that the next snapshot will include; call it before the first read, in the worker."""
        self._version = self._data_version()
        self._probe.execute("PRAGMA busy_timeout = 0")  # used on the event loop from now on
        self._wal_identity = file_identity(self._wal)

    def _data_version(self) -> int:
        return int(self._probe.execute("PRAGMA data_version").fetchone()[0])

    def must_reopen(self) -> bool:
        """Return True if the link must be opened again: a new file, a new WAL, or an immutable file that changed."""
        if self.immutable:
            return not self._settled or self.was_opened_for_writing()
        return file_identity(self._path) != self._signature[:2] or file_identity(self._wal) != self._wal_identity

    def was_opened_for_writing(self) -> bool:
        """Return True if an immutable file was opened for writing; discard what was read."""
        try:
            # `access` creates no exception for a missing file, so it takes half the time of `stat`.
            return signature(self._path) != self._signature or os.access(self._wal, os.F_OK)
        except OSError:
            return True

    def changed(self) -> bool:
        """Return True if a commit may have landed since the last call."""
        if self.must_reopen():
            return True
        if self.immutable:
            return False
        try:
            version = self._data_version()
        except sqlite3.Error:
            return True
        changed = version != self._version
        self._version = version
        return changed

    def close(self) -> ClosedFile | None:
        """Close both connections, and return what shows later changes; never fails.

        None if a commit may have landed since `changed` was last asked, or could land now without a visible trace.
        """
        closed = self._unchanged()
        for connection in (self._probe, self.reader):
            try:
                connection.close()
            except sqlite3.Error:
                continue
        return closed

    def _unchanged(self) -> ClosedFile | None:
        try:
            found = Content.at(self._path, self._wal)
        except OSError:
            return None
        written_at = max(one[3] for one in found if one is not None)
        is_settled = time.time_ns() - written_at > _RACY_NANOSECONDS
        return ClosedFile(self._path, self._wal, found) if is_settled and not self.changed() else None


def _connect(path: str, *, immutable: bool, busy_seconds: float) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path))}?mode=ro{'&immutable=1' if immutable else ''}"
    # The link's two threads never use one connection at the same time: `source` holds a lock while it swaps links.
    return sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)


def _is_wal_database(path: str) -> bool:
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    return header.startswith(_MAGIC) and header[_WRITE_VERSION_AT:] == bytes((_WAL_VERSION, _WAL_VERSION))
