"""Bringing runs up to date: one reader at a time, shared by everybody who waits.

Whoever needs fresh numbers joins the next batch; a batch looks at the source after it was joined, so it shows whatever
was committed before. A reader that hangs keeps its batch; those who wait give up at their deadline and answer with the
last known numbers.

Here it is decided what is read, and when. What was read goes to the sums; only they apply it, or ask for copies.
"""

from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import EventData, EventKind, Reading, RecentUsage, SourceStatus, Usage
from fluxbudgetd.policy.runs import is_followed
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.accounts import Accounts, RunAccount
from fluxbudgetd.totals.tallies import LIVE, Tallies
from fluxbudgetd.totals.transcripts import Transcripts

log = structlog.get_logger()

# Half a millisecond of looking at files.
_MOST_STATS = 256
# So many runs are read at a time: a request for one run never waits for a thousand others.
CHUNK_RUNS = 16
_SLOW_SECONDS = 1.0


class Batch:
    """Runs and sessions to look at, and everybody who waits for that."""

    def __init__(self) -> None:
        self.runs: set[str] = set()
        self.sessions: set[str] = set()
        self.done = anyio.Event()
        self.error: BaseException | None = None


class Refresher:
    """Reads what is asked for, one batch after the other, in its own task.

    `on_refreshed` is called with each run that was read.
    """

    def __init__(
        self,
        source: InterstatSource,
        live: Transcripts,
        ledger: Ledger,
        writer: LedgerWriter,
        book: Accounts,
        sums: Tallies,
        clock: Callable[[], int],
        on_refreshed: Callable[[RunAccount], None],
        on_source_change: Callable[[], None],
    ) -> None:
        self._source = source
        self.live = live
        # Grows when a transcript is seen to have changed.
        self._live_clock = 0
        self._ledger = ledger
        self._writer = writer
        self._accounts = book
        self._sums = sums
        self._clock = clock
        self._on_refreshed = on_refreshed
        self._on_source_change = on_source_change
        self._next = Batch()
        self._wanted = anyio.Event()
        self._told: dict[str, EventKind] = {}
        self._reading_since: float | None = None
        # When the batch under way went a step forward last; None: no batch is.
        self._stepped: float | None = None
        # When each source's present state began.
        self.since = {source.status.name: clock(), LIVE: clock()}
        self._seen_states = {source.status.name: source.status.state, LIVE: live.status.state}
        # A source has one reader at a time.
        self._reader = anyio.CapacityLimiter(1)
        self._recent: tuple[int, tuple[RecentUsage, ...]] = (-1, ())

    async def prepare(self) -> None:
        """Find out what was last told of the source, so that a restart does not tell it again."""
        await self.live.prepare()
        self._told = await self._ledger.events.last_of_sources()

    @property
    def status(self) -> SourceStatus:
        """Return the source's state; a read that has been under way for a second makes it `slow`."""
        since = self._reading_since
        if since is not None and anyio.current_time() - since > _SLOW_SECONDS:
            return self._source.slow()
        return self._source.status

    def stands_still(self, seconds: float) -> bool:
        """Tell whether a batch has been under way for so long without going a step forward."""
        return self._stepped is not None and anyio.current_time() - self._stepped > seconds

    def epoch(self) -> int:
        """Return the source's epoch: a run whose numbers show it is up to date as of this call."""
        return self._source.epoch()

    def live_needed(self, state: RunAccount, *, asked: bool = True) -> int:
        """Return what a run's `live` has to be for its transcripts to be up to date as of this call.

        `asked`: somebody wants to know (see `Transcripts.changed`).
        """
        # So many files are not looked at here, where everybody waits for it; then the next batch does.
        many = sum(map(self.live.size, state.sessions)) > _MOST_STATS
        if many or any(self.live.changed(name, asked=asked) for name in state.sessions):
            self._live_clock += 1
            state.live_needed = self._live_clock
        return state.live_needed

    async def recent(self, deadline: float) -> tuple[RecentUsage, ...]:
        """Return the source's newest rows, or what they were last when it does not answer in time."""
        epoch = self._source.epoch()
        if self._recent[0] != epoch:
            with anyio.CancelScope(deadline=deadline):
                found = await anyio.to_thread.run_sync(
                    self._source.recent, abandon_on_cancel=True, limiter=self._reader
                )
                if found is not None:
                    self._recent = (epoch, found)
        return self._recent[1]

    async def records(self, session: str, deadline: float) -> tuple[tuple[Usage, ...], str | None]:
        """Return a session's usage, and why it is not the source's present one (None: it is).

        Without an answer in time it is what the ledger has of the session. Of a session whose transcripts are followed
        it is theirs.
        """
        state = self._accounts.sessions.get(session)
        in_time = True
        if self._accounts.is_followed(session) and (state is None or state.live or not state.loaded):
            in_time = await self.refresh([], [session], deadline=deadline)
            state = self._accounts.sessions.get(session)
        if state is not None and state.live:
            why = None if in_time else "transcripts: slow: the present numbers were not there in time"
            return await self._sums.responses(session), why
        reading = None
        with anyio.CancelScope(deadline=deadline):
            reading = await anyio.to_thread.run_sync(
                self._source.read, {session: None}, (), abandon_on_cancel=True, limiter=self._reader
            )
        if reading is not None and session in reading.sessions:
            return reading.sessions[session].records or (), None
        status = self.status if reading is None else reading.status
        known = await self._sums.rows(session)
        why = (
            f"{status.state}: {status.detail}"
            if not status.readable
            else "slow: the present numbers were not there in time"
        )
        return known, f"{status.name}: {why}"

    async def reopen(self) -> None:
        """Let go of the source's file when nobody is reading it."""
        await anyio.to_thread.run_sync(self._source.reopen, abandon_on_cancel=True, limiter=self._reader)

    async def refresh(self, runs: Iterable[str], sessions: Iterable[str] = (), *, deadline: float) -> bool:
        """Bring runs and sessions up to date; give up at the deadline. Tells whether it was done in time."""
        batch = self._next
        batch.runs.update(runs)
        batch.sessions.update(sessions)
        self._wanted.set()
        with anyio.CancelScope(deadline=deadline):
            await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.done.is_set()

    def wish(self, runs: Iterable[str]) -> None:
        """Have runs brought up to date, without waiting for it."""
        self._next.runs.update(runs)
        self._wanted.set()

    async def serve(self) -> None:
        """Work through the batches, for ever."""
        while True:
            await self._wanted.wait()
            batch, self._next, self._wanted = self._next, Batch(), anyio.Event()
            self._step()
            try:
                await self._look(batch)
            except Exception as exc:
                # Handed on to every request that waits; the next batch starts afresh.
                log.exception("refresh failed")
                batch.error = exc
            finally:
                self._stepped = None
                batch.done.set()

    def _step(self) -> None:
        self._stepped = anyio.current_time()

    async def _look(self, batch: Batch) -> None:
        epoch = self._source.epoch()
        now = self._clock()
        runs = [self._accounts.runs[name] for name in batch.runs if name in self._accounts.runs]
        for state in runs:
            await self._touch(state)
        names = set(batch.sessions).union(*(state.sessions for state in runs))
        for name in names:
            session = self._accounts.session(name)
            if not session.loaded or session.unsummed:
                # The last known numbers first: what follows may take longer than anybody waits.
                await self._sums.retally(name)
                self._step()
        followed = [state for state in runs if is_followed(state.run, now)]
        looked_at, live = await self._look_at_transcripts(names, followed)
        reading = await self._read(followed, batch.sessions)
        self._step()
        await self._sums.put_rows(reading, epoch)
        self._step()
        for name in names:
            if self._accounts.session(name).scope_version != self._accounts.scope_version:
                await self._sums.retally(name)
        # A row may just have brought its session along.
        more = set().union(*(state.sessions for state in followed)) - looked_at
        if more:
            await self._look_at_transcripts(more, followed, looked_at, live)
        for state in followed:
            self._note_look(state, reading, epoch)
            self._on_refreshed(state)
        await self._tell(reading.status)
        await self._tell(self.live.status)
        await self._sums.have_kept()

    async def _look_at_transcripts(
        self, names: Iterable[str], states: Iterable[RunAccount], done: Iterable[str] = (), since: int | None = None
    ) -> tuple[set[str], int]:
        """Bring the sums of followed sessions up to date with their transcripts; returns which are, and as of when.

        Runs all of whose sessions are (with those that were `done` as of `since`) are so as of this call.
        """
        looked_at = set(done)
        followed = [name for name in names if self._accounts.is_followed(name)]
        size = sum(map(self.live.size, followed))
        before = self._live_clock
        behind = await off_loop(size, _changed, self.live, followed)
        if behind:
            # As soon as a transcript is read, nothing tells any more that the sums are older than it.
            self._live_clock += 1
            for name in behind:
                self._accounts.mark_live(name, self._live_clock)
        # What was noticed while a thread was looking may have come behind its back.
        noticed = before if size > _MOST_STATS // 2 else self._live_clock
        live = noticed if since is None else since
        for name in followed:
            try:
                if name in behind:
                    await self._read_transcripts(name)
            except LedgerError as exc:
                # Without what was known before, what has come cannot be added to it: stale until the ledger is back.
                self._writer.note_unreadable(exc)
            else:
                looked_at.add(name)
        for state in states:
            if state.sessions <= looked_at:
                state.live = max(state.live, live)
        return looked_at, live

    async def _read_transcripts(self, name: str) -> None:
        # What the ledger has of it may not be in the sums yet, though nothing new comes.
        first = not self.live.is_taken_up(name) and not self._accounts.session(name).whole
        with self.live.reading(name):
            while True:
                reading = await self.live.read(name)
                self._step()
                await self._sums.put_transcripts(name, reading, anew=first)
                first = False
                if not reading.more:
                    return

    async def _read(self, followed: Iterable[RunAccount], sessions: Iterable[str]) -> Reading:
        followed = list(followed)
        names = set(sessions).union(*(state.sessions for state in followed))
        scopes = {state.run.scope for state in followed if state.run.scope is not None}
        known = {name: self._accounts.session(name) for name in names}
        current = self._accounts.scope_version
        # What was summed before a run with a scope came has to be summed again, though its rows be the same.
        wanted = {name: one.digest if one.scope_version == current else None for name, one in known.items()}
        self._reading_since = anyio.current_time()
        try:
            return await anyio.to_thread.run_sync(
                self._source.read, wanted, scopes, abandon_on_cancel=True, limiter=self._reader
            )
        finally:
            self._reading_since = None

    def _note_look(self, state: RunAccount, reading: Reading, epoch: int) -> None:
        state.status = reading.status
        # A look that gave nothing, or that did not have a session which has joined meanwhile, is no look; but of a file
        # that is not there nothing more is to be had until it comes.
        complete = reading.status.readable and state.sessions <= reading.sessions.keys()
        if complete or reading.status.state == "absent":
            state.epoch = epoch

    async def _touch(self, state: RunAccount) -> None:
        """Find, the first time that a run is looked at, the sessions that the ledger knows of it."""
        if state.touched:
            return
        if state.run.scope is not None:
            try:
                found = await self._ledger.usage.sessions_naming(state.run.scope)
            except LedgerError as exc:
                self._writer.note_unreadable(exc)
                return  # until the ledger says it
            for name in found:
                self._accounts.join(state, name)
        state.touched = True

    async def _tell(self, status: SourceStatus) -> None:
        if status.state != self._seen_states[status.name]:
            self._seen_states[status.name] = status.state
            self.since[status.name] = self._clock()
            self._on_source_change()
            log.info("source state", source=status.name, state=status.state, detail=status.detail)
        kind: EventKind = "source.recovered" if status.readable else "source.degraded"
        told = self._told.get(status.name)
        if told == kind or (told is None and status.readable):
            return
        try:
            data: EventData = {"source": status.name, "state": status.state, "detail": status.detail}
            await self._ledger.events.add([(self._clock(), None, (kind, data))])
        except LedgerError as exc:
            log.error("event not kept", kind=kind, error=exc.message)
            return
        self._told[status.name] = kind


def _changed(live: Transcripts, names: Iterable[str]) -> set[str]:
    return {name for name in names if live.changed(name)}
