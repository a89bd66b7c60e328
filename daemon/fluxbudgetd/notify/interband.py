"""The side-band that an existing status line reads: a file per session, `<root>/interstat/budget/<session>.json`.

Its reader rejects percentages above 100 and ignores a file's age, so outdated files must be removed.
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
# File names are limited to 255 bytes.
_MOST_CHARACTERS = 200
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]")
_OLD_SECONDS = 7 * 24 * 3600
_LEFT_SECONDS = 3600
_MICROS = 1_000_000
_WHOLE_SECONDS = len("2026-02-20T17:05:55")


class Alert(NamedTuple):
    """How much of its budget a session's run has spent: percent, and tokens of the run's cost basis."""

    session: str
    pct: float
    tokens: int


class Interband:
    """The side-band below a root (a leading `~` is expanded). A call takes at most `seconds`."""

    def __init__(self, root: str, *, seconds: float = _SECONDS) -> None:
        self._root = root
        self._seconds = seconds
        self._worker = Worker("writing interband's files", f"check the file system of {shown_file(root)}")

    async def put(self, alerts: Sequence[Alert], gone: Sequence[str], at: int, current: Collection[str] = ()) -> None:
        """Write the alerts, and remove the files of sessions that are gone and files that are a week old.

        `at` is the time in microseconds since the epoch. Files of `current` sessions are kept at any age. Raises
        `ChannelError` for the first file that failed, after all others have been handled, or if the file system does
        not answer.
        """
        names = frozenset(map(file_name, current))
        await self._worker.run(partial(self._put, tuple(alerts), tuple(gone), at, names), self._seconds)

    def _put(self, alerts: tuple[Alert, ...], gone: tuple[str, ...], at: int, current: frozenset[str]) -> None:
        directory = self._directory()
        contents = {file_name(alert.session): _content(alert, at) for alert in alerts}
        failures = Failures()
        with failures.at(directory, "created"):
            if contents:
                private_directories(directory)
        failures.raise_first()
        # Removals first: two sessions may share a file.
        for session in gone:
            path = os.path.join(directory, file_name(session))
            with failures.at(path, "removed"):
                remove(path)
        for name, content in contents.items():
            path = os.path.join(directory, name)
            with failures.at(path, "written"):
                write(path, content, directory)
        _prune(directory, at / _MICROS, current, failures)
        failures.raise_first()

    def _directory(self) -> str:
        root = os.path.expanduser(self._root)
        if not os.path.isabs(root) or "\0" in root:
            raise ChannelError(f"interband's root is not absolute: {shown_file(self._root)}", "give an absolute path")
        return os.path.join(root, "interstat", "budget")


def file_name(session: str) -> str:
    """Return the name of a session's file; the reader derives the same name from the session's id."""
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


def _prune(directory: str, now: float, current: frozenset[str], failures: Failures) -> None:
    """Remove files that were not written for a week, and temporary files that a killed daemon has left."""
    with failures.at(directory, "scanned"):
        if not os.path.isdir(directory):
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY):
                    max_age = _LEFT_SECONDS
                elif entry.name.endswith(_SUFFIX) and entry.name not in current:
                    max_age = _OLD_SECONDS
                else:
                    continue
                with failures.at(entry.path, "removed"):
                    if not entry.is_dir(follow_symlinks=False) and _is_older(entry, now - max_age):
                        remove(entry.path)


def _is_older(entry: os.DirEntry[str], since: float) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < since
    except FileNotFoundError:
        return False
