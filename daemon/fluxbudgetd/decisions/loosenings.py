"""Loosening a run's limits: refused from inside a session if a hard limit is concerned, otherwise reported.

This is a guard rail, not a security boundary: the process that is measured runs as the same user. docs/enforcement.md
lists what gets past it.
"""

from collections.abc import Callable, Iterable

import structlog

from fluxbudgetd.errors import RefusedError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.ledger.events import StoredEvents
from fluxbudgetd.model import Caller, Run
from fluxbudgetd.policy import loosening as policy
from fluxbudgetd.policy.loosening import Action, Loosening
from fluxbudgetd.totals.accounts import Accounts

log = structlog.get_logger()


class Loosenings:
    """Decides whether a process may loosen a run. The caller writes the events with the change that they report."""

    def __init__(self, accounts: Accounts, stored: StoredEvents, clock: Callable[[], int]) -> None:
        self._accounts = accounts
        self._stored = stored
        self._clock = clock

    def events(self, run: Run, loosenings: Iterable[Loosening], caller: Caller | None) -> list[NewEvent]:
        """Return the events that report what loosens a run; raise `RefusedError` if the caller may not do this.

        `caller` is None for a hook. A loosening of a soft run from outside any session is not reported.
        """
        events: list[NewEvent] = []
        for loosening in loosenings:
            self._require(run, loosening, caller)
            if run.enforcement == "hard" or (caller is not None and caller.is_inside):
                sessions = () if caller is None else caller.sessions
                events.append(("run.loosened", policy.data(run, loosening, sessions)))
        return events

    async def record(self, action: Action, caller: Caller) -> None:
        """Write the events of what the caller is about to do to all runs; raise `RefusedError` if it may not."""
        own = {account.run.id for session in caller.sessions if (account := self._accounts.run_of_session(session))}
        at = self._clock()
        new = [
            (at, account.run.id, event, caller.by)
            for account in self._accounts.active()
            if account.run.enforcement == "hard" or account.run.id in own
            for event in self.events(account.run, [Loosening(action, {})], caller)
        ]
        if new:
            await self._stored.add(new)

    def _require(self, run: Run, loosening: Loosening, caller: Caller | None) -> None:
        if caller is None or not caller.is_inside:
            return
        hard = run if run.enforcement == "hard" else self._hard_run_of(caller)
        if hard is None:
            return
        log.warning("loosening refused", run=run.id, action=loosening.action, **_shown(caller))
        where = "run it in your own terminal"
        if caller.by.kind == "unknown":
            where += f" (an ancestor of process {caller.by.pid} cannot be read, so it may be inside a session)"
        raise RefusedError(policy.refusal(run, loosening.action, hard), where)

    def _hard_run_of(self, caller: Caller) -> Run | None:
        """Return an active hard run of the sessions that the caller is inside of."""
        accounts = (self._accounts.run_of_session(session) for session in caller.sessions)
        return next((each.run for each in accounts if each is not None and _is_bound_by(each.run)), None)


def _is_bound_by(run: Run) -> bool:
    return run.status == "active" and run.enforcement == "hard"


def _shown(caller: Caller) -> dict[str, object]:
    return {"kind": caller.by.kind, "pid": caller.by.pid, "comm": caller.by.comm, "sessions": list(caller.sessions)}
