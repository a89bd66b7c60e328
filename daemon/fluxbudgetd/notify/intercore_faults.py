"""Why a write to one of intercore's databases failed, as a named state with a hint."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.wire.text import shown_path

NotWritten = Literal["absent", "corrupt", "drifted", "failed", "full", "locked", "read-only"]

_STATE_OF_CODE: dict[int, NotWritten] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
}
_HINTS: dict[NotWritten, str] = {
    "absent": "it is written again once intercore has created it",
    "corrupt": "recover what is left with: sqlite3 FILE .recover",
    "drifted": "look for a newer fluxbudget; [intercore] write_back = false switches this off",
    "failed": "fluxbudgetd tries again; [intercore] write_back = false switches this off",
    "full": "make room on its disk",
    "locked": "another program holds a lock on it; fluxbudgetd tries again",
    "read-only": "check the permissions of the file and its directory",
}


class NotWrittenError(ChannelError):
    """A database was not written. `state` names the reason, `detail` describes it without the path."""

    def __init__(self, path: str, state: NotWritten, detail: str, hint: str = "") -> None:
        super().__init__(f"{shown_path(path)} was not written: {state}: {detail}", hint or _HINTS[state])
        self.state = state
        self.detail = detail


@contextmanager
def named_failures(path: str) -> Iterator[None]:
    """Raise errors of SQLite and the file system as `NotWrittenError`."""
    try:
        yield
    except FileNotFoundError as exc:
        raise NotWrittenError(path, "absent", "the file does not exist") from exc
    except OSError as exc:
        raise NotWrittenError(path, "failed", exc.strerror or str(exc)) from exc
    except sqlite3.Error as exc:
        state = _STATE_OF_CODE.get(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF, "failed")
        # SQLite reports a directory in which it cannot create the -wal as a file that it cannot open.
        if state in ("failed", "read-only") and (refusal := _refusal(path)) is not None:
            raise refusal from exc
        raise NotWrittenError(path, state, str(exc)) from exc


def _refusal(path: str) -> NotWrittenError | None:
    """Return the error for files that the daemon may not write; None if it may."""
    directory = os.path.dirname(path)
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        project = shown_path(os.path.dirname(directory))
        hint = f"if the service's sandbox protects it: fluxbudgetctl service install --sprints {project}"
        return NotWrittenError(path, "read-only", "its file system is read-only for fluxbudgetd", hint)
    if not (os.access(directory, os.W_OK) and os.access(path, os.W_OK)):
        return NotWrittenError(path, "read-only", "fluxbudgetd has no permission to write it")
    return None
