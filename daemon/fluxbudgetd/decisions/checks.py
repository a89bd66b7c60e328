"""Advance runs; report refusals and overrides. The policy decides from the last known numbers."""

from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.refusals import Refusals
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Balance, Counts, PhaseRecord, Run
from fluxbudgetd.policy import advance, phases
from fluxbudgetd.policy.advance import Verdict
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.tallier import Tallier
from fluxbudgetd.wire.messages import By


class AdvanceResult(NamedTuple):
    """The outcome of an advance.

    `completed` is the phase that the run has left; None if the advance was refused, or if only `ic` can move the run.
    Then `database` is the path of intercore's database.
    """

    run: Run
    line: str
    verdict: Verdict
    completed: PhaseRecord | None
    database: str = ""


class Checks:
    """Advances runs and records verdicts."""

    def __init__(
        self,
        accounts: Accounts,
        tallier: Tallier,
        ledger: Ledger,
        settings: Settings,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
        thresholds: Thresholds,
        refusals: Refusals,
    ) -> None:
        self._accounts = accounts
        self._tallier = tallier
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._runs_lock = runs_lock
        self._thresholds = thresholds
        self._refusals = refusals

    async def record(self, run: Run, balance: Balance, verdict: Verdict, by: str, pid: int, deadline: float) -> None:
        """Record a refusal or an override as an event; wait for the first write until the deadline.

        `by` is the command that was refused, `pid` the process that called it. A failed write does not change the
        answer, and is retried.
        """
        if verdict.refusal is not None:
            data = advance.refusal_data(run, balance, verdict, by)
            await self._refusals.record("phase.blocked", run.id, data, pid, deadline)
        elif verdict.override is not None:
            data = advance.override_data(run, balance, verdict, by)
            await self._refusals.record("budget.overridden", run.id, data, pid, deadline)

    async def advance(
        self, account: RunAccount, phase: str, to: str | None, override: str | None, by: By | None = None
    ) -> AdvanceResult:
        """Advance a run from `phase` to `to` (None: the next phase), or refuse. Of concurrent calls, one succeeds.

        A run that was adopted from intercore is checked, but not moved, because its phase has one owner: intercore.

        Raises `BadInputError` for a phase that the run does not have, `ConflictError` if it has ended, `LedgerError`.
        """
        async with self._runs_lock:
            run, balance = account.run, account.balance()
            verdict = advance.advanced(run, balance, phase, override, self._clock())
            if verdict.refusal is not None:
                return AdvanceResult(run, verdict.refusal, verdict, None)
            if database := self._database(run):
                phases.require_next(run, to)
                line = f"not_advanced|{run.phase}|only 'ic run advance' moves this run"
                return AdvanceResult(run, line, verdict, None, database)
            new = msgspec.structs.replace(run, phase=phases.next_phase(run, to))
            record = self._completed(account, verdict.override)
            counts = record in account.would_count((*account.completed, record))
            data = advance.advanced_data(new.phase, record, record.estimate if counts else 0)
            await self._ledger.runs.save(
                new,
                completed=(len(account.completed), [record]),
                events=[("phase.advanced", data)],
                at=record.until,
                by=by,
            )
            self._accounts.put_run(new)
            self._accounts.put_phases(new.id, (*account.completed, record))
        for session in list(account.sessions):
            # Usage without a time, or with one in the future, belongs to the current phase, which has just changed.
            await self._tallier.retally(session)
        self._thresholds.evaluate(account)
        return AdvanceResult(new, f"advanced|{record.phase}|{new.phase}", verdict, record)

    def _database(self, run: Run) -> str:
        """Return the path of the intercore database that a run's phase follows; empty if it follows none."""
        is_following = self._settings.config.intercore.adopt
        return run.adopted.database if is_following and run.adopted is not None else ""

    def _completed(self, account: RunAccount, override: str | None) -> PhaseRecord:
        run, since = account.run, self._accounts.timelines[account.run.id].since
        settings = self._settings
        calibrations = settings.phase_calibrations(run.project_dir)
        estimate = phases.estimate(run.phase, run.cost_basis, settings.config.phases, *calibrations)
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
