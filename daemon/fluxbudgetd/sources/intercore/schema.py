"""The tables and columns that are read, the version that each must have, and their SQL."""

import sqlite3
from typing import NamedTuple, Self

from fluxbudgetd.sources.databases import fetch
from fluxbudgetd.sources.intercore.faults import FaultError
from fluxbudgetd.sources.values import text

OLDEST = 6
#: The newest version that this reader was tested with.
NEWEST = 39

# table → column → the version that has it
_COLUMNS = {
    "runs": {
        "id": OLDEST,
        "project_dir": OLDEST,
        "goal": OLDEST,
        "status": OLDEST,
        "phase": OLDEST,
        "phases": OLDEST,
        "complexity": OLDEST,
        "scope_id": OLDEST,
        "token_budget": OLDEST,
        "budget_warn_pct": OLDEST,
        "budget_enforce": 20,
        "created_at": OLDEST,
        "updated_at": OLDEST,
        "completed_at": OLDEST,
    },
    "phase_events": dict.fromkeys(("id", "run_id", "from_phase", "to_phase", "event_type", "created_at"), OLDEST),
    "run_agents": dict.fromkeys(("run_id", "agent_type", "name", "created_at"), OLDEST),
    "session_attributions": dict.fromkeys(("session_id", "bead_id", "run_id", "created_at"), 26),
    "dispatches": dict.fromkeys(
        (
            "id",
            "agent_type",
            "model",
            "input_tokens",
            "output_tokens",
            "cache_hits",
            "scope_id",
            "created_at",
            "completed_at",
        ),
        OLDEST,
    ),
}
# Longer texts are not read. A goal is cut.
_MOST_BYTES = 16_384
_MOST_GOAL = 4096


class Schema(NamedTuple):
    """The version of a database, and which of the known columns its tables have."""

    version: int
    present: dict[str, frozenset[str]]

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> Self:
        """Return the schema; raises `FaultError` if the database cannot be read with it."""
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        # Views and virtual tables are left out, because they could run for ever. They have no root page.
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        tables = {text(name) for (name,) in fetch(connection, sql, {})}
        if not tables:
            raise FaultError("empty", "the database has no tables")
        if version < OLDEST:
            raise FaultError("schema_drift", f"schema {version} is older than {OLDEST}", "update it with: ic init")
        present = {table: _columns(connection, table) for table in _COLUMNS if table in tables}
        for table, columns in _COLUMNS.items():
            missing = [
                name for name, since in columns.items() if since <= version and name not in present.get(table, ())
            ]
            if missing and table not in present:
                raise FaultError("schema_drift", f"table {table} of schema {version} is missing")
            if missing:
                raise FaultError("schema_drift", f"column {', '.join(missing)} is missing from {table}")
        return cls(version, present)

    @property
    def has_attributions(self) -> bool:
        """Return True if sessions are attributed to runs and beads."""
        return "session_attributions" in self.present

    @property
    def run_columns(self) -> str:
        """Return the SQL of a run's columns, in the order of `rows.run_of`."""
        enforce = "budget_enforce" if "budget_enforce" in self.present["runs"] else "0"
        texts = (short(name) for name in ("id", "project_dir", "status", "phase", "phases", "scope_id"))
        numbers = ("complexity", "token_budget", "budget_warn_pct", enforce, "created_at", "updated_at", "completed_at")
        return ", ".join((*texts, f"substr(goal, 1, {_MOST_GOAL})", *map(number, numbers)))


def short(name: str) -> str:
    """Return the SQL of a column's value, NULL if it is too long."""
    return f"CASE WHEN length(CAST({name} AS BLOB)) <= {_MOST_BYTES} THEN {name} END"


def number(name: str) -> str:
    """Return the SQL of a numeric column. If a value is a text or a blob, only its beginning is read."""
    return f"CASE WHEN typeof({name}) IN ('text', 'blob') THEN substr({name}, 1, 20) ELSE {name} END"


def _columns(connection: sqlite3.Connection, table: str) -> frozenset[str]:
    return frozenset(text(column[1]) for column in fetch(connection, f"PRAGMA table_info({table})", {}))
