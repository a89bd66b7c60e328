"""Thresholds: each is reported once per run and budget, by an event that is on disk before it is delivered."""

from collections.abc import Callable

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.ledger import LedgerWriter, NewEvent
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import BudgetThreshold, Run
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts


class Thresholds:
    """Compares the last known numbers with the thresholds. `RunAccount.fired` changes under the runs lock."""

    def __init__(
        self,
        accounts: Accounts,
        stored: StoredRuns,
        writer: LedgerWriter,
        settings: Settings,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
    ) -> None:
        self._accounts = accounts
        self._stored = stored
        self._settings = settings
        self._clock = clock
        self._runs_lock = runs_lock
        # The runs with a newly passed threshold that is not in the ledger yet.
        self._crossed: dict[str, None] = {}
        self._reported = anyio.Event()
        self._backlog = writer.backlog("crossed thresholds", self._write)

    def evaluate(self, account: RunAccount) -> None:
        """Have a run's newly passed thresholds reported; returns at once."""
        if account.run.id not in self._crossed and self._newly_passed(account):
            self._crossed[account.run.id] = None
            self._backlog.request()

    async def reported(self, account: RunAccount, deadline: float) -> None:
        """Evaluate a run, and wait until its passed thresholds are on disk, at most until the deadline."""
        self.evaluate(account)
        with anyio.CancelScope(deadline=deadline):
            while account.run.id in self._crossed:
                await self._reported.wait()

    def at_end(self, account: RunAccount) -> tuple[frozenset[BudgetThreshold], list[NewEvent]]:
        """Return all thresholds reported once the run has ended, and the events for those not reported yet."""
        new = self._newly_passed(account)
        events = thresholds.events(account.run, account.balance(), new) if new else []
        return account.fired | new, events

    def after_change(self, account: RunAccount, changed: Run) -> tuple[frozenset[BudgetThreshold], list[NewEvent]]:
        """Return all thresholds reported once the run has changed, and the events for those not reported yet.

        Changing the budget re-arms thresholds that are no longer exceeded.
        """
        balance = account.balance(changed)
        same_budget = changed.token_budget == account.run.token_budget
        kept = account.fired if same_budget else thresholds.still_fired(account.fired, balance)
        passed = thresholds.passed(self._of(changed), balance)
        return kept | passed, thresholds.events(changed, balance, passed - kept)

    def _newly_passed(self, account: RunAccount) -> frozenset[BudgetThreshold]:
        if account.run.status != "active" or not account.is_loaded:
            return frozenset()
        return thresholds.passed(self._of(account.run), account.balance()) - account.fired

    def _of(self, run: Run) -> frozenset[BudgetThreshold]:
        return thresholds.thresholds_of(self._settings.config.thresholds, run.warn_pct)

    async def _write(self) -> None:
        for name in list(self._crossed):
            account = self._accounts.runs[name]
            # The run may pass another threshold during the write.
            while self._newly_passed(account):
                await self._report(account)
            del self._crossed[name]
            self._reported.set()
            self._reported = anyio.Event()

    async def _report(self, account: RunAccount) -> None:
        async with self._runs_lock:
            new = self._newly_passed(account)
            if not new:
                return
            fired = account.fired | new
            events = thresholds.events(account.run, account.balance(), new)
            await self._stored.save(account.run, fired=fired, events=events, at=self._clock())
            account.fired = fired
