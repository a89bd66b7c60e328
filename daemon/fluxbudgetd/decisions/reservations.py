"""Reservations in memory: what each holds, the total per run, and saving them. `policy.reservations` has the rules.

The ledger is written in the background. A reservation counts at once; after a restart it counts only if it was written.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.ledger.reservations import StoredReservations
from fluxbudgetd.model import Instance, Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

_MICROS = 1_000_000
# Check a little after the expiry, so that one check is enough.
_SLACK_SECONDS = 0.05
# An answer waits this long for its reservation to be on disk, which is nearly always enough.
_WRITE_SECONDS = 0.05
_RETRY_SECONDS = 1.0


class _Held(NamedTuple):
    run: str
    tokens: int


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
        self._tallier = totals.tallier
        self._instances = totals.instances
        self._stored = stored
        self._clock = clock
        # By session and number: the reservations that are kept, and how much each holds (if it holds anything).
        self._all: dict[str, dict[int, Reservation]] = {}
        self._held: dict[str, dict[int, _Held]] = {}
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
            at, seen_at = min(reservation.at, now), min(reservation.seen_at, now)
            kept = msgspec.structs.replace(reservation, at=at, seen_at=seen_at)
            self._all.setdefault(kept.session, {})[kept.id] = kept
            self._last_id = max(self._last_id, kept.id)
        for session in list(self._all):
            await self.watch(session)
        self._forget_old()

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
            for session in list(self._held):
                self.settle(session)
            self._forget_old()

    def of_session(self, session: str) -> tuple[Reservation, ...]:
        """Return a session's reservations, including those that have ended."""
        return tuple(self._all.get(session, {}).values())

    def running(self, session: str, agent_id: str | None) -> tuple[Reservation, ...]:
        """Return the reservations of a sub-agent that has started and not ended; usually one or none."""
        return tuple(
            each
            for each in self.of_session(session)
            if each.agent_id is not None and each.agent_id == agent_id and each.ended_at is None
        )

    def over(self, session: str) -> set[str]:
        """Return the ids of the sub-agents whose end was reported and that have not been resumed since."""
        known = [(each.agent_id, each.ended_at) for each in self.of_session(session) if each.agent_id is not None]
        return {name for name, _ in known} - {name for name, ended_at in known if ended_at is None}

    def type_of(self, session: str, agent_id: str) -> str | None:
        """Return the type of a sub-agent that has a transcript or a reservation; None if it has neither."""
        instance = self._instances.from_transcripts(session).get(agent_id)
        names = (each.agent for each in self.of_session(session) if each.agent_id == agent_id)
        return next(names, None if instance is None else instance.agent)

    def used(self, reservation: Reservation) -> int:
        """Return what a reservation's sub-agent has used since its launch, in tokens of the run's cost basis."""
        instances = self._instances.from_transcripts(reservation.session)
        instance = _instance(reservation, instances)
        return policy.used(reservation, instance, self._accounts.runs[reservation.run].run.cost_basis)

    def measured(self, account: RunAccount, session: str, agent_id: str | None) -> int:
        """Return what a sub-agent has used in all, in tokens of a run's cost basis."""
        instance = None if agent_id is None else self._instances.from_transcripts(session).get(agent_id)
        return 0 if instance is None else instance.counts.tokens(account.run.cost_basis)

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
        parent: str | None = None,
        resumes: str | None = None,
        base: int = 0,
    ) -> Reservation:
        """Reserve tokens (of the run's cost basis) for a sub-agent from now on."""
        self._last_id += 1
        now = self._clock()
        reservation = Reservation(
            id=self._last_id,
            run=account.run.id,
            session=session,
            agent=plain_name(agent),
            tokens=tokens,
            at=now,
            agent_id=agent_id,
            call=call,
            parent=parent,
            resumes=resumes,
            base=base,
            seen_at=now,
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

    def remove(self, *released: Reservation) -> None:
        """Forget reservations of one session whose sub-agents have never started."""
        session = released[0].session
        for reservation in released:
            del self._all[session][reservation.id]
            self._unsaved[reservation.id] = None
        if not self._all[session]:
            del self._all[session]
        self.settle(session)
        self._backlog.request()

    async def written(self) -> None:
        """Wait briefly until the changes are on disk."""
        if self._unsaved:
            await self._backlog.attempt(_WRITE_SECONDS)

    async def watch(self, session: str) -> None:
        """Keep track of what a session's sub-agents use, and settle it."""
        # No request waits long for the ledger. Until it was read, no sub-agent counts as having used anything.
        self._unwatched.add(session)
        with anyio.move_on_after(_WRITE_SECONDS), suppress(LedgerError):
            await self._tallier.watch(session)
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
                    await self._tallier.watch(session)
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

    def evaluate(self, account: RunAccount) -> None:
        """Settle a run's sessions after its usage was refreshed."""
        for session in list(self._all):
            if session in account.sessions:
                self.settle(session)

    def settle(self, session: str) -> None:
        """Determine what the reservations of a session hold, and update their runs' reserved totals."""
        if session not in self._all and session not in self._held:
            return
        now = self._clock()
        instances = self._instances.from_transcripts(session)
        for corrected in policy.corrected(self.of_session(session), instances.values()):
            self._all[session][corrected.id] = self._unsaved[corrected.id] = corrected
            self._backlog.request()
        reservations = self.of_session(session)
        account = self._accounts.sessions.get(session)
        ended: Collection[int] = ()
        if account is None or not account.counts_transcripts:
            ended = policy.ended_by_rows(reservations, self._instances.from_rows(session))
        held: dict[int, _Held] = {}
        for reservation in reservations:
            instance = _instance(reservation, instances)
            basis = self._accounts.runs[reservation.run].run.cost_basis
            tokens = 0 if reservation.id in ended else policy.held(reservation, instance, basis, now)
            if tokens:
                held[reservation.id] = _Held(reservation.run, tokens)
        self._put_held(session, held)

    def _put_held(self, session: str, held: dict[int, _Held]) -> None:
        before = self._held.pop(session, {})
        if held:
            self._held[session] = held
        for run, tokens in before.values():
            self._reserved[run] -= tokens
        for run, tokens in held.values():
            self._reserved[run] += tokens
        for run in {each.run for each in (*before.values(), *held.values())}:
            self._accounts.put_reserved(run, self._reserved[run])

    def _last_signs(self, session: str) -> dict[int, int]:
        """Return when each reservation of a session last had a sign of its sub-agent, by number."""
        now = self._clock()
        instances = self._instances.from_transcripts(session)
        return {each.id: policy.last_sign(each, _instance(each, instances), now) for each in self.of_session(session)}

    def _seconds_until_next_expiry(self) -> float:
        """Return the seconds until the next reservation expires, or is forgotten."""
        ends = []
        for session in self._all:
            held = self._held.get(session, {})
            for number, sign in self._last_signs(session).items():
                ends.append(sign + policy.KEPT)
                if number in held:
                    ends.append(sign + policy.LIFETIME)
        return max((min(ends) - self._clock()) / _MICROS, 0) + _SLACK_SECONDS

    def _forget_old(self) -> None:
        now = self._clock()
        for session in list(self._all):
            for number, sign in self._last_signs(session).items():
                if now - sign >= policy.KEPT:
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


def _instance(reservation: Reservation, instances: Mapping[str, Instance]) -> Instance | None:
    return None if reservation.agent_id is None else instances.get(reservation.agent_id)
