"""Admit sub-agents before they are launched, and follow each launch to its end (see `policy.reservations`).

There is no await between the decision and the reservation, so concurrent launches cannot claim the same tokens.
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import msgspec

from fluxbudgetd.decisions.reservations import Reservations
from fluxbudgetd.model import Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.admission import Admission, admission
from fluxbudgetd.policy.estimates import AgentEstimate, plain_name
from fluxbudgetd.policy.reservations import GENERAL
from fluxbudgetd.totals.account import RunAccount

# A sub-agent's signs are noted this often, in microseconds.
_SIGN_INTERVAL = 60 * 1_000_000


class Launch(NamedTuple):
    """A tool call that launches a sub-agent.

    `call` identifies it: asking again about the same call does not reserve again. `parent` is the sub-agent that makes
    the call, None for the main loop. `resumes` is the finished sub-agent that it resumes, None for a new one.
    """

    agent: str
    call: str | None = None
    parent: str | None = None
    resumes: str | None = None


class AdmissionResult(NamedTuple):
    """The decision about a launch, and the number of its reservation (None: none was made)."""

    admission: Admission
    reservation: int | None


class AgentUse(NamedTuple):
    """What a sub-agent has used since its launch, and its estimate, in tokens of its run's cost basis."""

    measured: int
    estimate: int


