"""Bringing runs up to date in batches: one reader at a time, shared by all requests that wait.

A request that needs fresh numbers joins the next batch. The batch reads the sources afterwards, so it includes
everything that was committed before the request. If a source hangs, the batch hangs with it; the requests that wait
give up at their deadline and answer with the last known numbers.

This module decides what is read, and when. `Tallier` sums what was read; `Freshness` records what the numbers show.
"""

from collections.abc import Callable, Iterable

import anyio
import structlog

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.model import Reading
from fluxbudgetd.totals.account import RunAccount, Sums
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.freshness import Freshness
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.saver import UsageSaver
from fluxbudgetd.totals.source_states import SourceStates
from fluxbudgetd.totals.tallier import Tallier
from fluxbudgetd.totals.transcript_store import TranscriptStore

log = structlog.get_logger()

#: At most this many runs are read at a time, so that a request for one run never waits for a thousand others.
CHUNK_RUNS = 16


class Batch:
    """The runs and sessions to read together, and the event that ends the wait for them."""

    def __init__(self) -> None:
        self.runs: set[str] = set()
        self.sessions: set[str] = set()
        self.done = anyio.Event()
        self.error: BaseException | None = None


class Refresher:
    """Reads what is requested, one batch after the other. `on_refreshed` is called with each run that was read."""

    def __init__(
        self,
        accounts: Accounts,
        interstat: InterstatReader,
        transcripts: TranscriptStore,
        tallier: Tallier,
        freshness: Freshness,
        states: SourceStates,
        writer: LedgerWriter,
        saver: UsageSaver,
        on_refreshed: Callable[[RunAccount], None],
    ) -> None:
        self._accounts = accounts
        self._interstat = interstat
        self._transcripts = transcripts
        self._tallier = tallier
        self._freshness = freshness
        self._states = states
        self._writer = writer
        self._saver = saver
        self._on_refreshed = on_refreshed
        self._next = Batch()
        self._requested = anyio.Event()
        # When the current batch last made progress; None if there is none.
        self._progress_at: float | None = None

    async def refresh(self, runs: Iterable[str], sessions: Iterable[str] = (), *, deadline: float) -> bool:
        """Bring runs and sessions up to date. Return True if that was done by the deadline."""
        batch = self._next
        batch.runs.update(runs)
        batch.sessions.update(sessions)
        self._requested.set()
        with anyio.CancelScope(deadline=deadline):
            await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.done.is_set()

    def request_refresh(self, runs: Iterable[str]) -> None:
        """Have runs brought up to date, without waiting for it."""
        self._next.runs.update(runs)
        self._requested.set()

    def has_stalled(self, seconds: float) -> bool:
        """Return True if a batch has been under way for more than `seconds` without progress."""
        return self._progress_at is not None and anyio.current_time() - self._progress_at > seconds

    def note_progress(self) -> None:
        """Record that the current batch has made progress."""
        self._progress_at = anyio.current_time()

    async def serve(self) -> None:
        """Work through the batches until cancelled."""
        while True:
            await self._requested.wait()
            batch, self._next, self._requested = self._next, Batch(), anyio.Event()
            self.note_progress()
            try:
                await self._work(batch)
            except Exception as exc:
                # Raised in every request that waits for it; the next batch is not affected.
                log.exception("refresh failed")
                batch.error = exc
            finally:
                self._progress_at = None
                batch.done.set()

    async def _work(self, batch: Batch) -> None:
        epoch = self._interstat.epoch()
        accounts = [self._accounts.runs[name] for name in batch.runs if name in self._accounts.runs]
        for account in accounts:
            await self._tallier.find_sessions(account)
        names = set(batch.sessions).union(*(account.sessions for account in accounts))
        # The last known numbers come first: the rest may take longer than any request waits.
        await self._retally(names)
        followed = [account for account in accounts if self._freshness.is_followed(account)]
        read, generation = await self._read_transcripts(names)
        for account in followed:
            self._freshness.note_transcripts(account, read, generation)
        reading = await self._read_rows(followed, batch.sessions)
        self.note_progress()
        await self._tallier.put_rows(reading, epoch)
        self.note_progress()
        # A row may have brought its session into a run.
        more = set().union(*(account.sessions for account in followed)) - read
        if more:
            read |= (await self._read_transcripts(more))[0]
        for account in followed:
            # The generation is the first pass's: what that pass read may have changed since.
            self._freshness.note_transcripts(account, read, generation)
            self._freshness.note_rows(account, reading, epoch)
            self._on_refreshed(account)
        for status in (reading.status, self._transcripts.status):
            await self._states.note(status, is_fault=self._freshness.is_fault(status, followed))
        await self._saver.save_soon()

    async def _retally(self, names: Iterable[str]) -> None:
        for name in names:
            if self._accounts.session(name).sums in (Sums.UNKNOWN, Sums.UNREADABLE):
                await self._tallier.retally(name)
                self.note_progress()

    async def _read_transcripts(self, names: Iterable[str]) -> tuple[set[str], int]:
        """Bring the sums of followed sessions up to date with their transcripts.

        Return the sessions that are up to date, and the generation that they have reached.
        """
        followed = [name for name in names if self._accounts.is_followed(name)]
        changed, generation = await self._freshness.changed(followed)
        read = set(followed)
        for name in self._accounts.in_reading_order(changed):
            try:
                await self._read_session(name)
            except LedgerError as exc:
                # New responses cannot be merged without the known ones: stale until the ledger can be read.
                self._writer.note_unreadable(exc)
                read.discard(name)
        return read, generation

    async def _read_session(self, name: str) -> None:
        with self._transcripts.reading(name):
            while True:
                reading = await self._transcripts.read(name)
                self.note_progress()
                self._note_others(await self._tallier.put_transcripts(name, reading))
                if not reading.more:
                    return

    def _note_others(self, sessions: Iterable[str]) -> None:
        """Have the thresholds of other runs checked whose sums a reading has changed."""
        for session in sessions:
            for run in self._accounts.runs_joined_by(session):
                account = self._accounts.runs[run]
                if account.is_loaded:
                    self._on_refreshed(account)

    async def _read_rows(self, followed: Iterable[RunAccount], sessions: Iterable[str]) -> Reading:
        followed = list(followed)
        names = set(sessions).union(*(account.sessions for account in followed))
        scopes = {account.run.scope for account in followed if account.run.scope is not None}
        return await self._interstat.read({name: self._accounts.session(name).digest for name in names}, scopes)
