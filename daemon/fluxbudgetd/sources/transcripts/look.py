"""One look at a session's transcripts: what is new in them since the look before."""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import names, statuses
from fluxbudgetd.sources.transcripts.files import (
    NotRegularError,
    ReplacedError,
    Seen,
    is_openable,
    read_on,
    require_same,
    unread,
)
from fluxbudgetd.sources.transcripts.stamps import MISSING, UNSETTLED, Stamp, stamp
from fluxbudgetd.sources.transcripts.survey import Survey, told
from fluxbudgetd.wire.text import unfold

#: A look reads so many new bytes: answers do not wait for a session's whole history.
LOOK_BYTES = 8 << 20


class Memory(NamedTuple):
    """What is remembered of a session from one look to the next; never changed, only replaced.

    `named`: the main file that was named. `stamps`: what to compare with, to know whether to look again; None: look.
    `directories`: where to watch.
    """

    named: str | None = None
    seen: Mapping[str, Seen] = {}
    stamps: Mapping[str, Stamp] | None = None
    directories: tuple[str, ...] = ()


def remembered(named: str | None, files: Iterable[TranscriptFile]) -> Memory:
    """Return what is known of a session before its first look."""
    return Memory(named, {os.fsdecode(unfold(file.path)): Seen(file) for file in files})


def look(root: str, session: str, before: Memory) -> tuple[Memory, TranscriptReading]:
    """Look at a session's files; never raises for what they are or hold."""
    try:
        return _Look(root, session, before).go()
    except ReplacedError:
        # Its copies may have put others out, of files that are as they were: those have to be read again as well.
        return _Look(root, session, before).go_afresh()


class _Look:
    def __init__(self, root: str, session: str, before: Memory) -> None:
        self._root = root
        self._session = session
        self._before = before
        self._seen = dict(before.seen)
        self._numbers = itertools.count(1 + max((one.file.number for one in self._seen.values()), default=0))
        self._survey = Survey(root)
        self._survey.look(session, before.named, {path: one.file.agent for path, one in self._seen.items()})
        self._stamps = self._survey.stamps
        self._faults = self._survey.faults
        self._afresh = False
        self._void: set[int] = set()
        self._copies: list[Copy] = []
        self._left = LOOK_BYTES
        self._more = False

    def go_afresh(self) -> tuple[Memory, TranscriptReading]:
        """Read every file again from its start; those that have gone, or cannot be opened, keep what they gave."""
        self._afresh = True
        for path in self._survey.files:
            known = self._seen.get(path)
            if known is not None and is_openable(path):
                self._seen[path] = _restarted(path, known, known.file.agent)
                self._void.add(known.file.number)
        return self.go()

    def go(self) -> tuple[Memory, TranscriptReading]:
        """Read what is new; raises `ReplacedError` when a file is not the one that it was."""
        for path in sorted(self._survey.files, key=lambda path: (self._survey.files[path] != names.MAIN, path)):
            self._visit(path, self._survey.files[path])
        files = tuple(sorted((one.file for one in self._seen.values()), key=lambda file: file.number))
        memory = Memory(self._before.named, self._seen, self._stamps, tuple(self._survey.directories))
        status = statuses.of(self._root, self._session, self._survey, files)
        return memory, TranscriptReading(tuple(self._copies), files, frozenset(self._void) or None, self._more, status)

    def _visit(self, path: str, plain: str) -> None:
        known = self._seen.get(path)
        agent, meta = self._agent(path, plain, known)
        renamed = known is not None and known.file.agent != agent
        if known is not None and not renamed and known.stamp == self._stamps[path]:
            self._seen[path] = known._replace(meta=meta)
        elif self._left <= 0:
            self._more = True
            self._stamps[path] = UNSETTLED
        else:
            if known is None:
                known = Seen(unread(next(self._numbers), path, agent))
            if self._read(path, known._replace(meta=meta), agent) and renamed:
                self._void.add(known.file.number)

    def _read(self, path: str, known: Seen, agent: str) -> bool:
        """Read a file on, if that can be done; from its start when it turns out to be another agent's."""
        try:
            if known.file.agent != agent:
                require_same(path, known.file)
                known = _restarted(path, known, agent)
            part = read_on(path, known, self._left)
        except ReplacedError:
            if not self._afresh:
                raise
            self._stamps[path] = UNSETTLED  # it could not be opened a moment ago: next time
            self._more = True
            return False
        except (FileNotFoundError, NotADirectoryError):
            self._stamps[path] = MISSING
            return False
        except OSError as exc:
            self._faults.append(told(path, exc))
            if not isinstance(exc, NotRegularError | PermissionError):
                self._stamps[path] = UNSETTLED  # nothing tells when it passes
            return False
        self._seen[path] = part.seen
        self._stamps[path] = part.seen.stamp
        self._copies += part.copies
        self._left -= part.took
        self._more |= part.more
        return True

    def _agent(self, path: str, plain: str, known: Seen | None) -> tuple[str, Stamp]:
        """Return the agent whose file it is, and the stamp of the companion that says so."""
        agent = plain if known is None else known.file.agent
        if plain == names.MAIN:
            return agent, MISSING
        companion = names.companion(path)
        meta = stamp(companion)
        if meta != MISSING:
            if known is None or known.meta != meta:
                agent = names.agent_type(companion) or agent
            if agent == names.plain_agent(path):
                self._stamps[companion] = meta  # it says nothing as it is; it may be being written
        return agent, meta


def _restarted(path: str, known: Seen, agent: str) -> Seen:
    return Seen(unread(known.file.number, path, agent), meta=known.meta)