class Admissions:
    """Decides about launches, and matches what happens to sub-agents with their reservations."""

    def __init__(self, reservations: Reservations, clock: Callable[[], int]) -> None:
        self._reservations = reservations
        self._clock = clock

    async def admit(
        self, account: RunAccount, session: str, launch: Launch, estimate: AgentEstimate | None, *, has_person: bool
    ) -> AdmissionResult:
        """Decide whether a session may launch a sub-agent, and reserve its estimate if so.

        Without an estimate, nothing is reserved. `has_person`: a person is there to answer a question.
        """
        reservations = self._reservations
        await reservations.watch(session)
        if launch.call is not None and any(each.call == launch.call for each in reservations.of_session(session)):
            return AdmissionResult(Admission("allow"), None)
        decision = admission(
            account.run, account.balance(), estimate, plain_name(launch.agent), self._clock(), has_person=has_person
        )
        if estimate is None or not decision.reserve:
            reservations.unwatch_if_unused(session)
            return AdmissionResult(decision, None)
        reservation = reservations.add(
            account,
            session,
            launch.agent,
            estimate.tokens,
            call=launch.call,
            parent=launch.parent,
            resumes=launch.resumes,
        )
        await reservations.written()
        return AdmissionResult(decision, reservation.id)

    def is_running(self, session: str, agent_id: str) -> bool:
        """Return True if a sub-agent has started and is not known to have ended."""
        return bool(self._reservations.running(session, agent_id))

    def has_sign(self, session: str, agent_id: str) -> bool:
        """Return True if a sub-agent is known to run, by a sign of the last minute."""
        now = self._clock()
        return any(now - each.seen_at < _SIGN_INTERVAL for each in self._reservations.running(session, agent_id))

    def is_any_waiting(self, session: str, calls: Collection[str]) -> bool:
        """Return True if one of these calls has launched a sub-agent that has not started, as far as is known."""
        return any(policy.is_waiting(each) and each.call in calls for each in self._reservations.of_session(session))

    def type_of(self, session: str, agent_id: str) -> str | None:
        """Return the type of a sub-agent that has run in a session; None if it is not known."""
        return self._reservations.type_of(session, agent_id)

    def agent(self, session: str, agent_id: str) -> AgentUse | None:
        """Return a sub-agent's usage and estimate; None if it has no reservation."""
        own = [each for each in self._reservations.of_session(session) if each.agent_id == agent_id]
        return AgentUse(self._reservations.used(own[-1]), own[-1].tokens) if own else None

    async def start(
        self, account: RunAccount | None, session: str, agent: str, agent_id: str | None, estimate: int
    ) -> None:
        """Record the start of a sub-agent, or that a finished one is resumed.

        Its estimate is reserved now if the launch was not admitted before.
        """
        reservations = self._reservations
        await reservations.watch(session)
        if not reservations.running(session, agent_id):
            base = 0 if account is None else reservations.measured(account, session, agent_id)
            self._begin(account, session, agent, agent_id, estimate, base)
        reservations.unwatch_if_unused(session)
        await reservations.written()

    async def note_running(self, account: RunAccount, session: str, agent: str, agent_id: str, estimate: int) -> None:
        """Record that a sub-agent runs, even if its start was not reported, or if it was taken to have ended."""
        reservations = self._reservations
        await reservations.watch(session)
        own = [each for each in reservations.of_session(session) if each.agent_id == agent_id]
        if own:
            reservations.put(msgspec.structs.replace(own[-1], seen_at=self._clock(), ended_at=None))
        else:
            self._begin(account, session, agent, agent_id, estimate, base=0)
        reservations.unwatch_if_unused(session)
        await reservations.written()

    def _begin(
        self, account: RunAccount | None, session: str, agent: str, agent_id: str | None, estimate: int, base: int
    ) -> None:
        reservations = self._reservations
        waiting = policy.fitting(filter(policy.is_waiting, reservations.of_session(session)), agent, agent_id)
        if waiting is not None:
            name = waiting.agent if waiting.agent != GENERAL else plain_name(agent) or GENERAL
            changed = {"agent_id": agent_id, "agent": name, "seen_at": self._clock(), "base": base}
            reservations.put(msgspec.structs.replace(waiting, **changed))
        elif account is not None and account.run.status == "active":
            reservations.add(account, session, agent or GENERAL, estimate, agent_id=agent_id, base=base)

    async def finish_calls(self, session: str, calls: Collection[str]) -> None:
        """Record that tool calls have a result: a launch among them that has not started never will."""
        waiting = filter(policy.is_waiting, self._reservations.of_session(session))
        await self._release(each for each in waiting if each.call in calls)

    async def stop(self, session: str, agent: str, agent_id: str | None) -> None:
        """Record a sub-agent's end, and with it the end of its turn.

        Without an id, this ends the earliest reservation that fits the name; with an id whose start was not reported,
        the earliest that waits.
        """
        reservations = self._reservations.of_session(session)
        ended: Collection[Reservation] = self._reservations.running(session, agent_id)
        is_known = agent_id is not None and any(each.agent_id == agent_id for each in reservations)
        if agent_id is None:
            own = policy.fitting((each for each in reservations if each.ended_at is None), agent)
            ended = () if own is None else (own,)
        elif not is_known and agent:  # Claude Code has sub-agents of its own, which have an id but no type
            own = policy.fitting(filter(policy.is_waiting, reservations), agent, agent_id)
            ended = () if own is None else (msgspec.structs.replace(own, agent_id=agent_id),)
        await self._end(ended)
        if agent_id is not None:
            waiting = filter(policy.is_waiting, self._reservations.of_session(session))
            await self._release(each for each in waiting if each.parent == agent_id)

    async def end_turn(self, session: str, background: Collection[str] | None = None) -> None:
        """Record the end of a turn of a session's main loop: see `policy.reservations.ended_with_turn`."""
        await self._release(policy.ended_with_turn(self._reservations.of_session(session), background))

    async def end_session(self, session: str) -> None:
        """Record the end of a session and of all its sub-agents."""
        await self._release(self._reservations.of_session(session))

    def withdraw(self, session: str, number: int) -> None:
        """Release the reservation of an admission that did not reach the hook; a start would reserve again."""
        reservation = self._reservations.get(session, number)
        if reservation is not None and policy.is_waiting(reservation):
            self._reservations.remove(reservation)

    async def _release(self, reservations: Iterable[Reservation]) -> None:
        """Forget the launches that have not started, and end the others."""
        reservations = list(reservations)
        waiting = [each for each in reservations if policy.is_waiting(each)]
        if waiting:
            self._reservations.remove(*waiting)
        await self._end(each for each in reservations if not policy.is_waiting(each))
        if waiting:
            await self._reservations.written()

    async def _end(self, reservations: Iterable[Reservation]) -> None:
        now = self._clock()
        ended = [msgspec.structs.replace(each, ended_at=now) for each in reservations if each.ended_at is None]
        if ended:
            self._reservations.put(*ended)
            await self._reservations.written()
