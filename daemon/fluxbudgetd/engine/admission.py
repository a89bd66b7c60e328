"""Sub-agents: admitted before they are launched, and their estimates reserved until they are measured or have ended.

Checking and reserving is one step, so that many that are launched at once cannot all pass one gap.
"""

import math
from collections.abc import Iterable

import anyio
import msgspec
import structlog

from fluxbudgetd.engine.book import Book, RunState
from fluxbudgetd.engine.parts import Parts
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import Instance, Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.policy.reservations import LIFETIME

log = structlog.get_logger()

_MICROS = 1_000_000
# A little after a reservation's time, so that one look is enough.
_SLACK_SECONDS = 0.05


class Admission:
    """The reservations, and who gets one."""

    def __init__(self, parts: Parts) -> None:
        self._book: Book = parts.book
        self._live = parts.refresher.live
        self._sums = parts.sums
        self._ledger = parts.ledger
        self._clock = parts.clock
        self._changing = parts.changing
        self._kept: dict[int, Reservation] = {}
        self._open: tuple[Reservation, ...] = ()
        self._changed = anyio.Event()

    async def load(self) -> None:
        """Take up what the ledger has; raises `LedgerError`."""
        self._kept = {one.id: one for one in await self._ledger.reservations()}
        await self._forget_old()
        for session in {one.session for one in self._kept.values()}:
            await self._watch(session)
        self._settle()

    async def admit(self, state: RunState, session: str, agent: str, estimate: int) -> policy.Admission:
        """Decide whether a session may launch a sub-agent, and reserve its estimate if so."""
        await self._watch(session)
        async with self._changing:
            self._settle()
            admission = policy.admission(state.run, self._book.balance(state), estimate, plain_name(agent))
            if admission.reserve:
                await self._reserve(state, session, agent, estimate, None)
        return admission

    async def start(
        self, state: RunState | None, session: str, agent: str, agent_id: str | None, estimate: int
    ) -> None:
        """Note that a sub-agent has started: it is one that was admitted, or is reserved for now."""
        await self._watch(session)
        async with self._changing:
            self._settle()
            if agent_id is not None and any(one.agent_id == agent_id for one in self._of(session)):
                return
            # One that is measured already has closed its reservation: that is the one that gets its id.
            measured = self._is_measured(session, agent_id)
            waiting = [one for one in self._of(session) if one.agent_id is None and one.ended_at is None]
            waiting = [one for one in waiting if (one in self._open) != measured]
            alike = [one for one in waiting if not agent or plain_name(one.agent) == plain_name(agent)]
            if alike:
                if agent_id is not None:
                    await self._save(msgspec.structs.replace(alike[0], agent_id=agent_id))
            elif not measured and state is not None and state.run.status == "active":
                await self._reserve(state, session, agent, estimate, agent_id)

    async def stop(self, session: str, agent: str, agent_id: str | None) -> None:
        """Note that a sub-agent has ended. Without its id it is the earliest of its name, or of its session."""
        async with self._changing:
            known = [one for one in self._of(session) if agent_id is not None and one.agent_id == agent_id]
            if not known and not self._is_measured(session, agent_id):
                mine = [one for one in self._open if one.session == session]
                mine = [one for one in mine if agent_id is None or one.agent_id is None]
                known = [one for one in mine if not agent or plain_name(one.agent) == plain_name(agent)][:1]
            await self._end(known)

    async def end(self, session: str) -> None:
        """Note that a session has ended, and all its sub-agents with it."""
        async with self._changing:
            await self._end(self._of(session))

    def look(self, state: RunState) -> None:
        """Look again at what has been measured of a run's sub-agents."""
        if any(one.run == state.run.id for one in self._open):
            self._settle()

    async def serve(self) -> None:
        """Let reservations end with their time, for ever."""
        while True:
            now = self._clock()
            next_end = min((one.at + LIFETIME for one in self._open), default=None)
            seconds = math.inf if next_end is None else max((next_end - now) / _MICROS, 0) + _SLACK_SECONDS
            self._changed = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._changed.wait()
            async with self._changing:
                self._settle()
                await self._forget_old()

    def _is_measured(self, session: str, agent_id: str | None) -> bool:
        """Tell whether there is usage of a sub-agent, whose reservation has so come to its end already."""
        return agent_id is not None and any(one.agent_id == agent_id for one in self._live.instances(session))

    def _of(self, session: str) -> list[Reservation]:
        return [one for one in self._kept.values() if one.session == session]

    async def _watch(self, session: str) -> None:
        """Have it noted from now on which sub-agents of a session are measured."""
        try:
            await self._live.watch_agents(session)
        except LedgerError as exc:
            self._sums.note_fault(exc)
        self._sums.watch_rows(session)

    async def _reserve(self, state: RunState, session: str, agent: str, tokens: int, agent_id: str | None) -> None:
        made = Reservation(
            id=max(self._kept, default=0) + 1,
            run=state.run.id,
            session=session,
            agent=plain_name(agent),
            tokens=tokens,
            at=self._clock(),
            agent_id=agent_id,
        )
        await self._save(made)

    async def _end(self, which: Iterable[Reservation]) -> None:
        now = self._clock()
        for one in which:
            if one.ended_at is None:
                await self._save(msgspec.structs.replace(one, ended_at=now))

    async def _save(self, one: Reservation) -> None:
        self._kept[one.id] = one
        self._settle()
        try:
            await self._ledger.save_reservations([one])
        except LedgerError as exc:
            # It counts all the same, only not after a restart.
            self._sums.note_fault(exc)

    async def _forget_old(self) -> None:
        kept = {one.id for one in policy.kept(self._kept.values(), self._clock())}
        gone = [number for number in self._kept if number not in kept]
        if not gone:
            return
        try:
            await self._ledger.save_reservations((), gone)
        except LedgerError as exc:
            self._sums.note_fault(exc)
            return
        sessions = {self._kept.pop(number).session for number in gone}
        for session in sessions - {one.session for one in self._kept.values()}:
            self._live.unwatch_agents(session)
            self._sums.unwatch_rows(session)

    def _settle(self) -> None:
        """Find out which reservations still count, and what that is for each run."""
        if not self._kept:
            return
        before = {one.run for one in self._open}
        instances: list[Instance] = []
        for session in {one.session for one in self._kept.values()}:
            known = self._book.sessions.get(session)
            measured = self._live.instances(session) if known is not None and known.live else None
            instances += self._sums.instances(session) if measured is None else measured
        found = policy.open_ones(tuple(self._kept.values()), instances, self._clock())
        if found != self._open:
            self._open = found
            self._changed.set()
        for run in before.union(one.run for one in found):
            self._book.put_reserved(run, sum(one.tokens for one in found if one.run == run))
