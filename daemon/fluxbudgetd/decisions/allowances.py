"""Allowances: a person lets a run go on once although its budget is exhausted."""

from collections.abc import Callable

import anyio

from fluxbudgetd.decisions.attachments import Change
from fluxbudgetd.decisions.loosenings import Loosenings
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import Caller, EventData, Run
from fluxbudgetd.model.times import to_text
from fluxbudgetd.policy import limits
from fluxbudgetd.policy.loosening import Loosening
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts


class Allowances:
    """Extends what runs with hard enforcement may spend."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        stored: StoredRuns,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
        loosenings: Loosenings,
    ) -> None:
        self._accounts = accounts
        self._refresher = totals.refresher
        self._stored = stored
        self._clock = clock
        self._runs_lock = runs_lock
        self._loosenings = loosenings

    async def allow(
        self, account: RunAccount, tokens: int | None, minutes: int | None, deadline: float, caller: Caller
    ) -> Change:
        """Let a run go on for so many tokens or minutes; for 10 % of its budget if both are None.

        Nothing is changed if nothing stops the run: it is soft, or has no budget. Raises `RefusedError` if the caller
        is inside a session.
        """
        if account.run.status == "active":
            # What is allowed comes on top of what is spent.
            await self._refresher.refresh([account.run.id], deadline=deadline)
            account.require_loaded()
        async with self._runs_lock:
            balance = account.balance()
            run = limits.allowed(account.run, balance.spent, self._clock(), tokens, minutes)
            if run == account.run:
                return Change(run, changed=False)
            loosening = Loosening("allow", {"tokens": tokens, "minutes": minutes})
            loosened = self._loosenings.events(run, [loosening], caller)
            at = max(self._clock(), account.latest)
            data = _data(run, tokens, minutes, balance.spent)
            await self._stored.save(run, events=[("budget.allowed", data), *loosened], at=at, by=caller.by)
            self._accounts.put_run(run)
            return Change(run, changed=True)


def _data(run: Run, tokens: int | None, minutes: int | None, spent: int) -> EventData:
    return {
        "tokens": tokens,
        "minutes": minutes,
        "allowed_to": run.allowed_to,
        "allowed_until": None if run.allowed_until is None else to_text(run.allowed_until),
        "phase": run.phase,
        "spent": spent,
        "budget": run.token_budget,
    }
