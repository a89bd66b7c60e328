"""interstat databases of any size: each is made once, and copied for each use."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from harness.interstat import FULL_SCHEMA

SMALL, MIDDLE, LARGE = 10_000, 100_000, 1_000_000
SESSION_ROWS = 20
#: A session with a large share of the rows, like that of a long sprint.
SPRINT = "sprint"
#: The billing tokens of each row.
ROW_TOKENS = 110


def database(base: Path, path: Path, rows: int) -> None:
    """Copy a database with this many rows to `path`. The template of each size is made once, beside `base`."""
    template = base.parent / f"{rows}.db"
    if not template.exists():
        _make(template, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(template, path)


def sprint_rows(rows: int) -> int:
    """Return how many of the rows belong to the sprint: one in a hundred."""
    return rows // 100


def _sessions(rows: int) -> Iterator[str]:
    """Yield the session of each row: twenty rows per session, but in the last tenth every tenth row is the sprint's."""
    for number in range(rows):
        recent = number >= rows - rows // 10
        yield SPRINT if recent and number % 10 == 0 else f"s{number // SESSION_ROWS}"


def _make(path: Path, rows: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.executescript(FULL_SCHEMA)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens, model) "
        "VALUES ('2026-01-01T00:00:00Z', ?, 'interflux:fd-quality', 100, 10, 'claude-opus-4-6')",
        ((session,) for session in _sessions(rows)),
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
