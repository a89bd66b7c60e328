"""Reservations in memory: which count, the total per run, and saving them.

The ledger is written in the background. A reservation counts at once; after a restart it counts only if it was written.
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
# Check a little after the expiry, so that one check is enough.
_SLACK_SECONDS = 0.05
# An answer waits this long for its reservation to be on disk, which is nearly always enough.
_WRITE_SECONDS = 0.05
_RETRY_SECONDS = 1.0


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
        # By session: the reservations that are kept, by number, and those of them that count.
        self._all: dict[str, dict[int, Reservation]] = {}
        self._open: dict[str, tuple[Reservation, ...]] = {}
        self._reserved: Counter[str] = Counter()
        self._last_id = 0
        self._has_any = anyio.Event()
        # The sessions that are to be watched and whose usage so far has not been read from the ledger yet.
        self._unwatched: set[str] = set()
        self._has_unwatched = anyio.Event()
        # What is not in the ledger yet; None: to be deleted.
        self._unsaved: dict[int, Reservation | None] = {}
        self._backlog = writer.backlog("reservations", self._write)

    async def load(self) -> None:
        """Read the ledger's reservations; raises `LedgerError`."""
        now = self._clock()
        for reservation in await self._stored.all():
            # If the clock was set back, a reservation still lasts no longer than its lifetime from now.
            kept = msgspec.structs.replace(reservation, at=min(reservation.at, now))
            self._all.setdefault(kept.session, {})[kept.id] = kept
            self._last_id = max(self._last_id, kept.id)
        self._forget_old()
        for session in self._all:
            await self.watch(session)

    async def serve(self) -> None:
        """Expire reservations, and watch the sessions that a request could not wait for, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._expire)
            tasks.start_soon(self._watch_later)

    async def _expire(self) -> None:
        while True:
            while not self._all:
                self._has_any = anyio.Event()
                await self._has_any.wait()
            # Reservations that are added during the sleep expire later than these.
            await anyio.sleep(self._seconds_until_next_expiry())
            now = self._clock()
            for session, counting in list(self._open.items()):
                if any(now - reservation.at >= LIFETIME for reservation in counting):
                    self.settle(session)
            self._forget_old()

    def of_session(self, session: str) -> tuple[Reservation, ...]:
        """Return a session's reservations, including closed ones that may still match an instance."""
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
        reservation = Reservation(
            id=self._last_id,
            run=account.run.id,
            session=session,
            agent=plain_name(agent),
            tokens=tokens,
            at=self._clock(),
            agent_id=agent_id,
            call=call,
        )
        self.put(reservation)
        return reservation

    def put(self, *changed: Reservation) -> None:
        """Add or replace reservations of one session, settle it, and have them written."""
        session = changed[0].session
        for reservation in changed:
            self._all.setdefault(session, {})[reservation.id] = reservation
            self._unsaved[reservation.id] = reservation
        self.settle(session)
        self._backlog.request()
        self._has_any.set()

    async def written(self) -> None:
        """Wait briefly until the changes are on disk."""
        if self._unsaved:
            await self._backlog.attempt(_WRITE_SECONDS)

    async def watch(self, session: str) -> None:
        """Keep track of which of a session's sub-agents are measured, and settle it."""
        # No request waits long for the ledger. Until it was read, no sub-agent counts as measured.
        self._unwatched.add(session)
        with anyio.move_on_after(_WRITE_SECONDS), suppress(LedgerError):
            await self._instances.watch(session)
            self._unwatched.discard(session)
        if session in self._unwatched:
            self._has_unwatched.set()
        self.settle(session)

    async def _watch_later(self) -> None:
        while True:
            await self._has_unwatched.wait()
            self._has_unwatched = anyio.Event()
            try:
                for session in list(self._unwatched):
                    await self._instances.watch(session)
                    self._unwatched.discard(session)
                    self.settle(session)
                    self.unwatch_if_unused(session)
            except LedgerError:
                self._has_unwatched.set()
                await anyio.sleep(_RETRY_SECONDS)

    def unwatch_if_unused(self, session: str) -> None:
        """Stop watching a session if it has no reservations."""
        if session not in self._all:
            self._instances.unwatch(session)

    def is_measured(self, session: str, agent_id: str | None) -> bool:
        """Return True if a sub-agent has usage in its transcript, so that its reservation no longer counts."""
        return agent_id is not None and any(
            instance.agent_id == agent_id for instance in self._instances.from_transcripts(session)
        )

    def evaluate(self, account: RunAccount) -> None:
        """Settle a run's sessions after its usage was refreshed."""
        for session in list(self._open):
            if session in account.sessions:
                self.settle(session)

    def settle(self, session: str) -> None:
        """Determine which reservations of a session count, and update their runs' reserved totals."""
        account = self._accounts.sessions.get(session)
        if account is not None and account.counts_transcripts:
            instances = self._instances.from_transcripts(session)
        else:
            instances = self._instances.from_rows(session)
        counting = policy.open_ones(self.of_session(session), instances, self._clock())
        before = self._open.pop(session, ())
        if counting:
            self._open[session] = counting
        if counting == before:
            return
        for reservation in before:
            self._reserved[reservation.run] -= reservation.tokens
        for reservation in counting:
            self._reserved[reservation.run] += reservation.tokens
        for run in {reservation.run for reservation in (*before, *counting)}:
            self._accounts.put_reserved(run, self._reserved[run])

    def _seconds_until_next_expiry(self) -> float:
        """Return the seconds until the next reservation stops counting, or is dropped."""
        ends = [each.at + LIFETIME for counting in self._open.values() for each in counting]
        ends += [each.at + policy.KEPT for by_number in self._all.values() for each in by_number.values()]
        return max((min(ends) - self._clock()) / _MICROS, 0) + _SLACK_SECONDS

    def _forget_old(self) -> None:
        now = self._clock()
        for session in list(self._all):
            kept = {reservation.id for reservation in policy.kept(self.of_session(session), now)}
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
            [reservation for reservation in batch.values() if reservation is not None],
            [number for number, reservation in batch.items() if reservation is None],
        )
        for number, reservation in batch.items():
            if self._unsaved.get(number) is reservation:
                self._unsaved.pop(number, None)
