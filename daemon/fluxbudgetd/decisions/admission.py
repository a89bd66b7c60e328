"""Admit sub-agents before they are launched, and reserve their estimates until they are measured or have ended.

There is no await between the decision and the reservation, so concurrent launches cannot all fit into one gap.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from fluxbudgetd.decisions.reservations import Reservations
from fluxbudgetd.model import Reservation
from fluxbudgetd.policy import reservations as policy
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

#: The kind of a sub-agent that is launched without naming one; it may start under another name.
GENERAL = "general-purpose"


class Admitted(NamedTuple):
    """The decision about a launch, and the number of the reservation made for it (None: no reservation)."""

    admission: policy.Admission
    reservation: int | None


class Admissions:
    """Decides about launches, and matches starts and ends of sub-agents with their reservations."""

    def __init__(self, accounts: Accounts, reservations: Reservations, clock: Callable[[], int]) -> None:
        self._accounts = accounts
        self._reservations = reservations
        self._clock = clock

    async def admit(self, account: RunAccount, session: str, agent: str, estimate: int, call: str | None) -> Admitted:
        """Decide whether a session may launch a sub-agent, and reserve its estimate if so.

        `call` names the launch; a launch that is asked about again is not reserved again.
        """
        reservations = self._reservations
        await reservations.watch(session)
        if call is not None and any(one.call == call for one in reservations.of(session)):
            return Admitted(policy.Admission("allow", "it was admitted before", reserve=False), None)
        admission = policy.admission(account.run, account.balance(), estimate, plain_name(agent))
        if not admission.reserve:
            reservations.unwatch_if_unused(session)
            return Admitted(admission, None)
        made = reservations.add(account, session, agent, estimate, call=call)
        await reservations.written()
        return Admitted(admission, made.id)

    async def start(
        self, account: RunAccount | None, session: str, agent: str, agent_id: str | None, estimate: int
    ) -> None:
        """Note that a sub-agent has started: one that was admitted, or else it gets a reservation now."""
        reservations = self._reservations
        await reservations.watch(session)
        if agent_id is not None and any(one.agent_id == agent_id for one in reservations.of(session)):
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
        """Note that a sub-agent has ended. Without its id it is the earliest of its name, or of its session."""
        of_session, counting = self._reservations.of(session), self._reservations.open(session)
        ended = [one for one in of_session if agent_id is not None and one.agent_id == agent_id]
        if not ended and agent_id is None:
            ended = [one for one in counting if not agent or _is_called(one, agent)][:1]
        elif not ended and not self._reservations.is_measured(session, agent_id):
            # Its start was not reported, so no reservation has its id yet.
            without_id = (one for one in counting if one.agent_id is None)
            ended = [one for one in without_id if agent and _is_called(one, agent)][:1]
        await self._end(ended)

    async def end_session(self, session: str) -> None:
        """Note that a session has ended, and all its sub-agents with it."""
        await self._end(self._reservations.of(session))

    def withdraw(self, session: str, number: int) -> None:
        """End the reservation of an admission that did not reach the hook. A start would reserve again."""
        one = self._reservations.get(session, number)
        if one is not None and one.ended_at is None:
            self._reservations.put(msgspec.structs.replace(one, ended_at=self._clock()))

    def _admitted(self, session: str, agent: str, *, is_measured: bool) -> Reservation | None:
        """Return the reservation of a sub-agent that has just started, None if it was never admitted.

        Usage of a sub-agent closes its reservation, so one that is measured already has a closed one.
        """
        counting = self._reservations.open(session)
        waiting = [
            one
            for one in self._reservations.of(session)
            if one.agent_id is None and one.ended_at is None and (one in counting) != is_measured
        ]
        alike = [one for one in waiting if not agent or _is_called(one, agent)]
        general = [one for one in waiting if one.agent == GENERAL]
        if not alike and len(general) == 1:
            alike = general
        return next(iter(alike), None)

    async def _end(self, which: Iterable[Reservation]) -> None:
        now = self._clock()
        ended = [msgspec.structs.replace(one, ended_at=now) for one in which if one.ended_at is None]
        if ended:
            self._reservations.put(*ended)
            await self._reservations.written()


def _is_called(one: Reservation, agent: str) -> bool:
    return plain_name(one.agent) == plain_name(agent)
