"""Bringing runs up to date: one reader at a time, shared by everybody who waits.

Whoever needs fresh numbers joins the next batch; a batch looks at the source after it was joined, so it shows whatever
was committed before. A reader that hangs keeps its batch; those who wait give up at their deadline and answer with the
last known numbers.
"""

from collections.abc import Callable, Iterable, Mapping

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.engine.book import Book, RunState
from fluxbudgetd.engine.live import Delta, Live, usage
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, UsageChanges
from fluxbudgetd.model import (
    Attachment,
    Cell,
    Copy,
    Counts,
    EventData,
    EventKind,
    Reading,
    RecentUsage,
    SourceStatus,
    Timeline,
    Usage,
)
from fluxbudgetd.policy import attribution
from fluxbudgetd.policy.runs import is_followed
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.threads import off_loop

log = structlog.get_logger()

# Half a millisecond of looking at files.
_MOST_STATS = 256
#: The name of the transcripts as a source.
LIVE = "transcripts"
# So many runs are read at a time: a request for one run never waits for a thousand others.
CHUNK_RUNS = 16
_SLOW_SECONDS = 1.0
# An answer waits this long for its numbers to be kept: nearly always they are, and then no kill can make a total fall.
_KEEP_SECONDS = 0.05


class Batch:
    """Runs and sessions to look at, and everybody who waits for that."""

    def __init__(self) -> None:
        self.runs: set[str] = set()
        self.sessions: set[str] = set()
        self.done = anyio.Event()
        self.error: BaseException | None = None


