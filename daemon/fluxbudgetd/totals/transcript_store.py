"""The responses in the followed sessions' transcripts: new ones are read and merged into those already known.

The responses of a session are in the ledger, together with the positions up to which its files were read. Memory holds
them only for the few sessions that were read last, so it does not grow with the transcripts. A read takes time for what
is new, not for the whole transcript.

One task reads at a time. `apply` and `usage` are called under the tally lock (`Tallier`), so that a session's sums and
its copies always agree. `_ledger_lock` makes reads from the ledger wait for writes under way; it is taken after the
tally lock and before the ledger's own.
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.to_thread
import msgspec

from fluxbudgetd.errors import BadInputError, LedgerError
from fluxbudgetd.ledger import Ledger, TranscriptChanges
from fluxbudgetd.model import Copy, SourceStatus, TranscriptFile, TranscriptReading, Usage
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.merging import Changes, Delta, Known, merge, usages, with_changes

#: The transcripts' name as a source.
NAME = "transcripts"

#: Memory holds at most this many responses (some megabytes), or those of one session.
MOST_COPIES = 20_000
_MOST_NOTES = 10
#: How often the directories are searched for more files of a session, which may move to another project.
SEARCH_SECONDS = 5.0
_BACKGROUND_SEARCH_SECONDS = 60.0
# In the ledger, the file number of a path that a hook named. Real files have numbers above 0.
_NAMED = -1


class _Unsaved(msgspec.Struct):
    """The part of a session that is not in the ledger yet."""

    copies: Changes = msgspec.field(default_factory=dict)
    files: tuple[TranscriptFile, ...] = ()
    named: TranscriptFile | None = None


class TranscriptStore:
    """The responses of the followed sessions, and how far their transcripts were read.

    `statuses` and `files` are those of each session's last reading.
    """

    def __init__(self, source: TranscriptSource, ledger: Ledger) -> None:
        self.statuses: dict[str, SourceStatus] = {}
        self.files: dict[str, tuple[TranscriptFile, ...]] = {}
        self._source = source
        self._ledger = ledger
        # When each session was read last, in monotonic seconds. A session is missing until `_resume` restores it.
        self._read_at: dict[str, float] = {}
        # The sessions that are in the ledger.
        self._saved: set[str] = set()
        self._known: dict[str, Known] = {}
        self._unsaved: dict[str, _Unsaved] = {}
        self._saving: dict[str, _Unsaved] = {}
        self._reading: str | None = None
        self._limiter = anyio.CapacityLimiter(1)
        self._ledger_lock = anyio.Lock()

    async def load(self) -> None:
        """Read which sessions are in the ledger; raises `LedgerError`."""
        self._saved = set(await self._ledger.transcripts.sessions())

    @property
    def status(self) -> SourceStatus:
        """The status of all followed transcripts together.

        A session need not have a transcript, so the state is `ok` unless one cannot be read.
        """
        bad = [status for status in self.statuses.values() if status.state == "unreadable"]
        notes = tuple(dict.fromkeys(note for status in self.statuses.values() for note in status.notes))
        read = sum(bool(files) for files in self.files.values())
        more = f" (and {len(bad) - 1} more sessions)" if len(bad) > 1 else ""
        return SourceStatus(
            name=NAME,
            path=self._source.path,
            state="unreadable" if bad else "ok",
            detail=f"{bad[0].detail}{more}" if bad else f"{read} sessions have one",
            hint=bad[0].hint if bad else "",
            notes=(*notes[:_MOST_NOTES], *((f"(and {len(notes) - _MOST_NOTES} more)",) if notes[_MOST_NOTES:] else ())),
        )

    @property
    def anomalies(self) -> int:
        """How many token counts were invalid, and so ignored."""
        return sum(file.anomalies for files in self.files.values() for file in files)

    def path_count(self, session: str) -> int:
        """Return how many paths `changed` compares."""
        return self._source.path_count(session)

    def changed(self, session: str, *, in_background: bool = False) -> bool:
        """Return True if there may be something new since the last reading. Compares sizes, times and names.

        In the background, the directories are searched less often.
        """
        read_at = self._read_at.get(session)
        interval = _BACKGROUND_SEARCH_SECONDS if in_background else SEARCH_SECONDS
        if read_at is None or time.monotonic() - read_at > interval:
            return True
        return self._source.changed(session)

    def directories(self, sessions: Iterable[str]) -> tuple[str, ...]:
        """Return the directories in which these sessions' files may change."""
        return tuple(sorted({path for session in sessions for path in self._source.directories(session)}))

    def forget_all_but(self, sessions: Collection[str]) -> None:
        """Drop the sessions that are no longer followed, except what is being read or saved."""
        kept = {*sessions, *self._unsaved, *self._saving, self._reading}
        for session in [name for name in self._read_at if name not in kept]:
            self._source.forget(session)
            del self._read_at[session]
            for table in (self.statuses, self.files, self._known):
                table.pop(session, None)

    async def name(self, session: str, path: str) -> None:
        """Set the path of a session's transcript; raises `BadInputError` for a path outside Claude's directory."""
        await self._resume(session)
        real = await anyio.to_thread.run_sync(
            self._source.name, session, path, abandon_on_cancel=True, limiter=self._limiter
        )
        # Saved even if the file does not exist yet, so that it is found after a restart, too.
        self._unsaved.setdefault(session, _Unsaved()).named = TranscriptFile(_NAMED, real, 0, 0, 0, b"", "")

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """Prevent `forget_all_but` from dropping a session."""
        self._reading = session
        try:
            yield
        finally:
            self._reading = None

    async def read(self, session: str) -> TranscriptReading:
        """Read what is new in a session's transcripts; raises `LedgerError`."""
        await self._resume(session)
        reading = await anyio.to_thread.run_sync(
            self._source.read, session, abandon_on_cancel=True, limiter=self._limiter
        )
        self._read_at[session] = time.monotonic()
        self.statuses[session] = reading.status
        return reading

    async def apply(self, session: str, reading: TranscriptReading) -> Delta:
        """Merge a reading into the known responses; return what that changes.

        Raises `LedgerError` if those cannot be read; then the same part of the transcripts will be read again.
        """
        delta = Delta((), ())
        try:
            if reading.copies or reading.reset:
                known = await self._load_known(session)
                size = len(reading.copies) + (len(known) if reading.reset else 0)
                result = await off_loop(size, merge, known, reading)
                known.update(result.touched)
                for message in [message for message, copies in result.touched.items() if not copies]:
                    del known[message]
                self._unsaved.setdefault(session, _Unsaved()).copies.update(result.changes)
                delta = result.delta
        except LedgerError:
            self._source.restore(session, self.files.get(session, ()))
            raise
        if reading.files != self.files.get(session, ()):
            self.files[session] = reading.files
            self._unsaved.setdefault(session, _Unsaved()).files = reading.files
        return delta

    async def usage(self, session: str) -> tuple[Usage, ...]:
        """Return all responses of a session that count, as usage records; raises `LedgerError`."""
        known = self._known.get(session)
        if known is None:
            known = await self._read_known(session)
        return await off_loop(len(known), usages, known)

    async def first_copies(self, session: str) -> tuple[dict[int, int | None], Iterable[Copy]]:
        """Return the time of each saved file's first response, by file number, and the copies that are not saved.

        Raises `LedgerError`.
        """
        async with self._ledger_lock:
            first = await self._ledger.transcripts.first_responses(session) if session in self._saved else {}
            unsaved = self._unsaved[session].copies if session in self._unsaved else {}
            return first, [copy for copy in unsaved.values() if copy is not None]

    @property
    def has_unsaved(self) -> bool:
        """Return True if something must be written to the ledger."""
        return bool(self._unsaved)

    async def save(self) -> None:
        """Write what is unsaved to the ledger. On `LedgerError` it stays unsaved."""
        async with self._ledger_lock:
            saving = self._saving = self._unsaved
            self._unsaved = {}
            try:
                await self._ledger.transcripts.save([_changes(*entry) for entry in saving.items()])
            except BaseException:  # shutdown cancels this; the writer then flushes the rest
                for session, older in saving.items():
                    newer = self._unsaved.setdefault(session, _Unsaved())
                    newer.copies = {**older.copies, **newer.copies}
                    newer.files = newer.files or older.files
                    newer.named = newer.named or older.named
                raise
            else:
                self._saved.update(saving)
            finally:
                self._saving = {}

    async def _resume(self, session: str) -> None:
        """Restore a session's positions from the ledger, once; raises `LedgerError`."""
        if session in self._read_at:
            return
        rows = await self._ledger.transcripts.files(session) if session in self._saved else ()
        files = tuple(file for file in rows if file.number != _NAMED)
        self._source.restore(session, files)
        for file in rows:
            if file.number == _NAMED:
                with suppress(BadInputError):  # it now leads elsewhere
                    await anyio.to_thread.run_sync(
                        self._source.name, session, file.path, abandon_on_cancel=True, limiter=self._limiter
                    )
        self.files[session] = files
        self._read_at[session] = -math.inf

    async def _load_known(self, session: str) -> Known:
        known = self._known.pop(session, None)
        if known is None:
            known = await self._read_known(session)
        self._known[session] = known  # evicted last
        total = sum(map(len, self._known.values()))
        for name in list(self._known)[:-1]:
            if total <= MOST_COPIES:
                break
            total -= len(self._known.pop(name))
        return known

    async def _read_known(self, session: str) -> Known:
        if session not in self._saved and session not in self._saving:
            # Nothing of it is in the ledger, or being written there.
            return with_changes((), self._unsaved[session].copies if session in self._unsaved else {})
        async with self._ledger_lock:
            saved = await self._ledger.transcripts.responses(session) if session in self._saved else ()
            unsaved = self._unsaved[session].copies if session in self._unsaved else {}
            return await off_loop(len(saved) + len(unsaved), with_changes, saved, dict(unsaved))


def _changes(session: str, unsaved: _Unsaved) -> TranscriptChanges:
    return TranscriptChanges(
        session=session,
        gone=tuple(key for key, copy in unsaved.copies.items() if copy is None),
        new=tuple(copy for copy in unsaved.copies.values() if copy is not None),
        files=unsaved.files if unsaved.named is None else (*unsaved.files, unsaved.named),
    )
