"""What all rows say of each agent: for estimates, and for calibration.

These go through the whole table, so they are read through a connection of their own, never through the one that keeps
totals fresh. Arithmetic on many rows is SQLite's; on sums and ranks it stays exact, in integers.
"""

import sqlite3
from collections.abc import Iterable

from fluxbudgetd.model import AgentRow, AgentSample
from fluxbudgetd.policy.estimates import AGENT_PREFIX, mean
from fluxbudgetd.sources.interstat.rows import TABLE, Columns, fetch
from fluxbudgetd.sources.values import moment, text
from fluxbudgetd.wire.messages import MAX_TOKENS, AgentCalibration, Spread
from fluxbudgetd.wire.text import unfold

#: Of one agent, so many of the newest rows are looked at singly: a bound that does not grow with the table.
NEWEST_ROWS = 20_000

# A name may stand there as text or as a blob.
_TEXT = "CAST(agent_name AS TEXT)"
_NAME = (
    f"CASE WHEN substr({_TEXT}, 1, {len(AGENT_PREFIX)}) = '{AGENT_PREFIX}' "
    f"THEN substr({_TEXT}, {len(AGENT_PREFIX) + 1}) ELSE {_TEXT} END"
)
# A count that is negative or no integer is none; a row whose total is none says nothing.
_INPUT, _OUTPUT = (
    f"CASE WHEN typeof({name}) = 'integer' AND {name} >= 0 THEN {name} ELSE 0 END"
    for name in ("input_tokens", "output_tokens")
)
# The sum of two absurd ones stops at what is an integer.
_BILLING = f"min({_INPUT}, {MAX_TOKENS} - ({_OUTPUT})) + {_OUTPUT}"
_COUNTS = "typeof(total_tokens) = 'integer' AND total_tokens >= 0"


def has_totals(columns: Columns) -> bool:
    """Tell whether rows have a total; in a file from before that column, no row says anything."""
    return "total_tokens" in columns.present


def samples(connection: sqlite3.Connection, model: str) -> tuple[AgentSample, ...]:
    """Return the sums over each agent's rows of a model, or of none."""
    # In two halves, so that sums of absurd numbers do not overflow.
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


def spreads(connection: sqlite3.Connection) -> dict[str, AgentCalibration]:
    """Return mean, p50 and p90 of each agent's rows, by its name without the plugin's prefix."""
    ranks = ", ".join(
        f"row_number() OVER (PARTITION BY agent ORDER BY {column}) AS {column}_rank" for column in ("billing", "total")
    )
    # The nearest rank of a percentile p among n values is ceil(n · p / 100).
    picked = ", ".join(
        f"sum({column} >> 32), sum({column} & 4294967295), "
        f"max(CASE WHEN {column}_rank = (n * 50 + 99) / 100 THEN {column} END), "
        f"max(CASE WHEN {column}_rank = (n * 90 + 99) / 100 THEN {column} END)"
        for column in ("billing", "total")
    )
    sql = (
        f"SELECT agent, max(n), {picked} FROM ("  # noqa: S608  our own names
        f"SELECT agent, billing, total, {ranks}, count(*) OVER (PARTITION BY agent) AS n FROM ("
        f"SELECT {_NAME} AS agent, {_BILLING} AS billing, total_tokens AS total FROM {TABLE} WHERE {_COUNTS})) "
        "GROUP BY agent ORDER BY agent"
    )
    found = {}
    for agent, count, *numbers in fetch(connection, sql, {}):
        billing, total = (
            Spread(mean=mean((high << 32) + low, count), p50=p50, p90=p90)
            for high, low, p50, p90 in (numbers[:4], numbers[4:])
        )
        found[text(agent)] = AgentCalibration(billing=billing, total=total, sample_size=count)
    return found


def agent_rows(connection: sqlite3.Connection, agents: Iterable[str]) -> tuple[AgentRow, ...]:
    """Return the newest measured rows of these agents (plain names)."""
    sql = (
        f"SELECT rowid, session_id, timestamp, agent_name, {_BILLING} FROM {TABLE} "  # noqa: S608  our own names
        f"WHERE agent_name IN (CAST(:agent AS TEXT), :agent) AND {_COUNTS} ORDER BY rowid DESC LIMIT {NEWEST_ROWS}"
    )
    return tuple(
        AgentRow(key, text(session), moment(at), text(name), billing)
        for agent in agents
        for spelling in (agent, AGENT_PREFIX + agent)
        for key, session, at, name, billing in fetch(connection, sql, {"agent": unfold(spelling)})
    )
