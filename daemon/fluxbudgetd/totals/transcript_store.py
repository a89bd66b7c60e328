"""The responses in the followed sessions' transcripts: new ones are read and merged into those already known.

The responses are in the ledger, together with the positions up to which the files were read. Memory holds only what is
not saved yet. A reading looks up just the responses that its copies may belong to, so it takes time for what is new,
not for what was read before.

One task reads at a time. `apply` and `usage` are called under the tally lock (`Tallier`), so that sums and responses
always agree. `_change_lock` protects the unsaved changes, which a worker thread makes; it is taken after the tally lock
and never held while the ledger is used. A query of the ledger takes the unsaved changes first: what is saved meanwhile
is in both.
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread

from fluxbudgetd.errors import BadInputError, LedgerError
from fluxbudgetd.ledger import Ledger, Wanted
from fluxbudgetd.model import QUOTED, Copy, Losses, Response, SourceStatus, TranscriptFile, TranscriptReading, Usage
from fluxbudgetd.policy.responses import Delta, Known, may_be_replay, merge, records
from fluxbudgetd.sources.transcripts import Problem, TranscriptSource, claude_directory
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.unsaved import Unsaved

#: The transcripts' name as a source.
NAME = "transcripts"

_MOST_NOTES = 10
_MOST_HEARD_OF = 1000
#: How often the directories are searched for more files of a session, which may move to another project.
SEARCH_SECONDS = 5.0
_BACKGROUND_SEARCH_SECONDS = 60.0
# In the ledger, the file number of a path that a hook named. Real files have numbers above 0.
_NAMED = -1


class KeptFile(NamedTuple):
    """A transcript that is gone: how many of its responses still count, and whether another file is at its path now."""

    path: str
    responses: int
    is_replaced: bool


class Stated(NamedTuple):
    """A session's tokens as Claude Code itself sums them."""

    billing: int
    total: int


