"""Read a consistent state of a database that other processes open, write and close at any time.

Without a `-wal` file, the database is opened `immutable`: SQLite then takes no lock and creates no file, and reads even
while a writer is changing the file. So such a read only counts if the stamps before and after it are equal. Soon after
a change, equal stamps prove nothing, because file times have the granularity of a clock tick; then two reads in a row
must agree.

With a `-wal` file, SQLite's own locks give a consistent read. If the file appears or disappears at that moment, the
read fails or does not begin, and is retried. A writer that closes the database during such a read leaves the `-wal`
file behind. A call of `ic` takes only a moment, so the reader first gives it time to end.

Only SQLite opens the files: closing any other descriptor of them would drop the locks that another connection of this
process holds.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from fluxbudgetd.sources.databases import state_of
from fluxbudgetd.sources.intercore.faults import FaultError
from fluxbudgetd.sources.stamps import MISSING, UNSETTLED, PathStamp, content_stamp, settled, stamp

# The time for all attempts together: a client may be waiting. On a busy machine, even a few attempts take longer.
_RETRY_SECONDS = 0.05
_FEWEST_ATTEMPTS = 3
# SQLite does not wait for a lock. If it waited for a writer that is closing the database, it would then create the
# `-wal` file that the writer has removed.
_BUSY_SECONDS = 0.0
_IMMEDIATE_RETRIES = 4
_PAUSE_SECONDS = 0.001
# A read that takes this long is interrupted. SQLite checks the time after this many of its instructions.
_READ_SECONDS = 1.0
_INSTRUCTIONS = 20_000
# The longest value or row, in bytes, so that no row fills the memory.
_LONGEST = 4_000_000

# How long to wait for a writer to end before reading beside it.
_WRITER_SECONDS = 0.02

T = TypeVar("T")


class Stamp(NamedTuple):
    """Identifies a state of the database: a commit changes it.

    `unsettled` is usually 0. It is the current time if the files are so new that a later commit may leave their stamps
    unchanged. Such a stamp equals no other.
    """

    main: PathStamp
    wal: PathStamp
    unsettled: int = 0

    def is_same_file(self, other: "Stamp | None") -> bool:
        """Return True if both stamps show the same files."""
        return other is not None and (self.main, self.wal) == (other.main, other.wal)


def stamp_at(path: str) -> Stamp | None:
    """Return the present stamp of a database, None if there is none. Takes two calls of `stat`."""
    now = time.time_ns()
    # When root opens a -wal file, SQLite sets its owner, which changes its change time, even in order to read.
    main, wal = stamp(path), content_stamp(f"{path}-wal")
    if main == MISSING:
        return None
    is_settled = UNSETTLED not in (settled(main, now), settled(wal, now))
    return Stamp(main, wal, 0 if is_settled else now)


def read_consistently(path: str, read: Callable[[sqlite3.Connection], T]) -> T:
    """Call `read` in a transaction of its own, several times if necessary, and return its result.

    Raises `sqlite3.Error` and `FaultError`, as `read` may, and passes on all other exceptions of `read`.
    """
    _let_writer_end(path)
    deadline = time.monotonic() + _RETRY_SECONDS
    unconfirmed: T | None = None
    attempts = 0
    while True:
        attempts += 1
        failure: Exception = _still_changing()
        try:
            found, is_confirmed = _attempt(path, read)
        except _RetryError as exc:
            unconfirmed, failure = None, exc.failure
        else:
            if is_confirmed or found == unconfirmed:
                return found
            unconfirmed = found
        if attempts >= _FEWEST_ATTEMPTS and time.monotonic() > deadline:
            raise failure
        if attempts > _IMMEDIATE_RETRIES:
            time.sleep(_PAUSE_SECONDS)


def _let_writer_end(path: str) -> None:
    """Wait while there is a `-wal` file that has just been written."""
    until = time.monotonic() + _WRITER_SECONDS
    while (found := stamp_at(path)) is not None and found.wal != MISSING and found.unsettled:
        if time.monotonic() > until:
            break
        time.sleep(_PAUSE_SECONDS)


class _RetryError(Exception):
    """A read that failed because of what another process was doing at that moment."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _still_changing() -> FaultError:
    return FaultError("locked", "the database keeps changing while it is read")


def _attempt(path: str, read: Callable[[sqlite3.Connection], T]) -> tuple[T, bool]:
    """Return what was read, and True if it is a consistent state."""
    before = stamp_at(path)
    is_immutable = not _is_open_elsewhere(path)
    try:
        found = _read_once(path, read, is_immutable=is_immutable)
    except (sqlite3.Error, FaultError, UnicodeDecodeError) as exc:
        is_too_slow = state_of(exc)[0] == "slow"
        if before is None or is_too_slow or (_is_lasting(exc) and stamp_at(path) == before):
            raise
        raise _RetryError(exc) from exc
    if not is_immutable:
        return found, True
    if before is None or not before.is_same_file(stamp_at(path)):
        raise _RetryError(_still_changing())
    return found, not before.unsettled


def _read_once(path: str, read: Callable[[sqlite3.Connection], T], *, is_immutable: bool) -> T:
    options = "mode=ro&immutable=1" if is_immutable else "mode=ro"
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    stop_at = time.monotonic() + _READ_SECONDS
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > stop_at, _INSTRUCTIONS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        connection.execute("PRAGMA trusted_schema = OFF")
        # SQLite would create a `-wal` file that is missing, and leave it there.
        if _is_open_elsewhere(path) == is_immutable:
            raise _RetryError(_still_changing())
        connection.execute("BEGIN")
        try:
            return read(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _is_lasting(error: Exception) -> bool:
    """Return True if the error comes from what the files contain."""
    return isinstance(error, FaultError) or state_of(error)[0] in {"corrupt", "not_a_database"}


def _is_open_elsewhere(path: str) -> bool:
    """Return True if the main file alone may not be the whole database."""
    return any(os.path.lexists(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
