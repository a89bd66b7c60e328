"""May a run go on? Refusals and overrides kept as events, the step to the next phase, thresholds told once.

Decided by the policy from the last known numbers; on disk before it is remembered or answered.
"""

from typing import NamedTuple

import anyio
import msgspec
import structlog

from fluxbudgetd.engine.book import RunState
from fluxbudgetd.engine.parts import Parts
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.model import Balance, Counts, EventData, Mark, PhaseRecord, Run
from fluxbudgetd.policy import advance, phases, thresholds
from fluxbudgetd.policy.advance import Verdict

log = structlog.get_logger()

# A ledger that cannot be written is tried again after one second, then after two, and so on.
_SHORTEST_REST_SECONDS, _LONGEST_REST_SECONDS = 1.0, 60.0
_MOST_EVENTS = 10_000


class Advanced(NamedTuple):
    """What became of an advance. `completed` is the phase that was left, None when the run was refused."""

    run: Run
    line: str
    verdict: Verdict
    completed: PhaseRecord | None


class Gate:
    """What stands between a run and its next step."""

    def __init__(self, parts: Parts) -> None:
        self._book = parts.book
        self._sums = parts.sums
        self._ledger = parts.ledger
        self._settings = parts.settings
        self._clock = parts.clock
        self._changing = parts.changing
        # Events that nobody's change depends on, in order; and the runs whose thresholds have to be looked at.
        self._events: list[tuple[int, str, NewEvent]] = []
        self._crossed: dict[str, None] = {}
        self._told = anyio.Event()
        self._wanted = anyio.Event()
        self._done = anyio.Event()
        self.ledger_fault: str | None = None

    async def note(self, run: Run, balance: Balance, verdict: Verdict, by: str, deadline: float) -> None:
        """Keep a refusal, or an override, as an event; a ledger that cannot does not change the answer."""
        event: NewEvent
        if verdict.refusal is not None:
            event = "phase.blocked", advance.refusal_data(run, balance, verdict, by)
        elif verdict.override is not None:
            event = "budget.overridden", advance.override_data(run, balance, verdict, by)
        else:
            return
        if len(self._events) >= _MOST_EVENTS:
            log.error("event lost: the ledger has not taken any for long", kind=event[0], run=run.id)
            return
        self._events.append((self._clock(), run.id, event))
        self._wanted.set()
        done = self._done
        with anyio.CancelScope(deadline=deadline):
            await done.wait()

    async def advance(self, state: RunState, phase: str, to: str | None, override: str | None) -> Advanced:
        """Take a run from a phase to another by the last known numbers, or refuse. Of several at once one wins.

        Raises `BadInputError` for phases that the run does not have, `ConflictError` when it has ended.
        """
        async with self._changing:
            run, balance = state.run, self._book.balance(state)
            verdict = advance.advanced(run, balance, phase, override)
            if verdict.refusal is not None:
                return Advanced(run, verdict.refusal, verdict, None)
            new = msgspec.structs.replace(run, phase=phases.next_phase(run, to))
            record = self._record(state, verdict.override)
            counts = record in self._book.would_count(state, (*state.completed, record))
            data = _advanced_data(new, record, record.estimate if counts else 0)
            await self._ledger.save_run(
                new, completed=(len(state.completed), record), events=[("phase.advanced", data)], at=self._clock()
            )
            self._book.put_run(new)
            self._book.put_phases(new.id, (*state.completed, record))
        for session in list(state.sessions):
            # What has no time of its own, or one ahead of ours, is in the present phase, which is another one now.
            await self._sums.retally(session)
        self.look(state)
        return Advanced(new, f"advanced|{record.phase}|{new.phase}", verdict, record)

    def _record(self, state: RunState, override: str | None) -> PhaseRecord:
        run, since = state.run, self._book.timelines[state.run.id].since
        calibration = self._settings.calibration
        known = {} if calibration is None else calibration.phases
        estimate = phases.estimate(run.phase, run.cost_basis, self._settings.config.phases, known)
        return PhaseRecord(
            phase=run.phase,
            since=since,
            until=max(self._clock(), since + 1),  # clocks may be set back
            measured=self._book.by_phase(state).get(run.phase, Counts()).capped(),
            estimate=estimate.tokens,
            source=estimate.source,
            sample_size=estimate.sample_size,
            override=override,
        )

    def look(self, state: RunState) -> None:
        """Have a run's newly passed thresholds told, if there are any. Takes no time."""
        if state.run.status == "active" and self._book.is_loaded(state) and self._new(state, self._book.balance(state)):
            self._crossed[state.run.id] = None
            self._wanted.set()

    async def told(self, state: RunState, deadline: float) -> None:
        """Wait until what a run has newly passed is on disk, but no longer than until the deadline."""
        # Numbers may be in the accounts while the refresh that brought them has not come to its own look yet.
        self.look(state)
        with anyio.CancelScope(deadline=deadline):
            while state.run.id in self._crossed:
                await self._told.wait()

    def fired_now(self, state: RunState) -> tuple[frozenset[Mark], list[NewEvent]]:
        """Return what has been told of a run, and what is to be told now, before it ends."""
        if not self._book.is_loaded(state):
            return state.fired, []
        balance = self._book.balance(state)
        new = self._new(state, balance)
        return state.fired | new, thresholds.events(state.run, balance, new)

    def fired_under(self, state: RunState, changed: Run) -> tuple[frozenset[Mark], list[NewEvent]]:
        """Return what has been told once a run has become another, and what of it is to be told now."""
        balance = self._book.balance(state, changed)
        same = changed.token_budget == state.run.token_budget
        kept = state.fired if same else thresholds.rearmed(state.fired, balance)
        passed = thresholds.passed(self._marks(changed), balance)
        return kept | passed, thresholds.events(changed, balance, passed - kept)

    def _new(self, state: RunState, balance: Balance) -> frozenset[Mark]:
        return thresholds.passed(self._marks(state.run), balance) - state.fired

    def _marks(self, run: Run) -> frozenset[Mark]:
        return thresholds.marks(self._settings.config.thresholds, run.warn_pct)

    async def serve(self) -> None:
        """Write what is to be told, for ever; what the ledger does not take is tried again."""
        rest = _SHORTEST_REST_SECONDS
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            try:
                await self._write()
            except LedgerError as exc:
                if self.ledger_fault != exc.message:
                    log.error("events not kept yet", error=exc.message)
                self.ledger_fault = exc.message
                self._wanted.set()
                await anyio.sleep(rest)
                rest = min(2 * rest, _LONGEST_REST_SECONDS)
            else:
                self.ledger_fault = None
                rest = _SHORTEST_REST_SECONDS

    async def _write(self) -> None:
        events, done = self._events[:], self._done
        self._done = anyio.Event()
        try:
            if events:
                await self._ledger.save_events(events)
                del self._events[: len(events)]
        finally:
            # Nobody waits longer than for one try.
            done.set()
        for name in list(self._crossed):
            state = self._book.runs[name]
            await self._tell_crossed(state)
            self._crossed.pop(name, None)
            # More may have been passed while this was written; a look then found the run among those already.
            self.look(state)
            self._told.set()
            self._told = anyio.Event()

    async def _tell_crossed(self, state: RunState) -> None:
        async with self._changing:
            balance = self._book.balance(state)
            new = self._new(state, balance)
            if state.run.status != "active" or not new:
                return
            told = thresholds.events(state.run, balance, new)
            fired = state.fired | new
            await self._ledger.save_run(state.run, fired=fired, events=told, at=self._clock())
            state.fired = fired


def _advanced_data(run: Run, record: PhaseRecord, provisional: int) -> EventData:
    return {
        "from": record.phase,
        "to": run.phase,
        "input": record.measured.input,
        "output": record.measured.output,
        "estimate": record.estimate,
        "provisional": provisional,
        "override": record.override,
    }
