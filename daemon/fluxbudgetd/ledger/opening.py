"""Open the ledger: upgrade its schema, refuse a newer file, move a damaged one aside."""

import os
import sqlite3
import time
from datetime import UTC, datetime

import aiosqlite
import anyio.to_thread
import msgspec

from fluxbudgetd.errors import StartError
from fluxbudgetd.ledger.database import Database, OnCommitted
from fluxbudgetd.ledger.ledger import Ledger
from fluxbudgetd.ledger.schema import APPLICATION_ID, STEPS, VERSION, add_functions
from fluxbudgetd.model import PhaseRecord, Run
from fluxbudgetd.wire.codes import BAD_INPUT

FILE_NAME = "ledger.db"

# A full check reads the whole file. Above this size only the small tables are checked, so that the daemon is ready
# within a second.
_FULL_CHECK_BYTES = 32 << 20
# Only the daemon writes to the ledger; wait only this long for a tool that locks it.
_BUSY_SECONDS = 2.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The file itself last: a kill in between must not leave an old WAL beside a new ledger.
_SUFFIXES = ("-shm", "-wal", "")


class _DamagedError(Exception):
    """The file is not a sound ledger."""


async def open_ledger(directory: str, on_committed: OnCommitted = lambda _events: None) -> tuple[Ledger, str | None]:
    """Open (or create) the ledger in a directory.

    Returns it, and the path to which a damaged one was moved, or None. `on_committed` is called after each transaction
    that wrote events. Raises `StartError` if the file cannot be opened or belongs to a newer fluxbudget.
    """
    path = os.path.join(directory, FILE_NAME)
    moved = None
    try:
        try:
            await anyio.to_thread.run_sync(_prepare, path)
        except _DamagedError:
            moved = await anyio.to_thread.run_sync(_move_aside, path)
            await anyio.to_thread.run_sync(_prepare, path)
            await anyio.to_thread.run_sync(_skip_used_event_numbers, path)
        connection = await aiosqlite.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
    except (sqlite3.Error, OSError) as exc:
        raise StartError(f"the ledger {path} cannot be opened: {exc}", "check the directory and the disk") from exc
    return Ledger(await Database.prepare(connection, path, on_committed)), moved


def moved_aside(directory: str) -> tuple[str, ...]:
    """Return the paths of the damaged ledgers in a directory."""
    names = (name for name in os.listdir(directory) if name.startswith(f"{FILE_NAME}.damaged-"))
    return tuple(sorted(os.path.join(directory, name) for name in names if not name.endswith(("-wal", "-shm"))))


def _prepare(path: str) -> None:
    """Create, upgrade and check the file; raises `_DamagedError` or `StartError`."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        try:
            _upgrade(connection, path)
            _check(connection, path)
        finally:
            connection.close()
    except sqlite3.DatabaseError as exc:
        if (getattr(exc, "sqlite_errorcode", 0) or 0) & 0xFF in _DAMAGED:
            raise _DamagedError(str(exc)) from exc
        raise
    os.chmod(path, 0o600)


def _skip_used_event_numbers(path: str) -> None:
    """Start a new ledger's event numbers above any that the damaged one can have used."""
    connection = sqlite3.connect(path, timeout=5)
    try:
        with connection:
            last = time.time_ns() // 1000
            # A schema step may have left a row already; SQLite reads only one.
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
            connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES ('events', ?)", (last,))
    finally:
        connection.close()


def _upgrade(connection: sqlite3.Connection, path: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise _DamagedError("the file is a database, but not a ledger")
    if version > VERSION:
        raise StartError(
            f"the ledger {path} has schema {version}; this fluxbudgetd knows schemas up to {VERSION}",
            "start the newer fluxbudgetd that wrote it, or name another --state-dir",
            BAD_INPUT,
        )
    connection.execute("PRAGMA journal_mode = WAL")
    add_functions(connection)
    for number in range(version, VERSION):
        # One transaction per step, including the version: a kill leaves a file of one version or the next.
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; {STEPS[number]}"
            f"PRAGMA user_version = {number + 1}; COMMIT;"
        )


def _check(connection: sqlite3.Connection, path: str) -> None:
    is_small = os.path.getsize(path) <= _FULL_CHECK_BYTES
    checks = (
        ("PRAGMA quick_check(1)",)
        if is_small
        else tuple(
            f"PRAGMA quick_check({table})"
            for table in ("runs", "attachments", "phases", "thresholds", "reservations", "samples")
        )
    )
    for check in checks:
        verdict = connection.execute(check).fetchone()[0]
        if verdict != "ok":
            raise _DamagedError(str(verdict))
    _check_contents(connection)


def _check_contents(connection: sqlite3.Connection) -> None:
    """Decode what the daemon reads when it starts. SQLite's check does not notice a damaged byte within a text."""
    try:
        for current, started_as in connection.execute("SELECT run, started_as FROM runs"):
            msgspec.json.decode(current, type=Run)
            msgspec.json.decode(started_as, type=Run)
        connection.execute("SELECT * FROM attachments").fetchall()
        for table in ("thresholds", "channels", "told", "reservations"):
            connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608  our own names
        for _ in connection.execute("SELECT * FROM samples"):
            pass
        for (record,) in connection.execute("SELECT record FROM phases"):
            msgspec.json.decode(record, type=PhaseRecord)
        for (data,) in connection.execute("SELECT data FROM events WHERE kind >= 'source.' LIMIT 100"):
            msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError) as exc:
        raise _DamagedError(str(exc)) from exc
    except sqlite3.OperationalError as exc:
        if getattr(exc, "sqlite_errorcode", None) is None:  # raised by Python: a text that is not UTF-8
            raise _DamagedError(str(exc)) from exc
        raise


def _move_aside(path: str) -> str:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = f"{path}.damaged-{stamp}"
    for suffix in _SUFFIXES:
        if os.path.lexists(path + suffix):
            os.rename(path + suffix, target + suffix)
    return target
