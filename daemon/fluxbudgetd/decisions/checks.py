"""Advance runs; record refusals and overrides. The policy decides from the last known numbers."""

from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.ledger import Ledger, LedgerWriter, NewEvent
from fluxbudgetd.model import Balance, Counts, EventData, PhaseRecord, Run
from fluxbudgetd.policy import advance, phases
from fluxbudgetd.policy.advance import Verdict
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.tallier import Tallier

log = structlog.get_logger()

# Bounds memory while the ledger keeps failing.
_MOST_UNSAVED = 10_000


class AdvanceResult(NamedTuple):
    """The outcome of an advance. `completed` is the phase that the run has left, None if the advance was refused."""

    run: Run
    line: str
    verdict: Verdict
    completed: PhaseRecord | None


class Checks:
    """Advances runs and records verdicts."""

    def __init__(
        self,
        accounts: Accounts,
        tallier: Tallier,
        ledger: Ledger,
        writer: LedgerWriter,
        settings: Settings,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
        thresholds: Thresholds,
    ) -> None:
        self._accounts = accounts
        self._tallier = tallier
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._runs_lock = runs_lock
        self._thresholds = thresholds
        self._unsaved: list[tuple[int, str | None, NewEvent]] = []
        self._backlog = writer.backlog("refusals and overrides", self._write)

    async def record(self, run: Run, balance: Balance, verdict: Verdict, by: str, deadline: float) -> None:
        """Record a refusal or an override as an event; wait for the first write until the deadline.

        `by` is the command that was refused. A failed write does not change the answer, and is retried.
        """
        event: NewEvent
        if verdict.refusal is not None:
            event = "phase.blocked", advance.refusal_data(run, balance, verdict, by)
        elif verdict.override is not None:
            event = "budget.overridden", advance.override_data(run, balance, verdict, by)
        else:
            return
        if len(self._unsaved) >= _MOST_UNSAVED:
            log.error("event dropped: too many are waiting for the ledger", kind=event[0], run=run.id)
            return
        self._unsaved.append((self._clock(), run.id, event))
        await self._backlog.attempt(deadline - anyio.current_time())

    async def advance(self, account: RunAccount, phase: str, to: str | None, override: str | None) -> AdvanceResult:
        """Advance a run from `phase` to `to` (None: the next phase), or refuse. Of concurrent calls, one succeeds.

        Raises `BadInputError` for a phase that the run does not have, `ConflictError` if it has ended, `LedgerError`.
        """
        async with self._runs_lock:
            run, balance = account.run, account.balance()
            verdict = advance.advanced(run, balance, phase, override, self._clock())
            if verdict.refusal is not None:
                return AdvanceResult(run, verdict.refusal, verdict, None)
            new = msgspec.structs.replace(run, phase=phases.next_phase(run, to))
            record = self._completed(account, verdict.override)
            counts = record in account.would_count((*account.completed, record))
            data = _advanced_data(new, record, record.estimate if counts else 0)
            await self._ledger.runs.save(
                new, completed=(len(account.completed), record), events=[("phase.advanced", data)], at=record.until
            )
            self._accounts.put_run(new)
            self._accounts.put_phases(new.id, (*account.completed, record))
        for session in list(account.sessions):
            # Usage without a time, or with one in the future, belongs to the current phase, which has just changed.
            await self._tallier.retally(session)
        self._thresholds.evaluate(account)
        return AdvanceResult(new, f"advanced|{record.phase}|{new.phase}", verdict, record)

    def _completed(self, account: RunAccount, override: str | None) -> PhaseRecord:
        run, since = account.run, self._accounts.timelines[account.run.id].since
        calibration = self._settings.calibration
        calibrated = {} if calibration is None else calibration.phases
        estimate = phases.estimate(run.phase, run.cost_basis, self._settings.config.phases, calibrated)
        return PhaseRecord(
            phase=run.phase,
            since=since,
            until=max(self._clock(), since + 1, account.latest),  # the clock may have been set back
            measured=account.by_phase().get(run.phase, Counts()).capped(),
            estimate=estimate.tokens,
            source=estimate.source,
            sample_size=estimate.sample_size,
            override=override,
        )

    async def _write(self) -> None:
        unsaved = self._unsaved[:]
        if unsaved:
            await self._ledger.events.add(unsaved)
            del self._unsaved[: len(unsaved)]


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
