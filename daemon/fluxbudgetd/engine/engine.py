"""What can be asked of the daemon; `changes` has what can be done to its runs."""

import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import anyio
import msgspec
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.engine.admission import Admission
from fluxbudgetd.engine.book import Book, RunState
from fluxbudgetd.engine.changes import Changes
from fluxbudgetd.engine.channels import Surroundings, channels
from fluxbudgetd.engine.events import Events
from fluxbudgetd.engine.gate import Gate
from fluxbudgetd.engine.history import History
from fluxbudgetd.engine.live import Live
from fluxbudgetd.engine.mirror import Mirror
from fluxbudgetd.engine.parts import Parts
from fluxbudgetd.engine.pending import Pending
from fluxbudgetd.engine.refresh import CHUNK_RUNS, Refresher
from fluxbudgetd.engine.reviews import Reviews
from fluxbudgetd.engine.sums import Sums
from fluxbudgetd.engine.telling import Courier, Telling
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Balance, Counts, Run, SourceStatus
from fluxbudgetd.policy import burn, runs
from fluxbudgetd.sources import watch
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.wire.messages import Hints

log = structlog.get_logger()

# A commit's frames reach the -wal file, and the watcher, before the commit is there to be read: look once more.
_SECOND_LOOK_SECONDS = 0.2
_FOLLOW_WAIT_SECONDS = 60.0
_SETTINGS_WAIT_SECONDS = 1.0
_ENDED_SECONDS = 3600.0
_REST_SHARE = 4
_LONGEST_REST_SECONDS = 2.0
# One look through a table of ten million rows takes less.
_LONGEST_LOOK_SECONDS = 60.0
# Sessions without a run that are remembered as such, so that a hook outside of any run is answered at once, too.
_STRANGERS = 256


class Standing(msgspec.Struct, frozen=True):
    """A run, where it stands, and why its numbers are not the sources' present ones (None: they are)."""

    run: Run
    balance: Balance
    stale_why: str | None


class _Needed(NamedTuple):
    """What a run's numbers have to show to be up to date: the source's epoch, and by run the transcripts' clock."""

    epoch: int
    live: dict[str, int]


def now_micros() -> int:
    """Return the time, in microseconds since the epoch."""
    return time.time_ns() // 1000


