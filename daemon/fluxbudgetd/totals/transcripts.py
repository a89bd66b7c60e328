"""Following sessions' transcripts: what has come since the last look, merged into what was known before.

The responses of a session are in the ledger, beside how far its files have been read; in memory they are only for the
few sessions that something has come of lately. So memory does not grow with the transcripts, and a look costs what has
come, not what is there.
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from fluxbudgetd.errors import BadInputError, LedgerError
from fluxbudgetd.ledger import Ledger, TranscriptChanges
from fluxbudgetd.model import Copy, Instance, SourceStatus, TranscriptFile, TranscriptReading, Usage
from fluxbudgetd.sources.transcripts import MAIN, TranscriptSource, agent_id, merged
from fluxbudgetd.threads import off_loop

# So many responses are kept in memory, in the sessions that were looked at last (at least in the last): some megabytes.
_MOST_COPIES = 20_000
_MOST_NOTES = 10
# However little changes, a session is looked for anew this often: it may go on in another project's directory.
_SURVEY_SECONDS = 5.0
_IDLE_SURVEY_SECONDS = 60.0
# The number of the row in which a path that was named is kept; files have numbers above 0.
_NAMED = -1

#: The copies that count, by message.
Known = dict[int, tuple[Copy, ...]]
#: By (message, key) the copy that counts, or None when it counts no more.
Changes = dict[tuple[int, int], Copy | None]


class Delta(NamedTuple):
    """What a reading has changed: copies that count no more, and copies that count now."""

    gone: tuple[Copy, ...]
    new: tuple[Copy, ...]


class _Merged(NamedTuple):
    touched: Known
    changes: Changes
    delta: Delta


class _Unkept(msgspec.Struct):
    """What of a session is not in the ledger yet."""

    copies: Changes = msgspec.field(default_factory=dict)
    files: tuple[TranscriptFile, ...] = ()
    named: TranscriptFile | None = None


class Transcripts:
    """The transcripts of the sessions that are followed.

    One task reads at a time. Whoever applies a reading, or asks for copies, holds the lock of the sums: so sums and
    copies always agree.
    """

    def __init__(self, source: TranscriptSource, ledger: Ledger) -> None:
        self.statuses: dict[str, SourceStatus] = {}
        self.files: dict[str, tuple[TranscriptFile, ...]] = {}
        self._source = source
        self._ledger = ledger
        # When a session was looked at last, in monotonic seconds; absent: what the ledger knows is not taken up yet.
        self._looked: dict[str, float] = {}
        # The sessions of which the ledger has anything.
        self._kept: set[str] = set()
        self._known: dict[str, Known] = {}
        self._unkept: dict[str, _Unkept] = {}
        self._writing: dict[str, _Unkept] = {}
        self._reading: str | None = None
        # Of the sessions that have reservations, when each file had its first response, by the file's number.
        self._first: dict[str, dict[int, int | None]] = {}
        self._reader = anyio.CapacityLimiter(1)
        # What is read from the ledger must not miss what is being written to it.
        self._disk = anyio.Lock()

    async def prepare(self) -> None:
        """Find out which sessions the ledger knows the transcripts of; raises `LedgerError`."""
        self._kept = set(await self._ledger.transcripts.sessions())

    @property
    def status(self) -> SourceStatus:
        """Return the state of all the transcripts that are followed together.

        None is needed, so it is `ok` unless one is there that cannot be read.
        """
        bad = [one for one in self.statuses.values() if one.state == "unreadable"]
        notes = tuple(dict.fromkeys(note for one in self.statuses.values() for note in one.notes))
        read = sum(bool(files) for files in self.files.values())
        more = f" (and {len(bad) - 1} more sessions)" if len(bad) > 1 else ""
        return SourceStatus(
            name="transcripts",
            path=self._source.path,
            state="unreadable" if bad else "ok",
            detail=f"{bad[0].detail}{more}" if bad else f"{read} sessions have one",
            hint=bad[0].hint if bad else "",
            notes=(*notes[:_MOST_NOTES], *((f"(and {len(notes) - _MOST_NOTES} more)",) if notes[_MOST_NOTES:] else ())),
        )

    @property
    def anomalies(self) -> int:
        """Return how many counts were dropped, because they were negative or not whole numbers."""
        return sum(file.anomalies for files in self.files.values() for file in files)

    def size(self, session: str) -> int:
        """Return how many paths `changed` has to look at."""
        return self._source.size(session)

    def changed(self, session: str, *, asked: bool = True) -> bool:
        """Tell whether anything may have come that the last look has not seen. Only looks at sizes and names.

        `asked`: somebody wants to know; else a session is looked for anew more rarely.
        """
        looked = self._looked.get(session)
        patience = _SURVEY_SECONDS if asked else _IDLE_SURVEY_SECONDS
        if looked is None or time.monotonic() - looked > patience:
            return True
        return self._source.changed(session)

    def paths(self, sessions: Iterable[str]) -> tuple[str, ...]:
        """Return the directories in which something may come of these sessions."""
        return tuple(sorted({path for session in sessions for path in self._source.paths(session)}))

    def forget_all_but(self, sessions: Collection[str]) -> None:
        """Let go of the sessions that are not followed any more."""
        kept = {*sessions, *self._unkept, *self._writing, self._reading}
        for session in [name for name in self._looked if name not in kept]:
            self._source.forget(session)
            del self._looked[session]
            for table in (self.statuses, self.files, self._known):
                table.pop(session, None)

    async def watch_agents(self, session: str) -> None:
        """Note from now on when each of a session's transcripts has its first response; raises `LedgerError`.

        Until that was possible none is known; then those of the meantime are, too.
        """
        if session in self._first:
            return
        async with self._disk:
            first = await self._ledger.transcripts.first_responses(session) if session in self._kept else {}
            if session in self._unkept:
                _note_first(first, filter(None, self._unkept[session].copies.values()))
            self._first[session] = first

    def unwatch_agents(self, session: str) -> None:
        """Note it no more."""
        self._first.pop(session, None)

    def instances(self, session: str) -> tuple[Instance, ...]:
        """Return the sub-agents of a watched session whose transcripts hold usage."""
        first = self._first.get(session, {})
        return tuple(
            Instance(session, file.agent, agent_id(file.path), first[file.number])
            for file in self.files.get(session, ())
            if file.number in first and file.agent != MAIN and first[file.number] is not None
        )

    async def name(self, session: str, path: str) -> None:
        """Note where a session's transcript is; raises `BadInputError` for a path outside Claude's directory."""
        await self.take_up(session)
        real = await anyio.to_thread.run_sync(
            self._source.name, session, path, abandon_on_cancel=True, limiter=self._reader
        )
        # Kept, so that it is found after a restart, too, though it may not be there yet.
        self._unkept.setdefault(session, _Unkept()).named = TranscriptFile(_NAMED, real, 0, 0, 0, b"", "")

    def is_taken_up(self, session: str) -> bool:
        """Tell whether a session was looked at since the daemon started."""
        return session in self._looked

    async def take_up(self, session: str) -> None:
        """Go on with a session where the ledger has left it; raises `LedgerError`."""
        if session in self._looked:
            return
        rows = await self._ledger.transcripts.files(session) if session in self._kept else ()
        files = tuple(file for file in rows if file.number != _NAMED)
        self._source.restore(session, files)
        for file in rows:
            if file.number == _NAMED:
                with suppress(BadInputError):  # it leads elsewhere now
                    await anyio.to_thread.run_sync(
                        self._source.name, session, file.path, abandon_on_cancel=True, limiter=self._reader
                    )
        self.files[session] = files
        self._looked[session] = -math.inf

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """Keep a session from being forgotten meanwhile."""
        self._reading = session
        try:
            yield
        finally:
            self._reading = None

    async def read(self, session: str) -> TranscriptReading:
        """Return what has come of a session since the last reading; raises `LedgerError`."""
        await self.take_up(session)
        reading = await anyio.to_thread.run_sync(
            self._source.read, session, abandon_on_cancel=True, limiter=self._reader
        )
        self._looked[session] = time.monotonic()
        self.statuses[session] = reading.status
        return reading

    async def apply(self, session: str, reading: TranscriptReading) -> Delta:
        """Merge a reading into what was known; returns what that changes.

        Raises `LedgerError` when what was known cannot be read; then the same will be read again.
        """
        delta = Delta((), ())
        try:
            if reading.copies or reading.reset:
                known = await self._load(session)
                size = len(reading.copies) + (len(known) if reading.reset else 0)
                found = await off_loop(size, _merge, known, reading)
                known.update(found.touched)
                for message in [message for message, copies in found.touched.items() if not copies]:
                    del known[message]
                self._unkept.setdefault(session, _Unkept()).copies.update(found.changes)
                delta = found.delta
                if session in self._first:
                    _note_first(self._first[session], reading.copies)
        except LedgerError:
            self._source.restore(session, self.files.get(session, ()))
            raise
        if reading.files != self.files.get(session, ()):
            self.files[session] = reading.files
            self._unkept.setdefault(session, _Unkept()).files = reading.files
        return delta

    async def usage(self, session: str) -> tuple[Usage, ...]:
        """Return all responses that count of a session as usage records; raises `LedgerError`."""
        known = self._known.get(session)
        if known is None:
            known = await self._read_known(session)
        return await off_loop(len(known), _usages, known)

    @property
    def has_unkept(self) -> bool:
        """Tell whether something has to be written to the ledger."""
        return bool(self._unkept)

    async def keep(self) -> None:
        """Write to the ledger what was read; if that raises `LedgerError`, it waits for the next attempt."""
        async with self._disk:
            writing = self._writing = self._unkept
            self._unkept = {}
            try:
                await self._ledger.transcripts.save([_changes(*entry) for entry in writing.items()])
            except BaseException:  # a shutdown cancels it, and then what is left is flushed
                for session, older in writing.items():
                    newer = self._unkept.setdefault(session, _Unkept())
                    newer.copies = {**older.copies, **newer.copies}
                    newer.files = newer.files or older.files
                    newer.named = newer.named or older.named
                raise
            else:
                self._kept.update(writing)
            finally:
                self._writing = {}

    async def _load(self, session: str) -> Known:
        known = self._known.pop(session, None)
        if known is None:
            known = await self._read_known(session)
        self._known[session] = known  # the last one is the latest
        total = sum(map(len, self._known.values()))
        for name in list(self._known)[:-1]:
            if total <= _MOST_COPIES:
                break
            total -= len(self._known.pop(name))
        return known

    async def _read_known(self, session: str) -> Known:
        if session not in self._kept and session not in self._writing:
            # Nothing of it is in the ledger, nor on its way there.
            return _with_unkept((), self._unkept[session].copies if session in self._unkept else {})
        async with self._disk:
            kept = await self._ledger.transcripts.responses(session) if session in self._kept else ()
            unkept = self._unkept[session].copies if session in self._unkept else {}
            return await off_loop(len(kept) + len(unkept), _with_unkept, kept, dict(unkept))


def _note_first(first: dict[int, int | None], copies: Iterable[Copy]) -> None:
    for copy in copies:
        known = first.get(copy.file)
        if copy.size and copy.at is not None and (known is None or copy.at < known):
            first[copy.file] = copy.at


def _merge(known: Mapping[int, tuple[Copy, ...]], reading: TranscriptReading) -> _Merged:
    """Return what a reading makes of the messages that it touches."""
    touched: Known = {}
    for message, copies in known.items() if reading.reset else ():
        kept = tuple(copy for copy in copies if copy.file not in (reading.reset or ()))
        if len(kept) != len(copies):
            touched[message] = kept
    for new in reading.copies:
        copies = touched[new.message] if new.message in touched else known.get(new.message, ())
        gone, added = merged(copies, new)
        if gone or added:
            touched[new.message] = (*(copy for copy in copies if copy not in gone), *added)
    changes: Changes = {}
    less: list[Copy] = []
    more: list[Copy] = []
    for message, copies in touched.items():
        old = known.get(message, ())
        changes.update({(copy.message, copy.key): None for copy in old})
        changes.update({(copy.message, copy.key): copy for copy in copies})
        less += (copy for copy in old if copy not in copies)
        more += (copy for copy in copies if copy not in old)
    return _Merged(touched, changes, Delta(tuple(less), tuple(more)))


def _with_unkept(kept: Iterable[Copy], unkept: Changes) -> Known:
    by_key = {(copy.message, copy.key): copy for copy in kept}
    for key, copy in unkept.items():
        if copy is None:
            by_key.pop(key, None)
        else:
            by_key[key] = copy
    known: Known = {}
    for copy in by_key.values():
        known[copy.message] = (*known.get(copy.message, ()), copy)
    return known


def _changes(session: str, one: _Unkept) -> TranscriptChanges:
    return TranscriptChanges(
        session=session,
        gone=tuple(key for key, copy in one.copies.items() if copy is None),
        new=tuple(copy for copy in one.copies.values() if copy is not None),
        files=one.files if one.named is None else (*one.files, one.named),
    )


def _usages(known: Known) -> tuple[Usage, ...]:
    return tuple(usage(copy) for copies in known.values() for copy in copies)


def usage(copy: Copy) -> Usage:
    """Return a response as a usage record; it belongs to a run by its session and time alone."""
    return Usage(
        key=copy.key,
        at=copy.at,
        agent=copy.agent,
        model=copy.model,
        bead="",
        phase="",
        pending=False,
        input=copy.input,
        output=copy.output,
        cache_read=copy.cache_read,
        cache_creation=copy.cache_creation,
    )
