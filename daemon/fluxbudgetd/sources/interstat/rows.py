"""The rows of `agent_runs`, and their conversion to usage records.

SQLite allows any type of value in any column.
"""

import marshal
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fluxbudgetd.model import Usage
from fluxbudgetd.sources.values import agent_name, moment, text, token_counts
from fluxbudgetd.wire.text import fold

TABLE = "agent_runs"
REQUIRED = ("session_id", "agent_name", "model", "timestamp", "input_tokens", "output_tokens")
#: column → the SQL to use instead in a file that does not have it yet
OPTIONAL = {"cache_read_tokens": "NULL", "cache_creation_tokens": "NULL", "bead_id": "''", "phase": "''"}
MINIMUM_USER_VERSION = 1

Row = Sequence[object]

# An id is bound as its bytes, since Python cannot bind text that is not UTF-8. It may be stored as text or as a blob.
_IS = "IN (CAST(:id AS TEXT), :id)"


class Columns(msgspec.Struct, frozen=True):
    """The columns and indexes of this file's table."""

    user_version: int
    present: frozenset[str]
    indexed: frozenset[str]

    @property
    def drift(self) -> str:
        """Return why the table cannot be read, or ""."""
        missing = [name for name in REQUIRED if name not in self.present]
        if missing:
            return f"required column {', '.join(missing)} is missing from {TABLE}"
        if self.user_version < MINIMUM_USER_VERSION:
            return f"user_version is {self.user_version}, at least {MINIMUM_USER_VERSION} is expected"
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is missing but not needed."""
        absent = [f"no column {name}" for name in (*OPTIONAL, "total_tokens") if name not in self.present]
        unindexed = [name for name in ("session_id", "bead_id") if name in self.present and name not in self.indexed]
        return (*absent, *(f"no index on {name}: reading is slow" for name in unindexed))

    @property
    def select(self) -> str:
        """Return the SQL of one session's rows, by index; `:id` is the session id's bytes."""
        columns = [
            *REQUIRED[1:],
            *(name if name in self.present else stand_in for name, stand_in in OPTIONAL.items()),
        ]
        return f"SELECT rowid, {', '.join(columns)} FROM {TABLE} WHERE session_id {_IS}"  # noqa: S608  our own names

    @property
    def select_scope(self) -> str | None:
        """Return the SQL of the sessions that name a bead (`:id`, as bytes), by index; None if there are no beads."""
        if "bead_id" not in self.present:
            return None
        return f"SELECT DISTINCT session_id FROM {TABLE} WHERE bead_id {_IS}"  # noqa: S608  likewise

    @property
    def select_recent(self) -> str:
        """Return the SQL of the newest rows' session, bead and tokens; `:count` is how many."""
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
        tokens = [name if name in self.present else "NULL" for name in names]
        bead = "bead_id" if "bead_id" in self.present else "''"
        return (
            f"SELECT session_id, {bead}, {', '.join(tokens)} FROM {TABLE} "  # noqa: S608  likewise
            f"WHERE rowid > (SELECT max(rowid) FROM {TABLE}) - :count"
        )


def digest(rows: list[Any]) -> int:
    """Return a number that changes when the rows do (their own hash may not: hash(2**61 - 1) == hash(0))."""
    return hash(marshal.dumps(rows, 0))


def read_columns(connection: sqlite3.Connection) -> Columns | None:
    """Return the table's columns, and those that an index begins with; None if there is no such table."""
    connection.text_factory = fold
    info = connection.execute(f"PRAGMA table_info({TABLE})").fetchall()
    if not info:
        return None
    indexed = set()
    for index in connection.execute(f"PRAGMA index_list({TABLE})").fetchall():
        quoted = str(index[1]).replace('"', '""')
        first = connection.execute(f'PRAGMA index_info("{quoted}")').fetchone()
        if first is not None:
            indexed.add(first[2])
    return Columns(
        user_version=connection.execute("PRAGMA user_version").fetchone()[0],
        present=frozenset(column[1] for column in info),
        indexed=frozenset(name for name in indexed if name is not None),
    )


def records(rows: Iterable[Row]) -> tuple[tuple[Usage, ...], int]:
    """Return a session's rows as usage records, and how many of their counts were invalid."""
    anomalies = 0
    usage = []
    for position, row in enumerate(rows):
        rowid, agent, model, timestamp, input_, output, cache_read, cache_creation, bead, phase = row
        counts, invalid = token_counts((input_, output, cache_read, cache_creation))
        anomalies += invalid
        usage.append(
            Usage(
                rowid if isinstance(rowid, int) else -1 - position,  # a view has no rowids
                moment(timestamp),
                agent_name(agent),
                text(model),
                text(bead),
                text(phase),
                input_ is None and output is None,
                *counts,
            )
        )
    return tuple(usage), anomalies
