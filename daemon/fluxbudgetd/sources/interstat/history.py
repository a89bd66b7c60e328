"""Each agent's rows: summed over the whole table for estimates, and the newest ones for samples.

These queries scan the whole table, so they use their own connection, never the one that keeps totals fresh. SQLite does
the arithmetic on rows, in integers, so that sums are exact.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.model import AgentSample, MeasuredRow, NewRows, RowMark
from fluxbudgetd.policy.estimates import is_name
from fluxbudgetd.sources.databases import fetch
from fluxbudgetd.sources.interstat.rows import TABLE, Columns, digest
from fluxbudgetd.sources.values import agent_name, moment, text
from fluxbudgetd.wire.messages import MAX_TOKENS
from fluxbudgetd.wire.text import unfold

#: At most this many of the newest rows are returned, however large the table is, because they are in memory at once.
NEWEST_ROWS = 5_000
#: Of so many of the newest rows, it is noticed if they are measured again.
RECENT_ROWS = 1_000

# Counts are non-negative integers; other values count as 0, and rows without a valid total are skipped.
_INPUT, _OUTPUT = (
    f"CASE WHEN typeof({name}) = 'integer' AND {name} >= 0 THEN {name} ELSE 0 END"
    for name in ("input_tokens", "output_tokens")
)
# A year. A longer time is wrong.
_MOST_MILLISECONDS = 365 * 86_400_000
# In place of a longer text there is none, so that the newest rows fit into memory.
_MOST_BYTES = 1_000
_SESSION, _TIME, _AGENT, _MODEL = (
    f"CASE WHEN length(CAST({name} AS BLOB)) <= {_MOST_BYTES} THEN {name} END"
    for name in ("session_id", "timestamp", "agent_name", "model")
)
# The sum of two huge counts is capped, so that it stays an integer.
_BILLING = f"min({_INPUT}, {MAX_TOKENS} - ({_OUTPUT})) + {_OUTPUT}"
_COUNTS = "typeof(total_tokens) = 'integer' AND total_tokens >= 0"


def has_totals(columns: Columns) -> bool:
    """Return True if the table has totals. In an older file without that column, no row counts."""
    return "total_tokens" in columns.present


def samples(connection: sqlite3.Connection, model: str) -> tuple[AgentSample, ...]:
    """Return each agent's sums over its rows that name this model, or none."""
    # High and low halves are summed apart, so that sums of huge numbers do not overflow.
    halves = ", ".join(f"sum({column} >> 32), sum({column} & 4294967295)" for column in ("billing", "total"))
    sql = (
        f"SELECT agent_name, count(*), {halves} FROM ("  # noqa: S608  our own names
        f"SELECT agent_name, {_BILLING} AS billing, total_tokens AS total FROM {TABLE} "
        f"WHERE (model = CAST(:model AS TEXT) OR model IS NULL) AND {_COUNTS}) GROUP BY agent_name"
    )
    return tuple(
        AgentSample(text(agent), rows, (high << 32) + low, (total_high << 32) + total_low)
        for agent, rows, high, low, total_high, total_low in fetch(connection, sql, {"model": unfold(model)})
    )


def new_rows(connection: sqlite3.Connection, columns: Columns, mark: RowMark) -> NewRows:
    """Return the sub-agents' rows that were measured or have changed since a mark, of the newest rows."""
    ((last,),) = connection.execute(f"SELECT ifnull(max(rowid), 0) FROM {TABLE}").fetchall()  # noqa: S608  our own name
    if last < mark.last:
        mark = RowMark()  # another table than before
    duration = "wall_clock_ms" if "wall_clock_ms" in columns.present else "NULL"
    select = (
        f"SELECT rowid, {_SESSION}, {_TIME}, {_AGENT}, {_MODEL}, {_INPUT}, {_OUTPUT}, total_tokens, "  # noqa: S608  likewise
        f"{duration}, {_COUNTS} FROM {TABLE}"
    )
    sql = (
        f"SELECT * FROM ({select} WHERE rowid > :read ORDER BY rowid DESC LIMIT {NEWEST_ROWS}) "  # noqa: S608  likewise
        f"UNION ALL {select} WHERE rowid <= :read AND rowid IN (SELECT value FROM json_each(:pending))"
    )
    pending = msgspec.json.encode(sorted(mark.pending)).decode()
    rows: list[MeasuredRow] = []
    waiting: set[int] = set()
    recent: dict[int, int] = {}
    for row in fetch(connection, sql, {"read": max(mark.last - RECENT_ROWS, 0), "pending": pending}):
        key, measured, fingerprint = row[0], _measured_row(row), digest([row])
        if measured is None:
            if row[7] is None and key > last - NEWEST_ROWS:
                waiting.add(key)
            continue
        if mark.recent.get(key) != fingerprint:
            rows.append(measured)
        if key > last - RECENT_ROWS:
            recent[key] = fingerprint
    return NewRows(rows, RowMark(last, frozenset(waiting), recent))


def _measured_row(row: Sequence[Any]) -> MeasuredRow | None:
    key, session, at, agent, model, input_, output, total, milliseconds, counts = row
    name = agent_name(agent)
    if not counts or name == "main-session" or not is_name(name):
        return None
    is_known = isinstance(milliseconds, int) and 0 <= milliseconds <= _MOST_MILLISECONDS
    return MeasuredRow(
        key, text(session), moment(at), name, text(model), input_, output, total, milliseconds if is_known else None
    )
