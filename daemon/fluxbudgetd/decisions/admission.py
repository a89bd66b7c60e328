"""Sub-agents: admitted before they are launched, and their estimates reserved until they are measured or have ended.

Between checking and reserving nothing is waited for, so that many that are launched at once cannot all pass one gap.
The ledger is written by a task of its own: one that is slow, or cannot be written, delays no decision.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.decisions.parts import Parts
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.policy.reservations import LIFETIME
from fluxbudgetd.totals.accounts import RunAccount

#: What is launched when no kind of sub-agent is named; it may start under another name.
GENERAL = "general-purpose"

_MICROS = 1_000_000
# A little after a reservation's time, so that one look is enough.
_SLACK_SECONDS = 0.05
# An answer waits this long for its reservation to be on disk: nearly always it is.
_KEEP_SECONDS = 0.05


class Admitted(NamedTuple):
    """The decision about a launch, and the number of the reservation that was made for it, if any."""

    admission: policy.Admission
    reservation: int | None


class Admission:
    """The reservations, and who gets one."""

    def __init__(self, parts: Parts) -> None:
        self._accounts = parts.accounts
        self._live = parts.totals.transcripts
        self._tallies = parts.totals.tallies
        self._ledger = parts.ledger
        self._clock = parts.clock
        # By session: all that matter still, by their numbers; and those that count.
        self._kept: dict[str, dict[int, Reservation]] = {}
        self._open: dict[str, tuple[Reservation, ...]] = {}
        self._reserved: Counter[str] = Counter()
        self._last_id = 0
        self._came = anyio.Event()
        # What is not in the ledger yet; None: it is to go.
        self._unsaved: dict[int, Reservation | None] = {}
        self._backlog = parts.writer.backlog("reservations", self._write)

    async def load(self) -> None:
        """Take up what the ledger has; raises `LedgerError`."""
        now = self._clock()
        for one in await self._ledger.reservations():
            # A clock that was set back makes nothing last longer.
            self._kept.setdefault(one.session, {})[one.id] = msgspec.structs.replace(one, at=min(one.at, now))
            self._last_id = max(self._last_id, one.id)
        self._forget_old()
        for session in self._kept:
            await self._watch(session)
            self._settle(session)

    async def admit(self, state: RunAccount, session: str, agent: str, estimate: int, call: str | None) -> Admitted:
        """Decide whether a session may launch a sub-agent, and reserve its estimate if so.

        `call` names the launch: asked about again, it is not reserved again.
        """
        await self._watch(session)
        self._settle(session)
        if call is not None and any(one.call == call for one in self._of(session)):
            return Admitted(policy.Admission("allow", "it was admitted before", reserve=False), None)
        admission = policy.admission(state.run, self._accounts.balance(state), estimate, plain_name(agent))
        made = self._reserve(state, session, agent, estimate, call=call) if admission.reserve else None
        if made is None:
            self._unwatch_if_free(session)
        else:
            await self._have_saved()
        return Admitted(admission, None if made is None else made.id)

    async def start(
        self, state: RunAccount | None, session: str, agent: str, agent_id: str | None, estimate: int
    ) -> None:
        """Note that a sub-agent has started: it is one that was admitted, or is reserved for now."""
        await self._watch(session)
        self._settle(session)
        if agent_id is not None and any(one.agent_id == agent_id for one in self._of(session)):
            return
        found = self._waiting(session, agent, measured=self._is_measured(session, agent_id))
        if found is not None:
            self._put(msgspec.structs.replace(found, agent_id=agent_id, agent=plain_name(agent) or found.agent))
        elif state is not None and state.run.status == "active" and not self._is_measured(session, agent_id):
            self._reserve(state, session, agent or GENERAL, estimate, agent_id=agent_id)
        self._unwatch_if_free(session)
        await self._have_saved()

    async def stop(self, session: str, agent: str, agent_id: str | None) -> None:
        """Note that a sub-agent has ended. Without its id it is the earliest of its name, or of its session."""
        ended = [one for one in self._of(session) if agent_id is not None and one.agent_id == agent_id]
        if not ended and agent_id is None:
            ended = [one for one in self._open.get(session, ()) if not agent or _is_called(one, agent)][:1]
        elif not ended and not self._is_measured(session, agent_id):
            # Nobody said that it had started: then it has no reservation of its own yet.
            mine = (one for one in self._open.get(session, ()) if one.agent_id is None)
            ended = [one for one in mine if agent and _is_called(one, agent)][:1]
        await self._end(ended)

    async def end(self, session: str) -> None:
        """Note that a session has ended, and all its sub-agents with it."""
        await self._end(self._of(session))

    def take_back(self, session: str, reservation: int) -> None:
        """Forget an admission that nobody has heard of. If the sub-agent is launched all the same, its start tells."""
        one = self._kept.get(session, {}).get(reservation)
        if one is not None and one.ended_at is None:
            self._put(msgspec.structs.replace(one, ended_at=self._clock()))

    def look(self, state: RunAccount) -> None:
        """Look again at what has been measured of a run's sub-agents."""
        for session in list(self._open):
            if session in state.sessions:
                self._settle(session)

    async def serve(self) -> None:
        """Let reservations end with their time, for ever. Whatever is reserved meanwhile ends later."""
        while True:
            while not self._kept:
                self._came = anyio.Event()
                await self._came.wait()
            await anyio.sleep(self._next_end())
            now = self._clock()
            for session, found in list(self._open.items()):
                if any(now - one.at >= LIFETIME for one in found):
                    self._settle(session)
            self._forget_old()

    def _next_end(self) -> float:
        """Return in how many seconds the next reservation ends by its time, or matters no more."""
        ends = [one.at + LIFETIME for found in self._open.values() for one in found]
        ends += [one.at + policy.KEPT for kept in self._kept.values() for one in kept.values()]
        return max((min(ends) - self._clock()) / _MICROS, 0) + _SLACK_SECONDS

    def _of(self, session: str) -> tuple[Reservation, ...]:
        return tuple(self._kept.get(session, {}).values())

    def _waiting(self, session: str, agent: str, *, measured: bool) -> Reservation | None:
        """Return the reservation of a sub-agent that has just started; None when it was never admitted.

        One that is measured already has closed its reservation: that is the one that is its own.
        """
        is_open = self._open.get(session, ())
        waiting = [
            one
            for one in self._of(session)
            if one.agent_id is None and one.ended_at is None and (one in is_open) != measured
        ]
        alike = [one for one in waiting if not agent or _is_called(one, agent)]
        general = [one for one in waiting if one.agent == GENERAL]
        if not alike and len(general) == 1:
            alike = general
        return next(iter(alike), None)

    def _is_measured(self, session: str, agent_id: str | None) -> bool:
        """Tell whether there is usage of a sub-agent, whose reservation has so come to its end already."""
        return agent_id is not None and any(one.agent_id == agent_id for one in self._live.instances(session))

    async def _watch(self, session: str) -> None:
        """Have it noted from now on which sub-agents of a session are measured."""
        self._tallies.watch_rows(session)
        # A ledger that does not answer is asked again with the next question: meanwhile nothing counts as measured.
        with anyio.move_on_after(_KEEP_SECONDS), suppress(LedgerError):
            await self._live.watch_agents(session)

    def _unwatch_if_free(self, session: str) -> None:
        if session not in self._kept:
            self._live.unwatch_agents(session)
            self._tallies.unwatch_rows(session)

    def _reserve(
        self,
        state: RunAccount,
        session: str,
        agent: str,
        tokens: int,
        *,
        agent_id: str | None = None,
        call: str | None = None,
    ) -> Reservation:
        self._last_id += 1
        made = Reservation(
            id=self._last_id,
            run=state.run.id,
            session=session,
            agent=plain_name(agent),
            tokens=tokens,
            at=self._clock(),
            agent_id=agent_id,
            call=call,
        )
        self._put(made)
        return made

    async def _end(self, which: Iterable[Reservation]) -> None:
        now = self._clock()
        ended = [msgspec.structs.replace(one, ended_at=now) for one in which if one.ended_at is None]
        if ended:
            self._put(*ended)
            await self._have_saved()

    def _put(self, *changed: Reservation) -> None:
        """Remember reservations of one session, and have them written."""
        session = changed[0].session
        for one in changed:
            self._kept.setdefault(session, {})[one.id] = one
            self._unsaved[one.id] = one
        self._settle(session)
        self._backlog.request()
        self._came.set()

    def _settle(self, session: str) -> None:
        """Find out which reservations of a session still count, and what that is for their runs."""
        kept = self._of(session)
        known = self._accounts.sessions.get(session)
        is_live = known is not None and known.live
        instances = self._live.instances(session) if is_live else self._tallies.instances(session)
        found = policy.open_ones(kept, instances, self._clock())
        before = self._open.pop(session, ())
        if found:
            self._open[session] = found
        if found == before:
            return
        for one in before:
            self._reserved[one.run] -= one.tokens
        for one in found:
            self._reserved[one.run] += one.tokens
        for run in {one.run for one in (*before, *found)}:
            self._accounts.put_reserved(run, self._reserved[run])

    def _forget_old(self) -> None:
        now = self._clock()
        for session in list(self._kept):
            kept = {one.id for one in policy.kept(self._of(session), now)}
            for number in self._kept[session].keys() - kept:
                del self._kept[session][number]
                self._unsaved[number] = None
                self._backlog.request()
            if not self._kept[session]:
                del self._kept[session]
                self._unwatch_if_free(session)

    async def _have_saved(self) -> None:
        """Wait until what has changed is on disk, but not for long."""
        if self._unsaved:
            await self._backlog.attempt(_KEEP_SECONDS)

    async def _write(self) -> None:
        """Write what is not in the ledger yet. Until then it counts all the same, only not after a restart."""
        batch = dict(self._unsaved)
        if not batch:
            return
        await self._ledger.save_reservations(
            [one for one in batch.values() if one is not None],
            [number for number, one in batch.items() if one is None],
        )
        for number, one in batch.items():
            if self._unsaved.get(number) is one:
                self._unsaved.pop(number, None)


def _is_called(one: Reservation, agent: str) -> bool:
    return plain_name(one.agent) == plain_name(agent)
