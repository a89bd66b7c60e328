"""The old layout: before 2.1.2, Claude Code wrote `agent-*.jsonl` next to the files of its sessions.

The session that such a file belongs to is in its lines. Nothing is kept in the ledger: after a restart, the first lines
of the files are read again.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence

import msgspec

from fluxbudgetd.sources.stamps import UNSETTLED, PathStamp, directory_stamp
from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.files import LINE_BYTES, opened

#: The first version with the new layout.
_NEW_LAYOUT = (2, 1, 2)
# A directory may hold the files of thousands of sessions. It is listed after each change only for sessions of old
# versions, and for others this often, in seconds.
_LIST_SECONDS = 5.0
_CHUNK_BYTES = 64 << 10
_HEAD_BYTES = 256 << 10
_MOST_KNOWN = 200_000
# A file's path, device and inode. The inode of a deleted file is used again at once.
_File = tuple[str, int, int]
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


class _Line(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815  Claude Code's spelling
    version: str | None = None


class _Listing:
    """The sub-agents' transcripts in a directory by session, and those whose session is not known yet."""

    def __init__(self, stamp: PathStamp, at: float, paths: Iterable[str]) -> None:
        self.stamp = stamp
        self.at = at
        self.by_session: dict[str, list[str]] = {}
        self.unknown = list(paths)


class OldLayout:
    """What is known of the directories of projects. For one worker thread at a time."""

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}
        self._sessions: dict[_File, str] = {}
        self._versions: dict[_File, str] = {}

    @property
    def unknown(self) -> list[str]:
        """The sub-agents' transcripts whose session their lines do not name."""
        return [path for listing in self._listings.values() for path in listing.unknown]

    def agents(self, home: str, session: str, *, is_old: bool) -> Sequence[str]:
        """Return the transcripts of a session's sub-agents that are in a project's directory.

        `is_old`: a version with the old layout has written the session, so it may have a new one at any time.
        """
        listing = self._listed(home, is_old=is_old)
        unknown, listing.unknown = listing.unknown, []
        for path in unknown:
            name = self._session(path)
            (listing.by_session.setdefault(name, []) if name else listing.unknown).append(path)
        return listing.by_session.get(session, ())

    def unknown_in(self, home: str) -> Sequence[str]:
        """Return the transcripts in a directory whose session is not known yet."""
        listing = self._listings.get(home)
        return () if listing is None else tuple(listing.unknown)

    def has_written(self, path: str) -> bool:
        """Return True if a version with the old layout has written a transcript."""
        version = self._first(path, "version", self._versions, _HEAD_BYTES)
        found = _VERSION.match(version)
        return found is not None and tuple(map(int, found.groups())) < _NEW_LAYOUT

    def _session(self, path: str) -> str:
        return self._first(path, "sessionId", self._sessions, LINE_BYTES)

    def _first(self, path: str, field: str, known: dict[_File, str], most: int) -> str:
        """Return the first value of a field of a transcript's lines; empty if there is none yet."""
        try:
            info = os.stat(path)
            file = path, info.st_dev, info.st_ino
            if file in known:
                return known[file]
            value = _first_value(path, field, most)
        except OSError:
            return ""
        if value or info.st_size >= most:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            known[file] = value
        return value

    def _listed(self, home: str, *, is_old: bool) -> _Listing:
        known, now = self._listings.get(home), time.monotonic()
        if known is not None and not is_old and now - known.at < _LIST_SECONDS:
            return known
        stamp = directory_stamp(home)
        if known is None or stamp == UNSETTLED or known.stamp != stamp:
            known = self._listings[home] = _Listing(stamp, now, _agent_files(home))
        known.at = now
        return known


def _agent_files(home: str) -> list[str]:
    try:
        with os.scandir(home) as entries:
            return [entry.path for entry in entries if names.is_sub_agents(entry.name)]
    except OSError:
        return []


def _first_value(path: str, field: str, most: int) -> str:
    """Return the first value of a field in at most `most` bytes; damaged lines are passed over. Raises `OSError`."""
    rest, size = b"", 0
    with opened(os.path.realpath(path)) as (fd, _):
        while size < most and (chunk := os.pread(fd, _CHUNK_BYTES, size)):
            size += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                value = getattr(_parsed(line), field)
                if value:
                    return str(value)
    return ""


def _parsed(line: bytes) -> _Line:
    try:
        return msgspec.json.decode(line, type=_Line)
    except (ValueError, RecursionError):
        return _Line()
