"""The reservations in memory: which count, what that is for their runs, and keeping them in the ledger.

The ledger is written in the background: a reservation counts at once, and after a restart only if it was written.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import anyio
import msgspec

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.ledger.reservations import StoredReservations
from fluxbudgetd.model import Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.policy.reservations import LIFETIME
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

_MICROS = 1_000_000
# Expiry is checked a little late, so that one check is enough.
_SLACK_SECONDS = 0.05
# An answer waits this long for its reservation to be on disk, which is nearly always enough.
_WRITE_SECONDS = 0.05


class Reservations:
    """Reservations by session and number. A session's sub-agents are watched while it has any."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        stored: StoredReservations,
        writer: LedgerWriter,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._instances = totals.instances
        self._stored = stored
        self._clock = clock
        # By session: those that still matter, by number, and those of them that count.
        self._all: dict[str, dict[int, Reservation]] = {}
        self._open: dict[str, tuple[Reservation, ...]] = {}
        self._reserved: Counter[str] = Counter()
        self._last_id = 0
        self._has_any = anyio.Event()
        # What is not in the ledger yet; None: to be deleted.
        self._unsaved: dict[int, Reservation | None] = {}
        self._backlog = writer.backlog("reservations", self._write)

    async def load(self) -> None:
        """Read the ledger's reservations; raises `LedgerError`."""
        now = self._clock()
        for one in await self._stored.all():
            # If the clock was set back, a reservation still lasts no longer than its lifetime from now.
            self._all.setdefault(one.session, {})[one.id] = msgspec.structs.replace(one, at=min(one.at, now))
            self._last_id = max(self._last_id, one.id)
        self._forget_old()
        for session in self._all:
            await self.watch(session)

    async def serve(self) -> None:
        """Expire reservations until cancelled."""
        while True:
            while not self._all:
                self._has_any = anyio.Event()
                await self._has_any.wait()
            # A reservation that is made during the sleep expires later than those there are.
            await anyio.sleep(self._seconds_until_next_expiry())
            now = self._clock()
            for session, counting in list(self._open.items()):
                if any(now - one.at >= LIFETIME for one in counting):
                    self.settle(session)
            self._forget_old()

    def of(self, session: str) -> tuple[Reservation, ...]:
        """Return a session's reservations, also those that no longer count but may still take an instance."""
        return tuple(self._all.get(session, {}).values())

    def open(self, session: str) -> tuple[Reservation, ...]:
        """Return a session's reservations that count, oldest first."""
        return self._open.get(session, ())

    def get(self, session: str, number: int) -> Reservation | None:
        """Return a reservation by its number."""
        return self._all.get(session, {}).get(number)

    def add(
        self,
        account: RunAccount,
        session: str,
        agent: str,
        tokens: int,
        *,
        agent_id: str | None = None,
        call: str | None = None,
    ) -> Reservation:
        """Reserve tokens (of the run's cost basis) for a sub-agent from now on."""
        self._last_id += 1
        made = Reservation(
            id=self._last_id,
            run=account.run.id,
            session=session,
            agent=plain_name(agent),
            tokens=tokens,
            at=self._clock(),
            agent_id=agent_id,
            call=call,
        )
        self.put(made)
        return made

    def put(self, *changed: Reservation) -> None:
        """Replace reservations of one session, settle it, and have them written."""
        session = changed[0].session
        for one in changed:
            self._all.setdefault(session, {})[one.id] = one
            self._unsaved[one.id] = one
        self.settle(session)
        self._backlog.request()
        self._has_any.set()

    async def written(self) -> None:
        """Wait briefly until the changes are on disk."""
        if self._unsaved:
            await self._backlog.attempt(_WRITE_SECONDS)

    async def watch(self, session: str) -> None:
        """Observe from now on which of a session's sub-agents are measured, and settle it."""
        # Until the ledger can be read no sub-agent counts as measured; the next call tries again.
        with anyio.move_on_after(_WRITE_SECONDS), suppress(LedgerError):
            await self._instances.watch(session)
        self.settle(session)

    def unwatch_if_unused(self, session: str) -> None:
        """Stop observing a session without reservations."""
        if session not in self._all:
            self._instances.unwatch(session)

    def is_measured(self, session: str, agent_id: str | None) -> bool:
        """Return True if a sub-agent has usage in its transcript, so that its reservation no longer counts."""
        return agent_id is not None and any(
            one.agent_id == agent_id for one in self._instances.from_transcripts(session)
        )

    def evaluate(self, account: RunAccount) -> None:
        """Settle a run's sessions after its usage was refreshed."""
        for session in list(self._open):
            if session in account.sessions:
                self.settle(session)

    def settle(self, session: str) -> None:
        """Work out which reservations of a session count, and what is reserved for their runs."""
        known = self._accounts.sessions.get(session)
        if known is not None and known.counts_transcripts:
            instances = self._instances.from_transcripts(session)
        else:
            instances = self._instances.from_rows(session)
        counting = policy.open_ones(self.of(session), instances, self._clock())
        before = self._open.pop(session, ())
        if counting:
            self._open[session] = counting
        if counting == before:
            return
        for one in before:
            self._reserved[one.run] -= one.tokens
        for one in counting:
            self._reserved[one.run] += one.tokens
        for run in {one.run for one in (*before, *counting)}:
            self._accounts.put_reserved(run, self._reserved[run])

    def _seconds_until_next_expiry(self) -> float:
        """Return the seconds until a reservation stops counting, or stops mattering at all."""
        ends = [one.at + LIFETIME for counting in self._open.values() for one in counting]
        ends += [one.at + policy.KEPT for by_number in self._all.values() for one in by_number.values()]
        return max((min(ends) - self._clock()) / _MICROS, 0) + _SLACK_SECONDS

    def _forget_old(self) -> None:
        now = self._clock()
        for session in list(self._all):
            kept = {one.id for one in policy.kept(self.of(session), now)}
            for number in self._all[session].keys() - kept:
                del self._all[session][number]
                self._unsaved[number] = None
                self._backlog.request()
            if not self._all[session]:
                del self._all[session]
                self.unwatch_if_unused(session)

    async def _write(self) -> None:
        batch = dict(self._unsaved)
        if not batch:
            return
        await self._stored.save(
            [one for one in batch.values() if one is not None],
            [number for number, one in batch.items() if one is None],
        )
        for number, one in batch.items():
            if self._unsaved.get(number) is one:
                self._unsaved.pop(number, None)
