"""The side-band that an existing status line reads: a file for each session, `<root>/interstat/budget/<session>.json`.

Its reader rejects percentages above 100 and never looks at a file's age, so what is no longer so has to be removed.
"""

import os
import re
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.model import to_text
from fluxbudgetd.notify.atomic import TEMPORARY, Failures, private_directories, remove, write
from fluxbudgetd.notify.worker import Worker

_SECONDS = 5.0
_SUFFIX = ".json"
# A file name may have 255 bytes.
_MOST_CHARACTERS = 200
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]")
_OLD_SECONDS = 7 * 24 * 3600
_LEFT_SECONDS = 3600
_MICROS = 1_000_000
_WHOLE_SECONDS = len("2026-02-20T17:05:55")


class Alert(NamedTuple):
    """How much of its budget the run of a session has consumed: percent, and tokens of the run's cost basis."""

    session: str
    pct: float
    tokens: int


class Interband:
    """The side-band below a root; a `~` at its beginning is expanded. `seconds`: the most that a call takes."""

    def __init__(self, root: str, *, seconds: float = _SECONDS) -> None:
        self._root = root
        self._seconds = seconds
        self._worker = Worker("writing interband's files", f"check the file system of {shown_file(root)}")

    async def put(self, alerts: Sequence[Alert], gone: Sequence[str], at: int, lasting: Collection[str] = ()) -> None:
        """Write the alerts, remove the files of the sessions that are gone, and what is old. `at` is now, see `model`.

        `lasting`: the sessions whose files, however old, are still true.

        A file that cannot be written keeps none of the others from being: its `ChannelError` comes at the end. A file
        system that does not answer is one, too.
        """
        names = frozenset(map(file_name, lasting))
        await self._worker.run(partial(self._put, tuple(alerts), tuple(gone), at, names), self._seconds)

    def _put(self, alerts: tuple[Alert, ...], gone: tuple[str, ...], at: int, lasting: frozenset[str]) -> None:
        directory = self._directory()
        contents = {file_name(alert.session): _content(alert, at) for alert in alerts}
        failures = Failures()
        with failures.at(directory, "made"):
            if contents:
                private_directories(directory)
        failures.conclude()
        # Before anything is written: two sessions may share a file.
        for session in gone:
            path = os.path.join(directory, file_name(session))
            with failures.at(path, "removed"):
                remove(path)
        for name, content in contents.items():
            path = os.path.join(directory, name)
            with failures.at(path, "written"):
                write(path, content, directory)
        _prune(directory, at / _MICROS, lasting, failures)
        failures.conclude()

    def _directory(self) -> str:
        root = os.path.expanduser(self._root)
        if not os.path.isabs(root) or "\0" in root:
            raise ChannelError(f"interband's root is not absolute: {shown_file(self._root)}", "give an absolute path")
        return os.path.join(root, "interstat", "budget")


def file_name(session: str) -> str:
    """Return what a session's file is called; the reader makes the same of the session's id."""
    name = _FOREIGN.sub("_", session[:_MOST_CHARACTERS]) or "_"
    return f"_{name[1:]}{_SUFFIX}" if name.startswith(".") else f"{name}{_SUFFIX}"


def _content(alert: Alert, at: int) -> bytes:
    return msgspec.json.encode(
        {
            "version": "1.0.0",
            "namespace": "interstat",
            "type": "budget_alert",
            "session_id": alert.session,
            "timestamp": f"{to_text(at)[:_WHOLE_SECONDS]}Z",
            "payload": {
                "pct_consumed": max(0.0, min(100.0, alert.pct)),
                "total_tokens": alert.tokens,
                "session_id": alert.session,
                "ts": at // _MICROS,
            },
        }
    )


def _prune(directory: str, now: float, lasting: frozenset[str], failures: Failures) -> None:
    """Remove files that nobody has written for a week, and what a kill has left of files that were being made."""
    with failures.at(directory, "looked through"):
        if not os.path.isdir(directory):
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY):
                    most = _LEFT_SECONDS
                elif entry.name.endswith(_SUFFIX) and entry.name not in lasting:
                    most = _OLD_SECONDS
                else:
                    continue
                with failures.at(entry.path, "removed"):
                    if not entry.is_dir(follow_symlinks=False) and _is_older(entry, now - most):
                        remove(entry.path)


def _is_older(entry: os.DirEntry[str], since: float) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < since
    except FileNotFoundError:
        return False
