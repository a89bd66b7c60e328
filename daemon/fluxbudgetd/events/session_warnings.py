"""Warnings that hooks give to sessions: the main loop and each sub-agent of a session get each warning once.

Each has a context of its own, so what a sub-agent was told does not reach the main loop. A warning counts as delivered
once the hook has received it. This is saved afterwards, so a kill in between repeats the warning rather than losing it.
A hook that exits early has received nothing.

A run's loosenings are delivered with them, for the person: in the main loop of each session that belonged to the run
at that time.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.ledger.deliveries import MAIN, Receiver
from fluxbudgetd.model import BudgetThreshold, Event
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

# If a run has more loosenings that its sessions were not told of, the oldest are left out.
_MOST_LOOSENINGS = 8


class Reminder(NamedTuple):
    """What a session's main loop or one of its sub-agents is told. Call `finish(is_delivered)` exactly once.

    `event` is a warning, None if there is none. `loosened` are the run's loosenings, for the person.
    """

    event: Event | None
    loosened: tuple[Event, ...]
    is_for_person: bool
    """True if the person should see it, too: always in the main loop; in sub-agents, the session's first time."""
    finish: Callable[[bool], None]


class SessionWarnings:
    """The warnings of each active run, and who has been given them."""

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
        self._loosened: dict[str, deque[Event]] = {}
        # By run: the number of the last warning that each receiver was given.
        self._given: dict[str, dict[Receiver, int]] = {}
        # By run and receiver: the deliveries under way, and the warning numbers that are not in the ledger yet.
        self._under_way: dict[tuple[str, Receiver], anyio.Event] = {}
        self._unsaved: dict[tuple[str, Receiver], int] = {}
        self._backlog = writer.backlog("session warnings", self._write)

    async def load(self) -> None:
        """Read the warnings of the active runs; raises `LedgerError`."""
        self._position = self._events.last
        active = {account.run.id: account for account in self._accounts.active()}
        self._add(event for event in await self._ledger.events.last_loosenings() if event.run in active)
        for run, account in active.items():
            if account.fired:
                self._add(await self._ledger.events.last_warnings(run))
            if account.fired or run in self._loosened:
                self._given[run] = await self._ledger.deliveries.warned(run)

    async def serve(self) -> None:
        """Follow the event log until cancelled, so that hooks have little of it left to read."""
        while True:
            last = self._events.last
            with suppress(LedgerError):  # retried after the next event, or by the next hook
                await self._catch_up()
            await self._events.wait(last)

    async def next_for(
        self, account: RunAccount, session: str, agent_id: str | None, deadline: float
    ) -> Reminder | None:
        """Return the most severe warning about a session's run that the receiver has not been given yet, or None.

        The receiver is the sub-agent, or without an `agent_id` the session's main loop. One hook of a receiver delivers
        at a time; others wait for its outcome until the deadline. Raises `LedgerError`.
        """
        receiver = Receiver(session, agent_id or MAIN)
        key = account.run.id, receiver
        with anyio.CancelScope(deadline=deadline):
            while key in self._under_way:
                await self._under_way[key].wait()
        await self._catch_up()
        return None if key in self._under_way else self._next_for(account, receiver)

    def _next_for(self, account: RunAccount, receiver: Receiver) -> Reminder | None:
        run = account.run.id
        key = run, receiver
        new = self._new_for(account, receiver)
        loosened = self._loosened_for(account, receiver)
        if not (new or loosened) or account.run.status != "active":
            return None
        last = max(event.seq for event in (*(event for _, event in new), *loosened))
        most_severe = max(new, key=lambda warning: warning[0].pct)[1] if new else None
        self._under_way[key] = done = anyio.Event()

        def finish(is_delivered: bool) -> None:
            del self._under_way[key]
            done.set()
            if is_delivered:
                self._given.setdefault(run, {})[receiver] = last
                self._unsaved[key] = last
                self._backlog.request()

        is_main = receiver.agent_id == MAIN
        is_new = most_severe is not None and self._last_shown(run, receiver.session) < most_severe.seq
        return Reminder(most_severe, loosened, is_main or is_new, finish)

    def _last_shown(self, run: str, session: str) -> int:
        """Return the number of the last warning that the session's main loop or one of its sub-agents was given."""
        given = self._given.get(run, {})
        return max((seq for receiver, seq in given.items() if receiver.session == session), default=0)

    def _new_for(self, account: RunAccount, receiver: Receiver) -> list[tuple[BudgetThreshold, Event]]:
        config = self._settings.config
        channel = config.channels.hook
        if not channel.enabled:
            return []
        given = self._given.get(account.run.id, {}).get(receiver, 0)
        return [
            (threshold, event)
            for threshold, event in self._warnings.get(account.run.id, {}).items()
            if event.seq > given
            and threshold in account.fired
            and thresholds.is_wanted(event, channel.thresholds, config.warnings.thresholds)
        ]

    def _loosened_for(self, account: RunAccount, receiver: Receiver) -> tuple[Event, ...]:
        run = account.run.id
        if receiver.agent_id != MAIN or run not in self._loosened or not self._settings.config.channels.hook.enabled:
            return ()
        given = self._given.get(run, {}).get(receiver, 0)
        since = [each.since for each in account.attachments() if each.session == receiver.session]
        joined = min(since, default=None)
        return tuple(
            event for event in self._loosened[run] if event.seq > given and joined is not None and joined <= event.at
        )

    async def _catch_up(self) -> None:
        async with self._reading:
            while self._position < (last := self._events.last):
                events = await self._events.after(self._position)
                self._add(events)
                self._position = events[-1].seq if events else last

    def _add(self, events: Iterable[Event]) -> None:
        for event in events:
            threshold = thresholds.threshold_of(event)
            if event.run is not None and threshold is not None:
                self._warnings.setdefault(event.run, {})[threshold] = event
            elif event.run is not None and event.kind == "run.loosened":
                self._loosened.setdefault(event.run, deque(maxlen=_MOST_LOOSENINGS)).append(event)
            elif event.run is not None and event.kind == "run.finished":
                self._warnings.pop(event.run, None)
                self._loosened.pop(event.run, None)
                self._given.pop(event.run, None)

    async def _write(self) -> None:
        unsaved = dict(self._unsaved)
        if not unsaved:
            return
        await self._ledger.deliveries.save_warned([(run, receiver, seq) for (run, receiver), seq in unsaved.items()])
        for key, seq in unsaved.items():
            if self._unsaved.get(key) == seq:
                del self._unsaved[key]
