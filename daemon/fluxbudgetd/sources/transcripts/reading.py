"""One reading of a session's transcripts: what is new in them since the previous one."""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import names, statuses
from fluxbudgetd.sources.transcripts.files import (
    NotRegularError,
    ReadFile,
    ReplacedError,
    is_openable,
    read_new,
    require_same,
    unread_file,
)
from fluxbudgetd.sources.transcripts.stamps import MISSING, UNSETTLED, PathStamp, stamp
from fluxbudgetd.sources.transcripts.survey import Survey, describe
from fluxbudgetd.wire.text import unfold

#: A reading covers at most this many new bytes, so that answers do not wait for a session's whole history.
MAX_BYTES = 8 << 20


class KnownSession(NamedTuple):
    """What is known of a session between two readings. It is never changed, only replaced.

    `named` is the main file that a hook named. `stamps` are compared with the current ones to decide whether to read
    again (None: read). `directories` are those to watch.
    """

    named: str | None = None
    files: Mapping[str, ReadFile] = {}
    stamps: Mapping[str, PathStamp] | None = None
    directories: tuple[str, ...] = ()


def restored_session(named: str | None, files: Iterable[TranscriptFile]) -> KnownSession:
    """Return what is known of a session before its first reading."""
    return KnownSession(named, {os.fsdecode(unfold(file.path)): ReadFile(file) for file in files})


def read_session(root: str, session: str, before: KnownSession) -> tuple[KnownSession, TranscriptReading]:
    """Read what is new in a session's files; never raises because of what they are or contain."""
    try:
        return _Reading(root, session, before).read()
    except ReplacedError:
        # Its copies may have replaced copies from unchanged files, so those must be read again as well.
        return _Reading(root, session, before).read_again()


class _Reading:
    def __init__(self, root: str, session: str, before: KnownSession) -> None:
        self._root = root
        self._session = session
        self._before = before
        self._files = dict(before.files)
        self._numbers = itertools.count(1 + max((known.file.number for known in self._files.values()), default=0))
        self._survey = Survey(root)
        self._survey.search(session, before.named, {path: known.file.agent for path, known in self._files.items()})
        self._stamps = self._survey.stamps
        self._faults = self._survey.faults
        self._is_again = False
        self._void: set[int] = set()
        self._copies: list[Copy] = []
        self._left = MAX_BYTES
        self._more = False

    def read_again(self) -> tuple[KnownSession, TranscriptReading]:
        """Read every file again from its start. Copies from files that are gone or cannot be opened are kept."""
        self._is_again = True
        for path in self._survey.files:
            known = self._files.get(path)
            if known is not None and is_openable(path):
                self._files[path] = _restarted(path, known, known.file.agent)
                self._void.add(known.file.number)
        return self.read()

    def read(self) -> tuple[KnownSession, TranscriptReading]:
        """Read what is new; raises `ReplacedError` if a file has been replaced."""
        for path in sorted(self._survey.files, key=lambda path: (self._survey.files[path] != names.MAIN, path)):
            self._visit(path, self._survey.files[path])
        files = tuple(sorted((known.file for known in self._files.values()), key=lambda file: file.number))
        after = KnownSession(self._before.named, self._files, self._stamps, tuple(self._survey.directories))
        status = statuses.status_of(self._root, self._session, self._survey, files)
        return after, TranscriptReading(tuple(self._copies), files, frozenset(self._void) or None, self._more, status)

    def _visit(self, path: str, plain: str) -> None:
        known = self._files.get(path)
        agent, meta = self._agent(path, plain, known)
        renamed = known is not None and known.file.agent != agent
        if known is not None and not renamed and known.stamp == self._stamps[path]:
            self._files[path] = known._replace(meta=meta)
        elif self._left <= 0:
            self._more = True
            self._stamps[path] = UNSETTLED
        else:
            if known is None:
                known = ReadFile(unread_file(next(self._numbers), path, agent))
            if self._read(path, known._replace(meta=meta), agent) and renamed:
                self._void.add(known.file.number)

    def _read(self, path: str, known: ReadFile, agent: str) -> bool:
        """Read what is new in a file, or all of it if its agent has changed. Return True if it was read."""
        try:
            if known.file.agent != agent:
                require_same(path, known.file)
                known = _restarted(path, known, agent)
            part = read_new(path, known, self._left)
        except ReplacedError:
            if not self._is_again:
                raise
            self._stamps[path] = UNSETTLED  # could not be opened: retry on the next read
            self._more = True
            return False
        except (FileNotFoundError, NotADirectoryError):
            self._stamps[path] = MISSING
            return False
        except OSError as exc:
            self._faults.append(describe(path, exc))
            if not isinstance(exc, NotRegularError | PermissionError):
                self._stamps[path] = UNSETTLED  # its recovery changes no stamp
            return False
        self._files[path] = part.file
        self._stamps[path] = part.file.stamp
        self._copies += part.copies
        self._left -= part.size
        self._more |= part.more
        return True

    def _agent(self, path: str, plain: str, known: ReadFile | None) -> tuple[str, PathStamp]:
        """Return the agent that the file belongs to, and the stamp of the companion that names it."""
        agent = plain if known is None else known.file.agent
        if plain == names.MAIN:
            return agent, MISSING
        companion = names.companion(path)
        meta = stamp(companion)
        if meta != MISSING:
            if known is None or known.meta != meta:
                agent = names.agent_type(companion) or agent
            if agent == names.plain_agent(path):
                self._stamps[companion] = meta  # it may be only half written
        return agent, meta


def _restarted(path: str, known: ReadFile, agent: str) -> ReadFile:
    return ReadFile(unread_file(known.file.number, path, agent), meta=known.meta)
