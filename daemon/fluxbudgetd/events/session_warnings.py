"""Warnings that sessions are told by their hooks: each session once of each warning.

A session knows once its hook has taken the answer; that is written down afterwards, so that a daemon that is killed in
between tells it again rather than never. A hook that has gone before its answer has heard nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Event, Mark
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.accounts import Accounts, RunAccount


class Reminder(NamedTuple):
    """A warning that a session is being told. `heard` has to be called once: has it taken the answer?"""

    event: Event
    heard: Callable[[bool], None]


class SessionWarnings:
    """What each active run was warned of, and which of its sessions know."""

    def __init__(self, accounts: Accounts, ledger: Ledger, writer: LedgerWriter, settings: Settings) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._settings = settings
        self._warnings: dict[str, dict[Mark, Event]] = {}
        self._told: dict[str, dict[str, int]] = {}
        # By session and run, what is being told just now; and what is not in the ledger yet.
        self._telling: dict[tuple[str, str], anyio.Event] = {}
        self._unsaved: dict[tuple[str, str], int] = {}
        self._backlog = writer.backlog("session warnings", self._write)

    async def load(self) -> None:
        """Take up what the ledger has of the active runs; raises `LedgerError`."""
        for state in self._accounts.active():
            if state.fired:
                self.take(await self._ledger.last_warnings(state.run.id))
                self._told[state.run.id] = await self._ledger.told(state.run.id)

    def take(self, events: Sequence[Event]) -> None:
        """Note what has happened."""
        for event in events:
            mark = thresholds.mark(event)
            if event.run is not None and mark is not None:
                self._warnings.setdefault(event.run, {})[mark] = event
            elif event.run is not None and event.kind == "run.finished":
                self._warnings.pop(event.run, None)
                self._told.pop(event.run, None)

    async def tell(self, state: RunAccount, session: str, deadline: float) -> Reminder | None:
        """Return the gravest warning that a session does not know of its run, taken for told for now; None: none.

        Of several hooks of a session at once one tells it; the others wait (until the deadline) whether it is heard.
        """
        with anyio.CancelScope(deadline=deadline):
            while (session, state.run.id) in self._telling:
                await self._telling[session, state.run.id].wait()
        return None if (session, state.run.id) in self._telling else self._tell(state, session)

    def _tell(self, state: RunAccount, session: str) -> Reminder | None:
        config = self._settings.config
        channel = config.channels.hook
        known = self._told.get(state.run.id, {}).get(session, 0)
        new = [
            event
            for mark, event in self._warnings.get(state.run.id, {}).items()
            if event.seq > known
            and mark in state.fired
            and channel.enabled
            and thresholds.is_told(event, channel.thresholds, config.warnings.thresholds)
        ]
        if not new or state.run.status != "active":
            return None
        seq = max(event.seq for event in new)
        self._telling[session, state.run.id] = done = anyio.Event()
        gravest = max(new, key=lambda event: (thresholds.mark(event) or Mark(event.kind, 0)).pct)

        def heard(taken: bool) -> None:
            del self._telling[session, state.run.id]
            done.set()
            if taken:
                self._told.setdefault(state.run.id, {})[session] = seq
                self._unsaved[session, state.run.id] = seq
                self._backlog.request()

        return Reminder(gravest, heard)

    async def _write(self) -> None:
        told = [(session, run, seq) for (session, run), seq in self._unsaved.items()]
        if not told:
            return
        await self._ledger.save_told(told)
        for session, run, seq in told:
            if self._unsaved.get((session, run)) == seq:
                del self._unsaved[session, run]