class TranscriptStore:
    """The responses of the followed sessions, and how far their transcripts were read.

    `statuses` and `files` are those of each session's last reading, `losses` of those that have lost something. `calls`
    has the tool calls that launched its sub-agents, by the numbers of their files.
    """

    def __init__(self, source: TranscriptSource, ledger: Ledger) -> None:
        self.statuses: dict[str, SourceStatus] = {}
        self.files: dict[str, tuple[TranscriptFile, ...]] = {}
        self.losses: dict[str, Losses] = {}
        self.calls: dict[str, Mapping[int, str]] = {}
        self._source = source
        self._ledger = ledger
        # The numbers of the files that are no longer at their paths.
        self._kept: dict[str, frozenset[int]] = {}
        # When each session was read last, in monotonic seconds. A session is missing until `_resume` restores it.
        self._read_at: dict[str, float] = {}
        # The Claude directories that are in the ledger, and those that hooks have named.
        self._saved_directories: tuple[str, ...] = ()
        self._heard_of: set[str] = set()
        # The sessions that are in the ledger.
        self._saved: set[str] = set()
        # The sessions whose transcripts also hold usage that counts for another session.
        self._sharing: set[str] = set()
        # The number of the next new response.
        self._born = 0
        self._saving = Unsaved()
        self._unsaved = Unsaved()
        self._reading: str | None = None
        self._limiter = anyio.CapacityLimiter(1)
        self._change_lock = anyio.Lock()

    async def load(self) -> None:
        """Read which sessions and Claude directories are in the ledger; raises `LedgerError`."""
        self._saved, self._sharing = await self._ledger.transcripts.sessions()
        self._born = await self._ledger.transcripts.last_born() + 1
        self._saved_directories = await self._ledger.claude_dirs.all()
        self._source.learn(self._saved_directories)

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

    def stated(self, session: str) -> Stated | None:
        """Return a session's tokens as Claude Code itself last summed them, or None if its transcripts do not say."""
        for file in reversed(self.files.get(session, ())):
            if file.stated_billing is not None and file.stated_total is not None:
                return Stated(file.stated_billing, file.stated_total)
        return None

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
        kept = {*sessions, *self._unsaved.sessions, *self._saving.sessions, self._reading}
        for session in [name for name in self._read_at if name not in kept]:
            self._source.forget(session)
            del self._read_at[session]
            self.statuses.pop(session, None)
            self.files.pop(session, None)
            self.losses.pop(session, None)
            self.calls.pop(session, None)
            self._kept.pop(session, None)

    async def name(self, session: str, path: str, *, even_if_refused: bool = False) -> None:
        """Set the path of a session's transcript; raises `BadInputError` for a path that may not be followed.

        With `even_if_refused`, the session's readings report that it is not followed.
        """
        await self._resume(session)
        call = partial(self._source.name, session, path, even_if_refused=even_if_refused)
        real = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        # Saved even if the file does not exist yet, so that it is found after a restart, too.
        async with self._change_lock:
            self._unsaved.add_files(session, [TranscriptFile(_NAMED, real, 0, 0, 0, b"", "")])

    async def copied_from(self, session: str, path: str) -> str | None:
        """Return the session from which the history in a session's transcript was copied.

        That is the session that has the last of its responses that are known. If none is known, it is the session
        itself; None if the transcript has no responses yet. Raises `LedgerError`.
        """
        copies = await anyio.to_thread.run_sync(self._source.last_copies, path, session, abandon_on_cancel=True)
        if not copies:
            return None
        known = await self._find(session, copies, _Files())
        for copy in reversed(copies):
            response = known.find(copy.identity)
            if response is not None and response.session != session:
                return response.session
        return session

    def is_news(self, path: str) -> bool:
        """Return True if no hook has named a transcript in the same Claude directory before."""
        directory = claude_directory(path)
        return directory is not None and directory not in self._heard_of

    async def learn_from(self, path: str) -> None:
        """From now on, search the Claude directory of this transcript, which a hook has named, if it is the user's."""
        directory = claude_directory(path)
        if directory is None:
            return
        await anyio.to_thread.run_sync(self._source.learn_from, path, abandon_on_cancel=True, limiter=self._limiter)
        if len(self._heard_of) >= _MOST_HEARD_OF:
            self._heard_of.clear()
        self._heard_of.add(directory)
        with suppress(LedgerError):  # saved with the next usage
            await self._save_directories()

    async def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with Claude Code's directories."""
        return await anyio.to_thread.run_sync(self._source.problems, abandon_on_cancel=True, limiter=self._limiter)

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
        if reading.losses == Losses():
            self.losses.pop(session, None)
        else:
            self.losses[session] = reading.losses
        return reading

    async def apply(self, session: str, reading: TranscriptReading) -> dict[str, Delta]:
        """Merge a reading into the known responses; return what that changes, by session.

        Raises `LedgerError` if those cannot be read. If it fails, the same part of the transcripts will be read again.
        """
        before, after = self.files.get(session, ()), reading.files
        files = _Files()
        if before != after:
            files = await off_loop(len(after), _Files.between, before, after)
        try:
            deltas = await self._merge(session, reading, files)
        except BaseException:
            self._source.restore(session, before)
            raise
        self.files[session] = after
        self.calls[session] = reading.calls
        self._kept[session] = reading.kept
        return deltas

    async def usage(self, session: str) -> tuple[Usage, ...]:
        """Return all responses that count for a session, as usage records; raises `LedgerError`."""
        responses = await self._responses(session)
        return await off_loop(len(responses), _records, responses)

    def shares(self, session: str) -> bool:
        """Return True if a session's transcripts also hold usage that counts for another session."""
        return session in self._sharing

    def has_read(self, session: str) -> bool:
        """Return True if a session's transcripts were read before, even if there were none yet."""
        return session in self._kept or bool(self.files.get(session))

    async def kept(self, session: str) -> tuple[KeptFile, ...]:
        """Return the files that are gone, but whose responses still count; raises `LedgerError`."""
        numbers = self._kept.get(session)
        if not numbers:
            return ()
        counts = await self._ledger.transcripts.responses_by_file(session)
        kept: dict[str, KeptFile] = {}
        for file in self.files.get(session, ()):
            if file.number in numbers and counts.get(file.number):
                others = kept.get(file.path, KeptFile(file.path, 0, False))
                is_replaced = file.is_gone or others.is_replaced
                kept[file.path] = KeptFile(file.path, counts[file.number] + others.responses, is_replaced)
        return tuple(kept.values())

    async def of_sub_agents(self, session: str) -> Iterable[Response]:
        """Return the responses of a session's sub-agents; raises `LedgerError`."""
        layers = self._saving, self._unsaved
        saved = await self._ledger.transcripts.of_sub_agents(session) if session in self._saved else ()
        responses = {response.key: response for response in saved}
        async with self._change_lock:
            for layer in layers:
                layer.update_session(responses, session)
        return responses.values()

    @property
    def has_unsaved(self) -> bool:
        """Return True if something must be written to the ledger."""
        return bool(self._unsaved) or self._saved_directories != self._source.learned

    async def save(self) -> None:
        """Write what is unsaved to the ledger. On `LedgerError` it stays unsaved."""
        async with self._change_lock:
            saving = self._saving = self._unsaved
            self._unsaved = Unsaved()
        try:
            await self._save_directories()
            await self._ledger.transcripts.save(await off_loop(len(saving), saving.changes))
        except BaseException:  # shutdown cancels this; the writer then flushes the rest
            with anyio.CancelScope(shield=True):
                async with self._change_lock:
                    self._unsaved = saving.followed_by(self._unsaved)
            raise
        else:
            self._saved |= saving.sessions
        finally:
            self._saving = Unsaved()

    async def _save_directories(self) -> None:
        learned = self._source.learned
        if learned != self._saved_directories:
            await self._ledger.claude_dirs.replace(learned)
            self._saved_directories = learned

    async def _resume(self, session: str) -> None:
        """Restore a session's positions from the ledger, once; raises `LedgerError`."""
        if session in self._read_at:
            return
        rows = await self._ledger.transcripts.files(session) if session in self._saved else ()
        files = tuple(file for file in rows if file.number != _NAMED)
        self._source.restore(session, files)
        for file in rows:
            if file.number == _NAMED:
                call = partial(self._source.name, session, file.path, even_if_refused=True)
                with suppress(BadInputError):
                    await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        self.files[session] = files
        self._read_at[session] = -math.inf

    async def _find(self, session: str, copies: Collection[Copy], files: "_Files") -> Known:
        """Return what is known about new copies, and about renamed files; raises `LedgerError`."""
        layers = self._saving, self._unsaved
        wanted = await off_loop(len(copies), _wanted, copies, files.known)
        stored = self._ledger.transcripts
        is_saved = session in self._saved
        found, aliases = await stored.find(
            session, wanted if is_saved else wanted._replace(messages=(), places=(), quoted=())
        )
        of_files = await stored.of_files(session, files.renamed) if files.renamed and is_saved else ()
        size = len(found) + len(of_files) + len(wanted.identities)
        async with self._change_lock:
            renamed_in = session if files.renamed else None
            return await off_loop(size, _known, layers, (*found, *of_files), aliases, wanted, renamed_in)

    async def _merge(self, session: str, reading: TranscriptReading, files: "_Files") -> dict[str, Delta]:
        known = Known({}, {})
        if reading.copies or files.renamed:
            known = await self._find(session, reading.copies, files)
        size = len(reading.copies) + len(known.responses) + len(files.changed)
        async with self._change_lock:
            return await off_loop(size, self._merge_into_unsaved, session, reading, known, files)

    def _merge_into_unsaved(
        self, session: str, reading: TranscriptReading, known: Known, files: "_Files"
    ) -> dict[str, Delta]:
        result = merge(session, reading.copies, known, self._born, reading.kept, files.renamed)
        self._unsaved.add(session, result)
        self._unsaved.add_files(session, files.changed)
        self._born = result.born
        if result.is_shared:
            self._sharing.add(session)
        return result.deltas

    async def _responses(self, session: str) -> tuple[Response, ...]:
        """Return the responses that count for a session; raises `LedgerError`."""
        layers = self._saving, self._unsaved
        saved = await self._ledger.transcripts.responses(session) if session in self._saved else ()
        if not any(layers):
            return saved
        async with self._change_lock:
            return await off_loop(len(saved) + sum(map(len, layers)), _updated, layers, saved, session)


