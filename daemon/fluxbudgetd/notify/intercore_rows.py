"""Our row of a run in intercore's database: what the run's own sessions have used, for intercore's tools.

The database belongs to intercore. This is what is written to it, and how:

* A run has one row in `dispatches`, `fluxbudget-RUN`. Its values are absolute, so writing it again after a crash, or
  into a restored backup, counts nothing twice. No other row of that table is touched.
* `state` gets the run's usage by phase (`phase_tokens`). On request, `budget.exceeded` is deleted there, so that
  intercore's budget check refuses again.
* The database is read first, in a way that creates no files. It is opened for writing only if something differs, and
  then all differences are written in one short transaction.
* Nothing is written unless the tables are as expected: with a trigger, or an unknown column that requires a value, we
  would not know what our row means.

Only SQLite opens these files. Closing any other descriptor of them would drop all locks that this process has on them.
"""

import os
import sqlite3
import stat
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from fluxbudgetd.notify.intercore_faults import NotWrittenError, named_failures
from fluxbudgetd.wire.text import unfold

_BUSY_SECONDS = 0.2
# Reading fails while another program's -wal appears or vanishes.
_READS = 4
_OLDEST_SCHEMA = 6
_ROOT = 0

#: The columns that are written or compared. The names of a table's key come first.
_COLUMNS = {
    "dispatches": (
        *("id", "agent_type", "status", "project_dir", "name", "scope_id"),
        *("input_tokens", "output_tokens", "cache_hits", "created_at", "completed_at"),
    ),
    "state": ("key", "scope_id", "payload", "updated_at"),
    "runs": ("id",),
}
_KEYS = {"dispatches": {"id"}, "state": {"key", "scope_id"}, "runs": {"id"}}
_WRITTEN = ("dispatches", "state")

_RUN = "SELECT count(*) FROM runs WHERE id = :run"
_FOREIGN = "SELECT count(*) FROM dispatches WHERE id = :id AND (agent_type IS NOT 'fluxbudget' OR scope_id IS NOT :run)"
_ROWS = "SELECT count(*) FROM dispatches WHERE id = :id"
_SAME_ROW = """
SELECT count(*) FROM dispatches WHERE id = :id AND status = 'completed' AND project_dir = :project_dir
AND name = 'fluxbudget' AND input_tokens = :input AND output_tokens = :output AND cache_hits = :cache
"""
_INSERT_ROW = """
INSERT INTO dispatches(id, agent_type, status, project_dir, name, scope_id, input_tokens, output_tokens, cache_hits,
                       created_at, completed_at)
VALUES (:id, 'fluxbudget', 'completed', :project_dir, 'fluxbudget', :run, :input, :output, :cache, :now, :now)
"""
_UPDATE_ROW = """
UPDATE dispatches SET status = 'completed', project_dir = :project_dir, name = 'fluxbudget', input_tokens = :input,
                      output_tokens = :output, cache_hits = :cache, completed_at = :now
WHERE id = :id AND agent_type = 'fluxbudget' AND scope_id = :run
"""
_PHASES = "SELECT count(*) FROM state WHERE key = 'phase_tokens' AND scope_id = :run"
_SAME_PHASES = "SELECT count(*) FROM state WHERE key = 'phase_tokens' AND scope_id = :run AND payload = :phases"
_PUT_PHASES = """
INSERT INTO state(key, scope_id, payload, updated_at) VALUES ('phase_tokens', :run, :phases, :now)
ON CONFLICT(key, scope_id) DO UPDATE SET payload = excluded.payload, updated_at = excluded.updated_at
"""
_REFUSED = "SELECT count(*) FROM state WHERE key = 'budget.exceeded' AND scope_id = :run"
_REARM = "DELETE FROM state WHERE key = 'budget.exceeded' AND scope_id = :run"


class PhaseTokens(NamedTuple):
    """What a run has used in one phase."""

    phase: str
    input: int
    output: int


class OwnRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the database must say about a run; `run` is its id there.

    `cache` are the tokens read from the cache. `rearm`: remove intercore's record that it has refused once.
    """

    run: str
    project_dir: str
    input: int = 0
    output: int = 0
    cache: int = 0
    phases: tuple[PhaseTokens, ...] = ()
    rearm: bool = False

    def values(self, now: int) -> dict[str, str | int]:
        """Return the parameters of the statements; `now` is in seconds."""
        phases = {each.phase: {"input_tokens": each.input, "output_tokens": each.output} for each in self.phases}
        return {
            "id": f"fluxbudget-{self.run}",
            "run": self.run,
            "project_dir": self.project_dir,
            "input": self.input,
            "output": self.output,
            "cache": self.cache,
            "phases": msgspec.json.encode(phases).decode(),
            "now": now,
        }


class _Differences(NamedTuple):
    """The rows that differ from the database, and the runs that it does not have."""

    rows: list[OwnRow]
    missing: frozenset[str]


def write(path: str, rows: Sequence[OwnRow], now: int) -> frozenset[str]:
    """Write the rows that differ. Return the runs that the database does not have; nothing is written for them.

    `path` is the real path, as folded text, and `now` the time in seconds. Waits at most 0.2 s for a lock. Raises
    `NotWrittenError`, and then nothing was written.
    """
    file = os.fsdecode(unfold(path))
    with named_failures(file):
        _require_usable(file)
        found = _compare_undisturbed(file, rows)
        if found is None or found.rows:
            found = _write_differences(file, rows, now)
        return found.missing


def _require_usable(path: str) -> None:
    """Raise `NotWrittenError` for a file that must not be used: it may have been replaced since it was found."""
    info = os.lstat(path)
    if os.path.islink(os.path.dirname(path)) or not stat.S_ISREG(info.st_mode):
        raise NotWrittenError(path, "failed", "it is not a regular file, or its directory is a symbolic link")
    if info.st_uid not in (os.geteuid(), _ROOT):
        raise NotWrittenError(path, "failed", f"it belongs to another user (uid {info.st_uid})")


def _compare_undisturbed(path: str, rows: Sequence[OwnRow]) -> _Differences | None:
    """Compare without creating files or taking a lock that a writer would notice; None if that is impossible now."""
    for _ in range(_READS):
        before = _content(path)
        # Without a -wal, the main file is the whole database.
        mode = "mode=ro&immutable=1" if before.wal is None else "mode=ro"
        try:
            with closing(_connect(path, mode, 0)) as connection:
                found = _differences(path, connection, rows)
        except sqlite3.Error:
            continue
        if before.wal is not None or _content(path) == before:
            return found
    return None


def _write_differences(path: str, rows: Sequence[OwnRow], now: int) -> _Differences:
    with closing(_connect(path, "mode=rw", _BUSY_SECONDS)) as connection:
        ((journal,),) = connection.execute("PRAGMA journal_mode")
        if journal != "wal":
            raise NotWrittenError(path, "drifted", f"its journal mode is {journal}, not wal")
        # Without a sync, the lock is held for less time. What a power failure loses is written again.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        found = _differences(path, connection, rows)
        for row in found.rows:
            _put(path, connection, row, now)
        connection.execute("COMMIT")
    return found


def _put(path: str, connection: sqlite3.Connection, row: OwnRow, now: int) -> None:
    values = row.values(now)
    if not _count(connection, _SAME_ROW, values):
        is_new = not _count(connection, _ROWS, values)
        written = connection.execute(_INSERT_ROW if is_new else _UPDATE_ROW, values).rowcount
        if written != 1:
            raise NotWrittenError(path, "drifted", f"the row {values['id']} exists {written} times")
    if not _count(connection, _SAME_PHASES, values):
        connection.execute(_PUT_PHASES, values)
    if row.rearm:
        connection.execute(_REARM, values)


def _differences(path: str, connection: sqlite3.Connection, rows: Sequence[OwnRow]) -> _Differences:
    """Return what has to be written; raises `NotWrittenError` if it must not be."""
    _require_known_schema(path, connection)
    different, missing = [], set()
    for row in rows:
        values = row.values(0)
        if not _count(connection, _RUN, values):
            missing.add(row.run)
        elif _count(connection, _FOREIGN, values):
            raise NotWrittenError(path, "drifted", f"the row {values['id']} belongs to another program")
        elif not _is_same(connection, row, values):
            different.append(row)
    return _Differences(different, frozenset(missing))


def _is_same(connection: sqlite3.Connection, row: OwnRow, values: Mapping[str, str | int]) -> bool:
    if row.rearm and _count(connection, _REFUSED, values):
        return False
    # A run without usage needs no row, but one that is there must not keep an old number.
    is_unused = not (row.input or row.output or row.cache or row.phases)
    if is_unused and not _count(connection, _ROWS, values) and not _count(connection, _PHASES, values):
        return True
    return bool(_count(connection, _SAME_ROW, values) and _count(connection, _SAME_PHASES, values))


def _require_known_schema(path: str, connection: sqlite3.Connection) -> None:
    ((version,),) = connection.execute("PRAGMA user_version")
    if version < _OLDEST_SCHEMA:
        raise NotWrittenError(path, "drifted", f"its schema version is {version}, and must be {_OLDEST_SCHEMA} or more")
    tables = {
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage")
    }
    for table, columns in _COLUMNS.items():
        if table not in tables:
            raise NotWrittenError(path, "drifted", f"it has no table {table}")
        _require_known_columns(path, connection, table, columns)
    query = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    for name, table in connection.execute(query):
        if table.lower() in _WRITTEN:
            raise NotWrittenError(path, "drifted", f"the table {table} has a trigger, {name}")


def _require_known_columns(path: str, connection: sqlite3.Connection, table: str, columns: Sequence[str]) -> None:
    absent, key = set(columns), set()
    for _, name, _, is_required, default, place_in_key, hidden in connection.execute(f"PRAGMA table_xinfo({table})"):
        if hidden:  # generated: it cannot be written
            continue
        absent.discard(name)
        if place_in_key:
            key.add(name)
        if is_required and default is None and name not in columns and table in _WRITTEN:
            raise NotWrittenError(path, "drifted", f"the column {name} of the table {table} needs an unknown value")
    if absent:
        raise NotWrittenError(path, "drifted", f"the table {table} has no column {min(absent)}")
    if key != _KEYS[table]:
        raise NotWrittenError(path, "drifted", f"the key of the table {table} is {', '.join(sorted(key)) or 'missing'}")


def _count(connection: sqlite3.Connection, query: str, values: Mapping[str, str | int]) -> int:
    ((count,),) = connection.execute(query, values)
    return int(count)


def _connect(path: str, mode: str, busy_seconds: float) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path))}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None)
    # The schema may come with a cloned repository: its expressions must not call functions with side effects.
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


class _Content(NamedTuple):
    """What identifies the content of the database: of its main file, and of its -wal if there is one."""

    main: tuple[int, int, int]
    wal: tuple[int, int, int] | None


def _content(path: str) -> _Content:
    try:
        wal = _identity(f"{path}-wal")
    except FileNotFoundError:
        wal = None
    return _Content(_identity(path), wal)


def _identity(path: str) -> tuple[int, int, int]:
    info = os.stat(path)
    return info.st_ino, info.st_size, info.st_mtime_ns
