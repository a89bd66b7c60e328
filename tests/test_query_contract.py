"""docs/interstat.md, the query contract with interstat, states what the code relies on."""

import re
import sqlite3
from pathlib import Path
from typing import get_args

import pytest

from fluxbudgetd.model import SourceState
from fluxbudgetd.sources.interstat import rows
from harness.interstat import Interstat

TEXT = (Path(__file__).parents[1] / "docs" / "interstat.md").read_text()
COLUMN = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| (required|optional)", re.MULTILINE)
_HISTORY_ONLY = {"total_tokens", "wall_clock_ms"}


def columns(kind: str) -> set[str]:
    """Return the columns that the document lists as `required` or `optional`."""
    return {name for names, found in COLUMN.findall(TEXT) if found == kind for name in re.findall(r"\w+", names)}


def test_columns_are_those_of_the_code() -> None:
    assert columns("required") == set(rows.REQUIRED)
    assert columns("optional") == rows.OPTIONAL.keys() | _HISTORY_ONLY
    assert f"`PRAGMA user_version` is\n**{rows.MINIMUM_USER_VERSION} or greater**" in TEXT


def test_states_are_those_of_sources() -> None:
    _, _, table = TEXT.partition("| what is found | state |")
    named = re.findall(r"`(\w+)`", " ".join(line.split("|")[2] for line in table.splitlines() if line.count("|") == 4))
    assert {"schema_drift", "absent"} <= set(named) <= set(get_args(SourceState))


def test_statements_to_declare_it_with_work(tmp_path: Path) -> None:
    """They succeed on a database that interstat has made, and fail if a required column is missing."""
    (block,) = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    version, required, optional = (line.partition(";")[0] for line in block.splitlines())
    Interstat(tmp_path / "metrics.db").close()
    connection = sqlite3.connect(tmp_path / "metrics.db")
    assert connection.execute(version).fetchone()[0] >= rows.MINIMUM_USER_VERSION
    for statement in (required, optional):
        assert connection.execute(statement).fetchall() == []
    connection.execute(f"ALTER TABLE {rows.TABLE} RENAME COLUMN model TO models")
    with pytest.raises(sqlite3.OperationalError, match="model"):
        connection.execute(required)
    connection.close()
