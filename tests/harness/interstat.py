"""A database as the interstat plugin writes it."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FULL_SCHEMA = """
CREATE TABLE agent_runs(id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, session_id TEXT NOT NULL,
  agent_name TEXT NOT NULL, invocation_id TEXT, subagent_type TEXT, description TEXT, wall_clock_ms INTEGER,
  result_length INTEGER, input_tokens INTEGER, output_tokens INTEGER, cache_read_tokens INTEGER,
  cache_creation_tokens INTEGER, total_tokens INTEGER, model TEXT, parsed_at TEXT,
  bead_id TEXT DEFAULT '', phase TEXT DEFAULT '');
CREATE INDEX idx_session ON agent_runs(session_id);
CREATE INDEX idx_agent ON agent_runs(agent_name);
CREATE INDEX idx_timestamp ON agent_runs(timestamp);
CREATE INDEX idx_subagent ON agent_runs(subagent_type);
CREATE INDEX idx_bead ON agent_runs(bead_id);
CREATE INDEX idx_phase ON agent_runs(phase);
PRAGMA user_version = 2;
"""

#: The schema of the oldest files, without the later columns.
OLD_SCHEMA = """
CREATE TABLE agent_runs(id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, session_id TEXT NOT NULL,
  agent_name TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, model TEXT);
CREATE INDEX idx_session ON agent_runs(session_id);
PRAGMA user_version = 1;
"""


def stamp() -> str:
    """Return the current time as interstat writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Interstat:
    """A writer of interstat's database: every method is one commit."""

    def __init__(self, path: Path, schema: str = FULL_SCHEMA, journal: str = "wal") -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        self.connection.execute(f"PRAGMA journal_mode={journal}")
        if not self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            # In one transaction: a daemon that is watching must not see half of the tables.
            self.connection.executescript(f"BEGIN; {schema} COMMIT;")

    def insert(self, session: Any, agent: str = "fd-quality", **columns: Any) -> int:
        """INSERT a row; tokens are NULL unless given. Returns its id."""
        values = {"timestamp": stamp(), "session_id": session, "agent_name": agent, **columns}
        places = ", ".join("?" * len(values))
        cursor = self.connection.execute(
            f"INSERT INTO agent_runs({', '.join(values)}) VALUES ({places})", tuple(values.values())
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update(self, row: int, **columns: Any) -> None:
        """UPDATE a row in place, as the parser does."""
        places = ", ".join(f"{name} = ?" for name in columns)
        self.connection.execute(f"UPDATE agent_runs SET {places} WHERE id = ?", (*columns.values(), row))

    def close(self) -> None:
        self.connection.close()
