"""Admit sub-agents before they are launched, and reserve their estimates until they are measured or have ended.

There is no await between the decision and the reservation, so concurrent launches cannot claim the same tokens.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from fluxbudgetd.decisions.reservations import Reservations
from fluxbudgetd.model import Reservation
from fluxbudgetd.policy import admission as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

#: The kind of a sub-agent that is launched without naming one; it may start under another name.
GENERAL = "general-purpose"


class AdmissionResult(NamedTuple):
    """The decision about a launch, and the number of its reservation (None: none was made)."""

    admission: policy.Admission
    reservation: int | None


class Admissions:
    """Decides about launches, and matches starts and ends of sub-agents with their reservations."""

    def __init__(self, accounts: Accounts, reservations: Reservations, clock: Callable[[], int]) -> None:
        self._accounts = accounts
        self._reservations = reservations
        self._clock = clock

    async def admit(
        self, account: RunAccount, session: str, agent: str, estimate: int, call: str | None, *, has_person: bool
    ) -> AdmissionResult:
        """Decide whether a session may launch a sub-agent, and reserve its estimate if so.

        `call` identifies the launch: asking again about the same launch does not reserve again. `has_person`: a person
        is there to answer a question.
        """
        reservations = self._reservations
        await reservations.watch(session)
        if call is not None and any(each.call == call for each in reservations.of_session(session)):
            return AdmissionResult(policy.Admission("allow"), None)
        admission = policy.admission(
            account.run, account.balance(), estimate, plain_name(agent), self._clock(), has_person=has_person
        )
        if not admission.reserve:
            reservations.unwatch_if_unused(session)
            return AdmissionResult(admission, None)
        reservation = reservations.add(account, session, agent, estimate, call=call)
        await reservations.written()
        return AdmissionResult(admission, reservation.id)

    async def start(
        self, account: RunAccount | None, session: str, agent: str, agent_id: str | None, estimate: int
    ) -> None:
        """Record the start of a sub-agent; reserve its estimate now if it was not admitted before."""
        reservations = self._reservations
        await reservations.watch(session)
        if agent_id is not None and any(each.agent_id == agent_id for each in reservations.of_session(session)):
            return
        is_measured = reservations.is_measured(session, agent_id)
        admitted = self._admitted(session, agent, is_measured=is_measured)
        if admitted is not None:
            name = plain_name(agent) or admitted.agent
            reservations.put(msgspec.structs.replace(admitted, agent_id=agent_id, agent=name))
        elif account is not None and account.run.status == "active" and not is_measured:
            reservations.add(account, session, agent or GENERAL, estimate, agent_id=agent_id)
        reservations.unwatch_if_unused(session)
        await reservations.written()

    async def stop(self, session: str, agent: str, agent_id: str | None) -> None:
        """Record a sub-agent's end. Without an id, end the earliest reservation of that name, or of the session."""
        of_session, counting = self._reservations.of_session(session), self._reservations.open(session)
        ended = [each for each in of_session if agent_id is not None and each.agent_id == agent_id]
        if not ended and agent_id is None:
            ended = [each for each in counting if not agent or _is_named(each, agent)][:1]
        elif not ended and not self._reservations.is_measured(session, agent_id):
            # Its start was not reported, so no reservation has its id yet.
            without_id = (each for each in counting if each.agent_id is None)
            ended = [each for each in without_id if agent and _is_named(each, agent)][:1]
        await self._end(ended)

    async def end_session(self, session: str) -> None:
        """Record the end of a session and of all its sub-agents."""
        await self._end(self._reservations.of_session(session))

    def withdraw(self, session: str, number: int) -> None:
        """End the reservation of an admission that did not reach the hook; a start would reserve again."""
        reservation = self._reservations.get(session, number)
        if reservation is not None and reservation.ended_at is None:
            self._reservations.put(msgspec.structs.replace(reservation, ended_at=self._clock()))

    def _admitted(self, session: str, agent: str, *, is_measured: bool) -> Reservation | None:
        """Return the reservation of a sub-agent that has just started; None if it was not admitted.

        A measured sub-agent's reservation is closed, so look only among closed ones if `is_measured`.
        """
        counting = self._reservations.open(session)
        waiting = [
            each
            for each in self._reservations.of_session(session)
            if each.agent_id is None and each.ended_at is None and (each in counting) != is_measured
        ]
        matching = [each for each in waiting if not agent or _is_named(each, agent)]
        general = [each for each in waiting if each.agent == GENERAL]
        if not matching and len(general) == 1:
            matching = general
        return next(iter(matching), None)

    async def _end(self, reservations: Iterable[Reservation]) -> None:
        now = self._clock()
        ended = [msgspec.structs.replace(each, ended_at=now) for each in reservations if each.ended_at is None]
        if ended:
            self._reservations.put(*ended)
            await self._reservations.written()


def _is_named(reservation: Reservation, agent: str) -> bool:
    return plain_name(reservation.agent) == plain_name(agent)