class Engine:
    """The daemon's state. Anybody may ask at any time. Without `around` nothing is told on any channel."""

    def __init__(
        self,
        source: InterstatSource,
        transcripts: TranscriptSource,
        ledger: Ledger,
        settings: Settings,
        around: Surroundings | None = None,
    ) -> None:
        self.book = Book()
        self.ledger = ledger
        self.settings = settings
        self.events = Events(ledger)
        self._source = source
        self.live = Live(transcripts, ledger)
        self._sums = Sums(source.status.name, self.live, ledger, self.book, now_micros)
        self._refresher = Refresher(
            source,
            self.live,
            ledger,
            self.book,
            self._sums,
            now_micros,
            self._note_look,
        )
        parts = Parts(self.book, self._refresher, self._sums, ledger, settings, now_micros, anyio.Lock())
        self.gate = Gate(parts)
        self.changes = Changes(parts, self.gate, self._note_activity)
        self._history = History(source.path)
        self.reviews = Reviews(parts, self._history)
        self.admission = Admission(parts)
        self.pending = Pending(self.book, ledger, settings)
        self.events.heard = self.pending.take
        self.telling: Telling | None = None
        self.mirror: Mirror | None = None
        if around is not None:
            self._tell_outside(around)
        settings.heeded = self._heed
        # Set anew, for whoever waits, when runs have begun or ended, or a source's state is another.
        self.stirred = anyio.Event()
        self._refresher.state_changed = self._stir
        self._strangers: dict[str, tuple[int, int]] = {}
        self._activity = anyio.Event()
        self._ended = anyio.Event()
        self._rest = anyio.Event()
        self._watched: tuple[str, ...] = ()

    def _tell_outside(self, around: Surroundings) -> None:
        made = channels(self.settings, self.book, around, now_micros, self._balance)
        couriers = (Courier(one, self.events, self.ledger, now_micros, self._activity_is_set) for one in made)
        self.telling = Telling(couriers, self.ledger)
        self.mirror = Mirror(self.book, around.state_directory, now_micros, self._is_known_stale)
        self.book.changed = self.mirror.note

    def _activity_is_set(self) -> bool:
        return self._activity.is_set()

    async def _balance(self, state: RunState) -> Balance:
        """Return where a run stands, for a channel: fresh, or by the last known numbers."""
        return (await self.standing(state, anyio.current_time() + _FOLLOW_WAIT_SECONDS)).balance

    def _heed(self) -> None:
        """Look at the thresholds again after the configuration has changed."""
        for state in self.book.active():
            self.gate.look(state)
        self.retry_channels()

    def retry_channels(self) -> None:
        """Have channels that failed tried again at once."""
        if self.telling is not None:
            self.telling.nudge()

    def _note_look(self, state: RunState) -> None:
        """See what a run's numbers mean after a look at its sources."""
        self.gate.look(state)
        self.admission.look(state)
        if self.telling is not None:
            self.telling.look(state)
        if self.mirror is not None:
            self.mirror.note(state.run.id)

    async def load(self) -> None:
        """Read the ledger's runs and attachments; raises `LedgerError`."""
        await self.events.prepare()
        for run, started_as in await self.ledger.runs():
            self.book.put_run(run, started_as)
        for run_id, completed in (await self.ledger.phases()).items():
            self.book.put_phases(run_id, tuple(completed))
        for run_id, fired in (await self.ledger.thresholds()).items():
            self.book.runs[run_id].fired = fired
        self.book.put_attachments(await self.ledger.attachments())
        await self._refresher.prepare()
        await self.admission.load()
        await self.pending.load()
        if self.telling is not None:
            await self.telling.load()
        if self.mirror is not None:
            await self.mirror.open()
        self._note_activity()

    async def serve(self) -> None:
        """Run the engine's own tasks, for ever: the reader, and what looks at the sources without being asked."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._refresher.serve)
            tasks.start_soon(self._sums.keep)
            tasks.start_soon(self.gate.serve)
            tasks.start_soon(self._history.serve)
            tasks.start_soon(self.admission.serve)
            tasks.start_soon(self.admission.keep)
            tasks.start_soon(self.pending.serve)
            if self.telling is not None:
                tasks.start_soon(self.telling.serve)
            if self.mirror is not None:
                tasks.start_soon(self.mirror.serve)
            tasks.start_soon(self._follow)
            tasks.start_soon(self._follow_ended)

    async def reopen_sources(self) -> None:
        """Let go of the sources' files; the next look opens them anew."""
        await self._refresher.reopen()

    def forget_old_transcripts(self) -> None:
        """Let go of the transcripts that no followed run needs any more."""
        self.live.forget_all_but({name for state in self.followed() for name in state.sessions})

    async def look_at_sources(self, deadline: float) -> None:
        """Read the followed runs from their sources, or at least the sources' state when no run needs them."""
        followed = self.followed()
        if followed:
            await self._freshen(followed, self._needed(followed), deadline)
        else:
            await self._refresher.refresh([], deadline=deadline)

    async def find(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> RunState:
        """Return the run that is meant (see `Book.find`); raises `NoRunError`.

        A session that no run is known to have may have got a row with a run's bead meanwhile, so it is looked at.
        """
        await self._look_for_unknown(run, scope, session, hints, deadline)
        return self.book.find(run, scope, session, hints)

    async def _look_for_unknown(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> None:
        unknown = self._unknown_sessions(run, scope, session, hints)
        if unknown:
            seen = self._strangers_mark()
            in_time = await self._refresher.refresh([], unknown, deadline=deadline)
            for name in unknown:
                if self.book.forget_stranger(name) and in_time and self._refresher.status.readable:
                    self._note_stranger(name, seen)

    async def find_if_any(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> RunState | None:
        """Return the run that is meant, or None when none is (see `Book.find_if_any`); raises `NoRunError`."""
        await self._look_for_unknown(run, scope, session, hints, deadline)
        return self.book.find_if_any(run, scope, session, hints)

    def _unknown_sessions(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> list[str]:
        if not self.book.scopes or run or scope or (hints.run and not session):
            return []
        mark = self._strangers_mark()
        sessions = (session,) if session else hints.sessions
        return [
            name for name in sessions if not self.book.is_settled(name, mark[0]) and self._strangers.get(name) != mark
        ]

    def _strangers_mark(self) -> tuple[int, int]:
        """Return what has to be the same for a session that had no run to have none still."""
        return self._refresher.epoch(), self.book.version

    def _note_stranger(self, name: str, mark: tuple[int, int]) -> None:
        while len(self._strangers) >= _STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[name] = mark

    def standing_now(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> Standing | None:
        """Return where the run that is meant stands if that is known without waiting; raises `NoRunError`."""
        if self._unknown_sessions(run, scope, session, hints):
            return None
        state = self.book.find(run, scope, session, hints)
        needed = self._needed((state,))
        return None if self._is_behind(state, needed) else self._standing(state, needed)

    async def standing(self, state: RunState, deadline: float) -> Standing:
        """Return where a run stands, fresh, or at the deadline the last known numbers with the reason.

        Raises `RequestTimeoutError` when not even those are there.
        """
        standing = (await self.standings([state], deadline))[0]
        self.book.require_loaded(state)
        return standing

    async def standings(self, states: Sequence[RunState], deadline: float) -> list[Standing]:
        """Return where runs stand, showing whatever was committed before this call, as far as the deadline allows."""
        needed = self._needed(states)
        await self._freshen(states, needed, deadline)
        return [self._standing(state, needed) for state in states]

    def standing_known(self, state: RunState, before: Standing) -> Standing:
        """Return where a run stands by the last known numbers, which are as fresh as another standing's."""
        return Standing(state.run, self.book.balance(state), before.stale_why)

    def burn(self, state: RunState) -> int:
        """Return how many tokens of its cost basis an active run has used per minute of late."""
        return 0 if state.run.status != "active" else burn.rate(self.book.minutes(state), now_micros())

    def wish(self, session: str) -> None:
        """Have the run of a session brought up to date, without waiting for it."""
        state = self.book.run_of_session(session)
        if state is not None:
            self._refresher.wish({state.run.id})

    @property
    def sources(self) -> tuple[tuple[SourceStatus, int, int], ...]:
        """Return each source's state, when that began, and how many of its counts were dropped."""
        since = self._refresher.since
        interstat, transcripts = self._refresher.status, self.live.status
        return (
            (interstat, since[interstat.name], self.anomalies),
            (transcripts, since[transcripts.name], self.live.anomalies),
        )

    @property
    def ledger_fault(self) -> str | None:
        """Return why the last measured usage, or the last events, could not be kept, or None."""
        return self._sums.ledger_fault or self.gate.ledger_fault or self.admission.ledger_fault

    @property
    def anomalies(self) -> int:
        """Return how many of interstat's counts were dropped from the sessions that are followed."""
        return sum(session.anomalies for session in self.book.sessions.values())

    def followed(self) -> list[RunState]:
        """Return the runs whose sources are read: the active ones, and those ended within 48 hours."""
        return self.book.followed(now_micros())

    async def unattributed(self, deadline: float) -> tuple[int, Counts]:
        """Return how many sessions have usage that belongs to no run, and how much it is; look at the sources first.

        Counted are the followed sessions' records outside their attachments, and, of sessions that no run knows, the
        source's newest rows.
        """
        loose: dict[str, Counts] = {}
        for name, state in self.book.sessions.items():
            outside = sum((counts for cell, counts in state.cells.items() if cell.run is None), Counts())
            if state.followed and outside.records:
                loose[name] = outside
        for one in await self._refresher.recent(deadline):
            known = self.book.sessions.get(one.session)
            if one.bead not in self.book.scopes and not (known is not None and known.followed):
                loose[one.session] = loose.get(one.session, Counts()) + one.counts
        return len(loose), sum(loose.values(), Counts())

    def _needed(self, states: Iterable[RunState], *, asked: bool = True) -> _Needed:
        now = now_micros()
        live = {
            state.run.id: self._refresher.live_needed(state, asked=asked)
            for state in states
            if runs.is_followed(state.run, now)
        }
        return _Needed(self._refresher.epoch(), live)

    async def _freshen(self, states: Iterable[RunState], needed: _Needed, deadline: float) -> None:
        behind = [state.run.id for state in states if self._is_behind(state, needed)]
        for start in range(0, len(behind), CHUNK_RUNS):
            if not await self._refresher.refresh(behind[start : start + CHUNK_RUNS], deadline=deadline):
                return
        if behind:
            self._rewatch()

    def _is_behind(self, state: RunState, needed: _Needed) -> bool:
        if runs.is_followed(state.run, now_micros()):
            is_old = state.epoch < needed.epoch or state.live < needed.live.get(state.run.id, 0)
            return is_old or not self.book.is_loaded(state) or not self.book.is_summed(state)
        return not state.touched

    def _standing(self, state: RunState, needed: _Needed) -> Standing:
        return Standing(state.run, self.book.balance(state), self._stale_why(state, needed))

    def _stale_why(self, state: RunState, needed: _Needed) -> str | None:
        if not runs.is_followed(state.run, now_micros()):
            return None
        if not self.book.is_loaded(state):
            return f"{self._refresher.status.name}: not read yet since fluxbudgetd started"
        if not self.book.is_summed(state):
            return f"ledger: {self.ledger_fault or 'it could not be read a moment ago'}"
        return self._transcripts_stale_why(state, needed) or self._interstat_stale_why(state, needed)

    def _is_known_stale(self, state: RunState) -> bool:
        """Tell whether a run's last known numbers are known not to be its sources' present ones."""
        return self._stale_why(state, _Needed(-1, {})) is not None

    def _transcripts_stale_why(self, state: RunState, needed: _Needed) -> str | None:
        if state.live < needed.live.get(state.run.id, 0):
            return "transcripts: slow: the present numbers were not there in time"
        found = (self.live.statuses.get(name) for name in state.sessions)
        bad = next((one for one in found if one is not None and one.state == "unreadable"), None)
        return None if bad is None else f"{bad.name}: {bad.state}: {bad.detail}"

    def _interstat_stale_why(self, state: RunState, needed: _Needed) -> str | None:
        status = state.status
        if self._is_live_alone(state, status):
            return None
        if status is not None and not status.readable:
            return f"{status.name}: {status.state}: {status.detail}"
        if state.epoch < needed.epoch:
            return f"{self._refresher.status.name}: slow: the present numbers were not there in time"
        return None

    def _is_live_alone(self, state: RunState, status: SourceStatus | None) -> bool:
        """Tell whether a run's numbers are its transcripts' alone, so that interstat cannot make them old."""
        if not state.sessions or not all(self.book.session(name).live for name in state.sessions):
            return False
        return state.run.scope is None or (status is not None and status.state == "absent")

    async def standing_still(self, seconds: float) -> str | None:
        """Return what has stood still for so long, in words; None when the ledger and the sources' reader go on.

        A ledger that fails, and a source that cannot be read, answer, and so go on. It takes no longer than that.
        """
        if self._refresher.stands_still(seconds):
            return "the sources' reader"
        if self._history.stands_still(max(seconds, _LONGEST_LOOK_SECONDS)):
            return "a look through interstat's whole table"
        try:
            with anyio.fail_after(seconds):
                await self.ledger.last_event()
        except TimeoutError:
            return "the ledger"
        except LedgerError:
            pass
        return None

    def _stir(self) -> None:
        self.stirred.set()
        self.stirred = anyio.Event()

    def _note_activity(self) -> None:
        self._stir()
        if any(state.run.ended_at is not None for state in self.followed()):
            self._ended.set()
        if self.book.active():
            self._activity.set()
        elif self._activity.is_set():
            self._activity = anyio.Event()
            self._rest.set()

    async def _follow(self) -> None:
        """Keep the active runs' last known numbers up to date; at rest when there is none."""
        while True:
            await self._activity.wait()
            self._rest = anyio.Event()
            self._watched = self._places()
            changes = watch.changes(self._source.path, self._watched, self._rest)
            async with anyio.create_task_group() as tasks, aclosing(changes):
                tasks.start_soon(_set_when_cancelled, self._rest)
                async for _ in changes:
                    busy = await self._notice()
                    await self.settings.refresh(anyio.current_time() + _SETTINGS_WAIT_SECONDS)
                    # Under a storm of commits, following them takes a fifth of a core at most.
                    await anyio.sleep(min(_REST_SHARE * busy, _LONGEST_REST_SECONDS))
                tasks.cancel_scope.cancel()
            if not self._activity.is_set():
                # While we have the file open, its writers cannot put their WAL away when they are done.
                await self._refresher.reopen()

    def _places(self) -> tuple[str, ...]:
        """Return the directories in which the active runs' transcripts grow."""
        return self.live.paths({name for state in self.book.active() for name in state.sessions})

    def _rewatch(self) -> None:
        """Have the watch begin anew when there is another directory to watch."""
        if self._activity.is_set() and self._watched != self._places():
            self._rest.set()

    async def _follow_ended(self) -> None:
        """Look at ended runs every hour while they are followed, so that their late numbers are kept unasked."""
        while True:
            await self._ended.wait()
            await anyio.sleep(_ENDED_SECONDS)
            self.forget_old_transcripts()
            if all(state.run.ended_at is None for state in self.followed()):
                self._ended = anyio.Event()
            else:
                await self._notice()

    async def _notice(self) -> float:
        """Bring the followed runs up to date if they are not; returns how many seconds that took."""
        for delay in (0.0, _SECOND_LOOK_SECONDS):
            await anyio.sleep(delay)
            followed = self.followed()
            needed = self._needed(followed, asked=False)
            if any(self._is_behind(state, needed) for state in followed):
                began = anyio.current_time()
                try:
                    await self._freshen(followed, needed, anyio.current_time() + _FOLLOW_WAIT_SECONDS)
                except Exception:
                    # Nobody asked, so nobody can be told; whoever asks next is. The daemon goes on.
                    log.exception("following the sources failed")
                self._rewatch()
                return anyio.current_time() - began
        return 0.0


async def _set_when_cancelled(event: anyio.Event) -> None:
    """Tell watchfiles' thread to end: cancelling the task that waits for it does not."""
    try:
        await anyio.sleep_forever()
    finally:
        event.set()