class Refresher:
    """Reads what is asked for, one batch after the other, in its own task. `looked` is told of each run looked at."""

    def __init__(
        self,
        source: InterstatSource,
        live: Live,
        ledger: Ledger,
        book: Book,
        clock: Callable[[], int],
        looked: Callable[[RunState], None],
    ) -> None:
        self._source = source
        self.live = live
        # Grows when a transcript is seen to have changed.
        self._live_clock = 0
        self._ledger = ledger
        self._book = book
        self._clock = clock
        self._looked = looked
        self._next = Batch()
        self._wanted = anyio.Event()
        self._told: dict[str, EventKind] = {}
        self._reading_since: float | None = None
        # When each source's present state began.
        self.since = {source.status.name: clock(), LIVE: clock()}
        self._seen_states = {source.status.name: source.status.state, LIVE: live.status.state}
        self.ledger_fault: str | None = None
        # A source has one reader at a time.
        self._reader = anyio.CapacityLimiter(1)
        # A session's sums are put by one task at a time: an older tally must not land on a newer one.
        self._summing = anyio.Lock()
        # What has been measured and is not in the ledger yet: newer than what the ledger has.
        self._unkept: dict[str, tuple[Usage, ...]] = {}
        self._keep_wanted = anyio.Event()
        self._kept = anyio.Event()
        self._recent: tuple[int, tuple[RecentUsage, ...]] = (-1, ())

    async def prepare(self) -> None:
        """Find out what was last told of the source, so that a restart does not tell it again."""
        await self.live.prepare()
        self._told = await self._ledger.last_source_events()

    @property
    def status(self) -> SourceStatus:
        """Return the source's state; a read that has been under way for a second makes it `slow`."""
        since = self._reading_since
        if since is not None and anyio.current_time() - since > _SLOW_SECONDS:
            return self._source.slow()
        return self._source.status

    def epoch(self) -> int:
        """Return the source's epoch: a run whose numbers show it is up to date as of this call."""
        return self._source.epoch()

    def live_needed(self, state: RunState, *, asked: bool = True) -> int:
        """Return what a run's `live` has to be for its transcripts to be up to date as of this call.

        `asked`: somebody wants to know (see `Live.changed`).
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
        state = self._book.sessions.get(session)
        in_time = True
        if self._book.is_followed(session) and (state is None or state.live or not state.loaded):
            in_time = await self.refresh([], [session], deadline=deadline)
            state = self._book.sessions.get(session)
        if state is not None and state.live:
            why = None if in_time else "transcripts: slow: the present numbers were not there in time"
            async with self._summing:
                return await self.live.usage(session), why
        reading = None
        with anyio.CancelScope(deadline=deadline):
            reading = await anyio.to_thread.run_sync(
                self._source.read, {session: None}, (), abandon_on_cancel=True, limiter=self._reader
            )
        if reading is not None and session in reading.sessions:
            return reading.sessions[session].records or (), None
        status = self.status if reading is None else reading.status
        known = self._unkept.get(session)
        if known is None:
            known = await self._ledger.usage(session, self._source.status.name)
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
            try:
                await self._look(batch)
            except Exception as exc:
                # Handed on to every request that waits; the next batch starts afresh.
                log.exception("refresh failed")
                batch.error = exc
            finally:
                batch.done.set()

    async def _look(self, batch: Batch) -> None:
        epoch = self._source.epoch()
        now = self._clock()
        runs = [self._book.runs[name] for name in batch.runs if name in self._book.runs]
        for state in runs:
            await self._touch(state)
        names = set(batch.sessions).union(*(state.sessions for state in runs))
        for name in names:
            session = self._book.session(name)
            if not session.loaded or session.unsummed:
                # The last known numbers first: what follows may take longer than anybody waits.
                await self.retally(name)
        followed = [state for state in runs if is_followed(state.run, now)]
        looked_at, live = await self._look_at_transcripts(names, followed)
        reading = await self._read(followed, batch.sessions)
        await self._install(reading, epoch)
        for name in names:
            if self._book.session(name).scope_version != self._book.scope_version:
                await self.retally(name)
        # A row may just have brought its session along.
        more = set().union(*(state.sessions for state in followed)) - looked_at
        if more:
            await self._look_at_transcripts(more, followed, looked_at, live)
        for state in followed:
            self._note_look(state, reading, epoch)
            self._looked(state)
        await self._tell(reading.status)
        await self._tell(self.live.status)
        if self._unkept or self.live.has_unkept:
            self._keep_wanted.set()
            with anyio.move_on_after(_KEEP_SECONDS):
                await self._kept.wait()

    async def _look_at_transcripts(
        self, names: Iterable[str], states: Iterable[RunState], done: Iterable[str] = (), since: int | None = None
    ) -> tuple[set[str], int]:
        """Bring the sums of followed sessions up to date with their transcripts; returns which are, and as of when.

        Runs all of whose sessions are (with those that were `done` as of `since`) are so as of this call.
        """
        looked_at = set(done)
        followed = [name for name in names if self._book.is_followed(name)]
        size = sum(map(self.live.size, followed))
        before = self._live_clock
        behind = await off_loop(size, _changed, self.live, followed)
        if behind:
            # As soon as a transcript is read, nothing tells any more that the sums are older than it.
            self._live_clock += 1
            for name in behind:
                self._book.mark_live(name, self._live_clock)
        # What was noticed while a thread was looking may have come behind its back.
        noticed = before if size > _MOST_STATS // 2 else self._live_clock
        live = noticed if since is None else since
        for name in followed:
            try:
                if name in behind:
                    await self._read_transcripts(name)
            except LedgerError as exc:
                # Without what was known before, what has come cannot be added to it: stale until the ledger is back.
                self._note_ledger_fault(exc)
            else:
                looked_at.add(name)
        for state in states:
            if state.sessions <= looked_at:
                state.live = max(state.live, live)
        return looked_at, live

    async def _read_transcripts(self, name: str) -> None:
        # What the ledger has of it may not be in the sums yet, though nothing new comes.
        first = not self.live.is_taken_up(name) and not self._book.session(name).whole
        with self.live.reading(name):
            while True:
                reading = await self.live.read(name)
                async with self._summing:
                    await self._shift(name, await self.live.apply(name, reading))
                    if first:
                        await self._sum_all(name)
                        first = False
                if not reading.more:
                    return

    async def _shift(self, name: str, delta: Delta) -> None:
        """Change a session's sums by what has come of its transcripts, or make them anew."""
        if not delta.gone and not delta.new:
            return
        book, state = self._book, self._book.session(name)
        version = book.version
        if state.live and state.loaded and state.scope_version == book.scope_version:
            attachments = tuple(state.current)
            less = await off_loop(len(delta.gone), _tally_live, delta.gone, attachments, book.timelines)
            more = await off_loop(len(delta.new), _tally_live, delta.new, attachments, book.timelines)
            total = state.figures[LIVE] + sum(more.values(), Counts()) - sum(less.values(), Counts())
            if book.version == version and total.total > 0 and not _takes_the_earliest(state.earliest, delta):
                book.shift_sums(name, less, more, attribution.earliest(map(usage, delta.new)))
                state.figures[LIVE] = total
                return
        await self._sum_all(name)

    async def _sum_all(self, name: str) -> None:
        """Sum a session anew from both sources; never fails, but without the ledger it counts as not loaded."""
        state = self._book.session(name)
        try:
            live = await self.live.usage(name)
            records = self._unkept.get(name)
            if records is None:
                records = await self._ledger.usage(name, self._source.status.name)
        except LedgerError as exc:
            self._note_ledger_fault(exc)
            state.unsummed = True
            return
        state.unsummed, state.whole = False, True
        state.live = any(one.input or one.output or one.cache_read or one.cache_creation for one in live)
        await self._sum(name, records)
        state.figures.pop(LIVE, None)
        if state.live:
            await self._put_live(name, live)

    async def _put_live(self, name: str, records: tuple[Usage, ...]) -> None:
        book = self._book
        while True:
            version = book.version
            attachments = tuple(book.session(name).current)
            cells = await off_loop(len(records), attribution.tally, records, {}, attachments, book.timelines)
            earliest = await off_loop(len(records), attribution.earliest, records)
            if book.version == version:
                break
        book.session(name).figures[LIVE] = sum(cells.values(), Counts())
        book.put_sums(name, cells, earliest)

    async def _read(self, followed: Iterable[RunState], sessions: Iterable[str]) -> Reading:
        followed = list(followed)
        names = set(sessions).union(*(state.sessions for state in followed))
        scopes = {state.run.scope for state in followed if state.run.scope is not None}
        known = {name: self._book.session(name) for name in names}
        current = self._book.scope_version
        # What was summed before a run with a scope came has to be summed again, though its rows be the same.
        wanted = {name: one.digest if one.scope_version == current else None for name, one in known.items()}
        self._reading_since = anyio.current_time()
        try:
            return await anyio.to_thread.run_sync(
                self._source.read, wanted, scopes, abandon_on_cancel=True, limiter=self._reader
            )
        finally:
            self._reading_since = None

    def _note_look(self, state: RunState, reading: Reading, epoch: int) -> None:
        state.status = reading.status
        # A look that gave nothing, or that did not have a session which has joined meanwhile, is no look; but of a file
        # that is not there nothing more is to be had until it comes.
        complete = reading.status.readable and state.sessions <= reading.sessions.keys()
        if complete or reading.status.state == "absent":
            state.epoch = epoch

    async def _touch(self, state: RunState) -> None:
        """Find, the first time that a run is looked at, the sessions that the ledger knows of it."""
        if state.touched:
            return
        if state.run.scope is not None:
            try:
                found = await self._ledger.sessions_naming(state.run.scope)
            except LedgerError as exc:
                self._note_ledger_fault(exc)
                return  # until the ledger says it
            for name in found:
                self._book.join(state, name)
        state.touched = True

    async def sessions_naming(self, scope: str) -> set[str]:
        """Return the sessions whose last measured usage names a scope; never fails."""
        try:
            found = set(await self._ledger.sessions_naming(scope))
        except LedgerError as exc:
            self._note_ledger_fault(exc)
            found = set()
        return found | {name for name, records in self._unkept.items() if any(one.bead == scope for one in records)}

    async def _install(self, reading: Reading, epoch: int) -> None:
        """Sum what has changed, and note what of it has to be kept."""
        async with self._summing:
            for name, one in reading.sessions.items():
                state = self._book.session(name)
                if one.records is not None:
                    # A session that has nothing to do with any run, before and after, is none of the ledger's business.
                    ours = self._book.is_followed(name)
                    if ours and not state.loaded:
                        # What its transcripts have given is not known yet: rows alone would be taken for all there is.
                        self._unkept[name] = one.records
                        await self._sum_all(name)
                    else:
                        await self._sum(name, one.records)
                    state.digest, state.anomalies = one.digest, one.anomalies
                    if ours or self._book.is_followed(name):
                        self._unkept[name] = one.records
                state.epoch = epoch

    async def keep(self) -> None:
        """Bring the ledger up to date with what has been measured, for ever.

        In a task of its own: a ledger that is slow or cannot be written delays no number.
        """
        while True:
            await self._keep_wanted.wait()
            self._keep_wanted = anyio.Event()
            batch = dict(self._unkept)
            try:
                await self._keep(batch)
                if self.live.has_unkept:
                    await self.live.keep()
            except LedgerError as exc:
                # The numbers are right all the same; that they are not kept is for `doctor` and the next try.
                self._note_ledger_fault(exc)
            else:
                self.ledger_fault = None
                for name, records in batch.items():
                    if self._unkept.get(name) is records:
                        del self._unkept[name]
            self._kept.set()
            self._kept = anyio.Event()

    async def _keep(self, batch: Mapping[str, tuple[Usage, ...]]) -> None:
        source = self._source.status.name
        changes = []
        for name, records in batch.items():
            before = await self._ledger.usage(name, source)
            size = len(records) + len(before)
            changes.append((name, await off_loop(size, UsageChanges.between, before, records)))
        await self._ledger.save_usage(source, changes)

    def _note_ledger_fault(self, error: LedgerError) -> None:
        if error.message != self.ledger_fault:
            log.error("ledger fault", error=error.message)
        self.ledger_fault = error.message

    async def retally(self, name: str) -> None:
        """Sum a session's last measured usage again, after its attachments or the runs have changed; never fails."""
        async with self._summing:
            await self._sum_all(name)

    async def _sum(self, name: str, records: tuple[Usage, ...]) -> None:
        """Sum interstat's rows of a session; they count unless its transcripts do."""
        book = self._book
        while True:
            version = book.version
            scopes = {bead: tuple(book.scopes.get(bead, ())) for bead in {record.bead for record in records}}
            asked = tuple(book.session(name).attachments)
            cells, implied, earliest = await off_loop(
                len(records), _tally, name, records, scopes, asked, book.timelines
            )
            if book.version == version:
                break
        state = book.session(name)
        state.figures[self._source.status.name] = sum(cells.values(), Counts())
        changed = book.put_implied(name, implied)
        if not state.live:
            book.put_sums(name, cells, earliest)
        elif changed and LIVE in state.figures:
            # The rows name another run than before: that is where the transcripts belong now.
            try:
                await self._put_live(name, await self.live.usage(name))
            except LedgerError as exc:
                self._note_ledger_fault(exc)
                state.unsummed = True

    async def _tell(self, status: SourceStatus) -> None:
        if status.state != self._seen_states[status.name]:
            self._seen_states[status.name] = status.state
            self.since[status.name] = self._clock()
            log.info("source state", source=status.name, state=status.state, detail=status.detail)
        kind: EventKind = "source.recovered" if status.readable else "source.degraded"
        told = self._told.get(status.name)
        if told == kind or (told is None and status.readable):
            return
        try:
            data: EventData = {"source": status.name, "state": status.state, "detail": status.detail}
            await self._ledger.save_source_event(kind, data, self._clock())
        except LedgerError as exc:
            log.error("event not kept", kind=kind, error=exc.message)
            return
        self._told[status.name] = kind


def _tally(
    name: str,
    records: tuple[Usage, ...],
    scopes: attribution.Scopes,
    asked: tuple[Attachment, ...],
    timelines: Mapping[str, Timeline],
) -> tuple[dict[Cell, Counts], Attachment | None, int | None]:
    implied = None if asked else attribution.implied_attachment(name, records, scopes)
    attachments = asked or (() if implied is None else (implied,))
    return attribution.tally(records, scopes, attachments, timelines), implied, attribution.earliest(records)


def _takes_the_earliest(earliest: int | None, delta: Delta) -> bool:
    """Tell whether a session's first response goes, with none as early in its place."""

    def is_earliest(copy: Copy) -> bool:
        return earliest is not None and copy.at is not None and copy.at <= earliest

    return any(map(is_earliest, delta.gone)) and not any(map(is_earliest, delta.new))


def _changed(live: Live, names: Iterable[str]) -> set[str]:
    return {name for name in names if live.changed(name)}


def _tally_live(
    copies: tuple[Copy, ...], attachments: tuple[Attachment, ...], timelines: Mapping[str, Timeline]
) -> dict[Cell, Counts]:
    return attribution.tally(map(usage, copies), {}, attachments, timelines)