class _Files(NamedTuple):
    """How a session's files have changed: the ones to save, and the renamed agents (number → old and new name).

    `known` has the numbers of the files that were read before.
    """

    changed: tuple[TranscriptFile, ...] = ()
    renamed: Mapping[int, tuple[str, str]] = {}
    known: Collection[int] = ()

    @classmethod
    def between(cls, before: Iterable[TranscriptFile], after: Iterable[TranscriptFile]) -> "_Files":
        """Return the changes from one reading to the next."""
        old = {file.number: file for file in before}
        changed = tuple(file for file in after if old.get(file.number) != file)
        renamed = {
            file.number: (old[file.number].agent, file.agent)
            for file in changed
            if file.number in old and old[file.number].agent != file.agent
        }
        return cls(changed, renamed, old.keys())


def _wanted(copies: Iterable[Copy], files: Collection[int]) -> Wanted:
    """Return what to look up for copies; `files` have been read before."""
    identities, messages, places, quoted, replayed = set(), set(), set(), set(), set()
    for copy in copies:
        identities.add(copy.identity)
        messages.add(copy.message)
        if copy.place == QUOTED:
            quoted.add((copy.message, copy.agent))
        elif copy.file in files:
            places.add((copy.message, copy.file))
        if may_be_replay(copy):
            replayed.add(copy.message)
    return Wanted(identities, messages, places, quoted, replayed)


def _known(
    layers: Iterable[Unsaved],
    found: Iterable[Response],
    aliases: dict[int, int],
    wanted: Wanted,
    renamed_in: str | None,
) -> Known:
    responses = {response.key: response for response in found}
    for layer in layers:
        if layer:
            layer.update(responses, aliases, wanted)
            if renamed_in is not None:
                layer.update_session(responses, renamed_in)
    return Known(responses, aliases)


def _updated(layers: Iterable[Unsaved], saved: Iterable[Response], session: str) -> tuple[Response, ...]:
    responses = {response.key: response for response in saved}
    for layer in layers:
        layer.update_session(responses, session)
    return tuple(responses.values())


def _records(responses: Iterable[Response]) -> tuple[Usage, ...]:
    return tuple(record for response in responses for record in records(response))
