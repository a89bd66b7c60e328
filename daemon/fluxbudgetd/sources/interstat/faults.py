"""Why the database cannot be read, as a named state with a hint."""

import sqlite3

from fluxbudgetd.model import SourceState

NAME = "interstat"

_STATE_OF_CODE: dict[int, SourceState] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "not_a_database",
}
_SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ

HINTS: dict[SourceState, str] = {
    "absent": "interstat creates it when its first sub-agent ends; another path: --interstat-db or $INTERSTAT_DB",
    "empty": "interstat has not set it up yet",
    "locked": "another program holds a lock on it; reading resumes when the lock is released",
    "slow": "reading took too long; a later answer includes the result",
    "corrupt": "recover what is left with: sqlite3 FILE .recover",
    "not_a_database": "check the path: --interstat-db or $INTERSTAT_DB",
    "schema_drift": "interstat's table has changed: look for a newer fluxbudget, or an older interstat",
    "unreadable": "check the file's and the directory's permissions",
}


def state_of(error: Exception) -> tuple[SourceState, str]:
    """Return the state and the detail for an error of SQLite or the file system."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "absent", "the file does not exist"
    if isinstance(error, OSError):
        return "unreadable", error.strerror or str(error)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "unreadable", str(error)
    if code == _SHORT_READ:
        return "corrupt", str(error)
    return _STATE_OF_CODE.get(code & 0xFF, "unreadable"), str(error)
