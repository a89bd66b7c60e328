"""One reading of a session's transcripts: what is new in them since the previous one."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.stamps import MISSING, UNSETTLED, PathStamp, stamp
from fluxbudgetd.sources.transcripts import names, statuses
from fluxbudgetd.sources.transcripts.access import describe
from fluxbudgetd.sources.transcripts.files import (
    NewPart,
    NotRegularError,
    ReadFile,
    ReplacedError,
    read_new,
    unread_file,
)
from fluxbudgetd.sources.transcripts.places import Places
from fluxbudgetd.sources.transcripts.survey import Survey
from fluxbudgetd.wire.text import fold, unfold

#: A reading covers at most this many new bytes, so that answers do not wait for a session's whole history.
MAX_BYTES = 8 << 20


class KnownSession(NamedTuple):
    """What is known of a session between two readings. It is never changed, only replaced.

    `named` is the main file that a hook named. `files` are at their paths, or were deleted there; `gone` are those that
    were replaced. `stamps` are compared with the current ones to decide whether to read again (None: read).
    `directories` are those to watch.
    """

    named: str | None = None
    files: Mapping[str, ReadFile] = {}
    gone: tuple[TranscriptFile, ...] = ()
    stamps: Mapping[str, PathStamp] | None = None
    directories: tuple[str, ...] = ()


def restored_session(named: str | None, files: Iterable[TranscriptFile]) -> KnownSession:
    """Return what is known of a session before its first reading."""
    files = tuple(files)
    return KnownSession(
        named,
        {os.fsdecode(unfold(file.path)): ReadFile(file) for file in files if not file.is_gone},
        tuple(file for file in files if file.is_gone),
    )


def read_session(
    places: Places, session: str, before: KnownSession, clock: Callable[[], int] = now_micros
) -> tuple[KnownSession, TranscriptReading]:
    """Read what is new in a session's files; never raises because of what they are or contain.

    `clock` returns the time, in microseconds since the epoch.
    """
    return _Reading(places, session, before, clock).read()


class _Reading:
    def __init__(self, places: Places, session: str, before: KnownSession, clock: Callable[[], int]) -> None:
        self._places = places
        self._session = session
        self._before = before
        self._clock = clock
        self._files = dict(before.files)
        self._gone = list(before.gone)
        self._numbers = itertools.count(1 + max((file.number for file in self._all_files()), default=0))
        self._survey = Survey(places)
        self._survey.search(session, before.named, {path: known.file.agent for path, known in self._files.items()})
        self._stamps = self._survey.stamps
        self._faults = self._survey.faults
        # The paths of files that are no longer there, by device and inode.
        self._missing: dict[tuple[int, ...], str] = {
            (known.file.dev, known.file.ino): path
            for path, known in self._files.items()
            if known.file.offset and path not in self._survey.files
        }
        self._copies: list[Copy] = []
        self._left = MAX_BYTES
        self._more = False

    def read(self) -> tuple[KnownSession, TranscriptReading]:
        """Read what is new."""
        for path in sorted(self._survey.files, key=lambda path: (self._survey.files[path] != names.MAIN, path)):
            self._visit(path, self._survey.files[path])
        files = self._all_files()
        after = KnownSession(
            self._before.named, self._files, tuple(self._gone), self._stamps, tuple(self._survey.directories)
        )
        reading = TranscriptReading(
            copies=tuple(self._copies),
            files=files,
            more=self._more,
            status=statuses.status_of(self._places.shown, self._session, self._survey, files),
            losses=statuses.losses_of(self._survey, files),
            kept=self._kept(),
            calls={known.file.number: known.call for known in self._files.values() if known.call},
        )
        return after, reading

    def _all_files(self) -> tuple[TranscriptFile, ...]:
        files = (*self._gone, *(known.file for known in self._files.values()))
        return tuple(sorted(files, key=lambda file: file.number))

    def _kept(self) -> frozenset[int]:
        """Return the numbers of the files that were read and are no longer at their paths."""
        deleted = (known.file for path, known in self._files.items() if self._stamps.get(path) == MISSING)
        return frozenset(file.number for file in (*self._gone, *deleted) if file.offset)

    def _visit(self, path: str, plain: str) -> None:
        known = self._files.get(path) or self._moved(path)
        companion, meta = self._companion(path, plain, known)
        if known is not None:
            known = self._renamed(known, companion.agent)._replace(meta=meta, call=companion.call)
            self._files[path] = known
        if known is not None and known.stamp == self._stamps[path]:
            return
        if self._left <= 0:
            self._more = True
            self._stamps[path] = UNSETTLED
        else:
            self._read(path, known or self._unread(path, companion, meta))

    def _renamed(self, known: ReadFile, agent: str) -> ReadFile:
        """Return a known file with its agent's current name. Replaced files at the same path get that name, too."""
        if known.file.agent == agent:
            return known
        self._gone = [
            msgspec.structs.replace(file, agent=agent) if file.path == known.file.path else file for file in self._gone
        ]
        return known._replace(file=msgspec.structs.replace(known.file, agent=agent))

    def _moved(self, path: str) -> ReadFile | None:
        """Return a known file that was moved to this path, under the same name: a new file may reuse an inode."""
        inode = self._stamps[path][:2]
        if os.path.basename(self._missing.get(inode, "")) != os.path.basename(path):
            return None
        known = self._files.pop(self._missing.pop(inode))
        moved = msgspec.structs.replace(known.file, path=fold(os.fsencode(path)))
        self._files[path] = known._replace(file=moved)
        return self._files[path]

    def _unread(self, path: str, companion: names.Companion, meta: PathStamp) -> ReadFile:
        return ReadFile(unread_file(next(self._numbers), path, companion.agent), meta=meta, call=companion.call)

    def _read(self, path: str, known: ReadFile) -> None:
        """Read what is new in a file, or all of a file that has replaced it."""
        try:
            try:
                part = self._new_part(path, known)
            except ReplacedError:
                self._gone.append(msgspec.structs.replace(known.file, is_gone=True))
                companion = names.Companion(known.file.agent, known.call)
                known = self._files[path] = self._unread(path, companion, known.meta)
                part = self._new_part(path, known)
        except (FileNotFoundError, NotADirectoryError):
            self._stamps[path] = MISSING
        except OSError as exc:
            self._faults.append(describe(path, exc))
            if not isinstance(exc, NotRegularError | PermissionError):
                self._stamps[path] = UNSETTLED  # its recovery changes no stamp
        else:
            self._files[path] = part.file
            self._stamps[path] = part.file.stamp
            self._copies += part.copies
            self._left -= part.size
            self._more |= part.more

    def _new_part(self, path: str, known: ReadFile) -> NewPart:
        return read_new(path, known, self._left, self._session, self._clock)

    def _companion(self, path: str, plain: str, known: ReadFile | None) -> tuple[names.Companion, PathStamp]:
        """Return which agent the file belongs to and which tool call launched it, and the stamp of its companion."""
        found = names.Companion(plain) if known is None else names.Companion(known.file.agent, known.call)
        if plain == names.MAIN:
            return found, MISSING
        companion = names.companion(path)
        meta = stamp(companion)
        if meta != MISSING:
            if known is None or known.meta != meta:
                said = names.read_companion(companion)
                found = names.Companion(said.agent or found.agent, said.call or found.call)
            if found.agent == names.plain_agent(path):
                self._stamps[companion] = meta  # it may be only half written
        return found, meta
