"""Warnings that hooks give to their sessions: each session gets each warning once.

A warning counts as delivered once the hook has received it. This is saved afterwards, so a kill in between repeats the
warning rather than losing it. A hook that exits early has received nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import BudgetThreshold, Event
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts


class Reminder(NamedTuple):
    """A warning for a session. Call `finish(is_delivered)` exactly once."""

    event: Event
    finish: Callable[[bool], None]


class SessionWarnings:
    """The warnings of each active run, and which of its sessions have been given them."""

    def __init__(
        self, accounts: Accounts, events: EventLog, ledger: Ledger, writer: LedgerWriter, settings: Settings
    ) -> None:
        self._accounts = accounts
        self._events = events
        self._ledger = ledger
        self._settings = settings
        self._position = 0
        self._reading = anyio.Lock()
        self._warnings: dict[str, dict[BudgetThreshold, Event]] = {}
        # By run and session: the number of the last warning that the session was given.
        self._given: dict[str, dict[str, int]] = {}
        # By session and run: the deliveries under way, and the warning numbers that are not in the ledger yet.
        self._under_way: dict[tuple[str, str], anyio.Event] = {}
        self._unsaved: dict[tuple[str, str], int] = {}
        self._backlog = writer.backlog("session warnings", self._write)

    async def load(self) -> None:
        """Read the warnings of the active runs; raises `LedgerError`."""
        self._position = self._events.last
        for account in self._accounts.active():
            if account.fired:
                self._add(await self._ledger.events.last_warnings(account.run.id))
                self._given[account.run.id] = await self._ledger.deliveries.warned(account.run.id)

    async def serve(self) -> None:
        """Follow the event log until cancelled, so that hooks have little of it left to read."""
        while True:
            last = self._events.last
            with suppress(LedgerError):  # retried after the next event, or by the next hook
                await self._catch_up()
            await self._events.wait(last)

    async def next_for(self, account: RunAccount, session: str, deadline: float) -> Reminder | None:
        """Return the most severe warning about a session's run that the session has not been given yet, or None.

        One hook of a session delivers at a time; others wait for its outcome until the deadline. Raises `LedgerError`.
        """
        key = session, account.run.id
        with anyio.CancelScope(deadline=deadline):
            while key in self._under_way:
                await self._under_way[key].wait()
        await self._catch_up()
        return None if key in self._under_way else self._next_for(account, session)

    def _next_for(self, account: RunAccount, session: str) -> Reminder | None:
        key = session, account.run.id
        new = self._new_for(account, session)
        if not new or account.run.status != "active":
            return None
        last = max(event.seq for _, event in new)
        _, most_severe = max(new, key=lambda warning: warning[0].pct)
        self._under_way[key] = done = anyio.Event()

        def finish(is_delivered: bool) -> None:
            del self._under_way[key]
            done.set()
            if is_delivered:
                self._given.setdefault(account.run.id, {})[session] = last
                self._unsaved[key] = last
                self._backlog.request()

        return Reminder(most_severe, finish)

    def _new_for(self, account: RunAccount, session: str) -> list[tuple[BudgetThreshold, Event]]:
        config = self._settings.config
        channel = config.channels.hook
        if not channel.enabled:
            return []
        given = self._given.get(account.run.id, {}).get(session, 0)
        return [
            (threshold, event)
            for threshold, event in self._warnings.get(account.run.id, {}).items()
            if event.seq > given
            and threshold in account.fired
            and thresholds.is_wanted(event, channel.thresholds, config.warnings.thresholds)
        ]

    async def _catch_up(self) -> None:
        async with self._reading:
            while self._position < self._events.last:
                events = await self._events.after(self._position)
                self._add(events)
                self._position = events[-1].seq if events else self._events.last

    def _add(self, events: Iterable[Event]) -> None:
        for event in events:
            threshold = thresholds.threshold_of(event)
            if event.run is not None and threshold is not None:
                self._warnings.setdefault(event.run, {})[threshold] = event
            elif event.run is not None and event.kind == "run.finished":
                self._warnings.pop(event.run, None)
                self._given.pop(event.run, None)

    async def _write(self) -> None:
        unsaved: Sequence[tuple[str, str, int]] = [(session, run, seq) for (session, run), seq in self._unsaved.items()]
        if not unsaved:
            return
        await self._ledger.deliveries.save_warned(unsaved)
        for session, run, seq in unsaved:
            if self._unsaved.get((session, run)) == seq:
                del self._unsaved[session, run]
