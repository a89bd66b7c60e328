"""Other programs' SQLite databases: what errors mean, and how to fetch rows whose text may not be UTF-8."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from fluxbudgetd.model import SourceState

_STATE_OF_CODE: dict[int, SourceState] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "not_a_database",
    sqlite3.SQLITE_INTERRUPT: "slow",
}
_SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ


def state_of(error: Exception) -> tuple[SourceState, str]:
    """Return the state and the detail for an error of SQLite or the file system."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "absent", "the file does not exist"
    if isinstance(error, OSError):
        return "unreadable", error.strerror or str(error)
    if isinstance(error, UnicodeDecodeError):
        return "corrupt", "SQLite's error message is not UTF-8, so probably the schema is not, either"
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "unreadable", str(error)
    if code == _SHORT_READ:
        return "corrupt", str(error)
    return _STATE_OF_CODE.get(code & 0xFF, "unreadable"), str(error)


def fetch(connection: sqlite3.Connection, sql: str, parameters: Mapping[str, object]) -> list[Any]:
    """Return a query's rows. If any text is not UTF-8, all texts are bytes; `values.text` converts both."""
    connection.text_factory = str
    try:
        return connection.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as exc:
        # An error that Python raised, not SQLite, has no error code.
        if getattr(exc, "sqlite_errorcode", None) is not None:
            raise
    connection.text_factory = bytes
    return connection.execute(sql, parameters).fetchall()
