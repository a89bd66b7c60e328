"""Reservations: an admitted sub-agent holds its estimate, less what it has used, until it has ended.

A launch has one reservation, under two names. The *call* that launches it (`tool_use_id`) is known from the admission
on, its `agent_id` from its start on. Four kinds of events change the reservation:

1. An admission makes it: the reservation *waits*, without an `agent_id`.
2. A sign of life, which is the start of a sub-agent or an event inside it, gives the `agent_id` to the waiting
   reservation that fits its name (`fitting`). If none waits, it makes a reservation. So a sub-agent that runs has
   exactly one, even if an event was missed or a reservation was released too early.
3. The result of the call releases it if it still waits: the launch was refused or failed. The end of a turn does the
   same for all launches of that turn.
4. An end releases it: of the sub-agent, of the session, or of a turn after which the sub-agent no longer runs.

Half an hour after the last sign of life it holds nothing, because an end may never be reported.

When a sub-agent starts, no event says which call has launched it. `fitting` guesses by the agents' names, and Claude
Code names many sub-agents differently at their start. The companion of its transcript, which is written soon after,
has the call: then `corrected` gives each sub-agent the reservation of its own call.

A session without transcripts has only interstat's rows. A row has no id and is written at the end of a sub-agent. It
ends the earliest reservation of its agent's name that was made no later than the row's time and has no row yet.
Reservations that have ended take rows first; otherwise their rows would end other reservations.
"""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from fluxbudgetd.model import Instance, Reservation
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.wire.messages import CostBasis

#: A reservation holds nothing this long after the last sign of its sub-agent, in microseconds.
LIFETIME = 30 * 60 * 1_000_000

#: A reservation is forgotten this long after the last sign of its sub-agent. Until then it may take a late row.
KEPT = 2 * LIFETIME

#: The kind of a sub-agent that is launched without naming one. Some versions name every sub-agent so when it starts.
GENERAL = "general-purpose"


def is_waiting(reservation: Reservation) -> bool:
    """Return True if the launch was admitted and its sub-agent has not started yet, as far as is known."""
    return reservation.agent_id is None and reservation.ended_at is None


def last_sign(reservation: Reservation, instance: Instance | None, now: int) -> int:
    """Return the time of the last sign of a launch: an event, or usage in the sub-agent's transcript."""
    used = None if instance is None else instance.last
    # A time in the future is wrong, and would keep the reservation forever.
    return reservation.seen_at if used is None or used > now else max(reservation.seen_at, used)


def held(reservation: Reservation, instance: Instance | None, basis: CostBasis, now: int) -> int:
    """Return the tokens that a reservation holds: its estimate, less what its sub-agent has used since its start."""
    if reservation.ended_at is not None or now - last_sign(reservation, instance, now) >= LIFETIME:
        return 0
    return max(0, reservation.tokens - used(reservation, instance, basis))


def used(reservation: Reservation, instance: Instance | None, basis: CostBasis) -> int:
    """Return the tokens that a sub-agent has used since its start, or since it was resumed."""
    return 0 if instance is None else max(0, instance.counts.tokens(basis) - reservation.base)


def fitting(reservations: Iterable[Reservation], agent: str, agent_id: str | None = None) -> Reservation | None:
    """Return the reservation that fits a sub-agent; None if none does.

    One that was made to resume it fits best, and fits no other. Otherwise the name decides, whatever the plugin's
    prefix and the case. If the sub-agent or the reservation has the general name, or none, any name fits. The earliest
    is chosen.
    """
    ordered = sorted(reservations, key=_age)
    new = [each for each in ordered if each.resumes is None]
    name = _comparable(agent)
    same = [each for each in ordered if each.resumes == agent_id is not None]
    same = same or [each for each in new if _comparable(each.agent) == name]
    if not same and name in ("", GENERAL):
        same = new
    return next(iter(same or [each for each in new if each.agent == GENERAL]), None)


def corrected(reservations: Iterable[Reservation], instances: Iterable[Instance]) -> tuple[Reservation, ...]:
    """Return the reservations that change because transcripts say which call has launched which sub-agent.

    Two reservations that `fitting` has confused swap their sub-agents. A sub-agent whose start was not reported takes
    the reservation of its call or, if its transcript does not say the call, the earliest of its name.
    """
    before = {each.id: each for each in sorted(reservations, key=_age)}
    now = dict(before)
    seen = _with_own_calls(sorted(instances, key=_first_usage))
    # Each change puts at least one more sub-agent in its place for good.
    while changed := _first_change(now.values(), seen):
        now.update((each.id, each) for each in changed)
    return tuple(each for each in now.values() if each is not before[each.id])


def _first_change(reservations: Collection[Reservation], instances: Iterable[Instance]) -> tuple[Reservation, ...]:
    # A sub-agent that was resumed has several. Its transcript names the call of the first.
    of_agents: dict[str | None, Reservation] = {}
    of_calls: dict[str | None, Reservation] = {}
    for each in reservations:
        of_agents.setdefault(each.agent_id, each)
        of_calls.setdefault(each.call, each)
    of_agents.pop(None, None)
    of_calls.pop(None, None)
    return next(filter(None, (_change(each, of_agents, of_calls, reservations) for each in instances)), ())


def _change(
    instance: Instance,
    of_agents: Mapping[str | None, Reservation],
    of_calls: Mapping[str | None, Reservation],
    reservations: Iterable[Reservation],
) -> tuple[Reservation, ...]:
    """Return the reservations that change because of one sub-agent, as they are then."""
    own, called = of_agents.get(instance.agent_id), of_calls.get(instance.call)
    if own is None:
        own = called if called is not None and called.agent_id is None else _unreported(reservations, instance)
        if own is None:
            return ()
        return (msgspec.structs.replace(own, agent_id=instance.agent_id, call=own.call or instance.call),)
    if called is None:
        is_news = own.call is None and instance.call is not None
        return (msgspec.structs.replace(own, call=instance.call),) if is_news else ()
    if called.agent_id == instance.agent_id:
        return ()
    return _with_life_of(own, called), _with_life_of(called, own)


def _with_own_calls(instances: Iterable[Instance]) -> list[Instance]:
    """Return the instances, without the calls that an earlier one has: a call launches one sub-agent."""
    calls: set[str] = set()
    found = []
    for instance in instances:
        found.append(instance._replace(call=None) if instance.call in calls else instance)
        if instance.call is not None:
            calls.add(instance.call)
    return found


def ended_by_rows(reservations: Iterable[Reservation], rows: Iterable[Instance]) -> frozenset[int]:
    """Return the numbers of the reservations that interstat's rows end. The order of the arguments does not matter."""
    ordered = sorted(reservations, key=_age)
    ended: dict[int, None] = {}
    for row in sorted(rows, key=_first_usage):
        alike = [
            each
            for each in ordered
            if each.id not in ended
            and plain_name(each.agent) == plain_name(row.agent)
            and (row.at is None or each.at <= row.at)
        ]
        alike.sort(key=lambda each: each.ended_at is None)
        ended.update((each.id, None) for each in alike[:1])
    return frozenset(ended)


def ended_with_turn(
    reservations: Collection[Reservation], background: Collection[str] | None
) -> tuple[Reservation, ...]:
    """Return the reservations that the end of a session's turn releases.

    `background` has the ids of the tasks that go on; None: it is not known which do. Launches of the turn that have not
    started are released. A sub-agent that was launched by a call goes on if it is such a task, or if the sub-agent that
    launched it goes on. The sub-agents of a workflow are launched without a call, and go on while any task does.
    """
    running = [each for each in reservations if each.agent_id is not None and each.ended_at is None]
    alive = {each.agent_id for each in running}
    if background is not None:
        has_tasks = len(background) > 0
        alive = {each.agent_id for each in running if each.agent_id in background or (has_tasks and each.call is None)}
        while more := {each.agent_id for each in running if each.parent in alive} - alive:
            alive |= more
    ended = [each for each in running if each.agent_id not in alive]
    return (*ended, *(each for each in reservations if is_waiting(each) and each.parent not in alive))


def _unreported(reservations: Iterable[Reservation], instance: Instance) -> Reservation | None:
    """Return the earliest reservation that a sub-agent with usage may have been launched by; None if there is none."""
    if instance.at is None:
        return None
    alike = (
        each
        for each in reservations
        if each.agent_id is None
        and each.resumes is None
        and None in (each.call, instance.call)
        and each.at <= instance.at
        and _comparable(each.agent) == _comparable(instance.agent)
    )
    return next(alike, None)


def _with_life_of(reservation: Reservation, other: Reservation) -> Reservation:
    """Return a reservation with the sub-agent of another one, or waiting if the other one waits."""
    return msgspec.structs.replace(
        reservation, agent_id=other.agent_id, ended_at=other.ended_at, seen_at=other.seen_at, base=other.base
    )


def _comparable(agent: str) -> str:
    """Return an agent's name without a plugin's prefix, in lower case."""
    return agent.rpartition(":")[2].casefold()


def _age(reservation: Reservation) -> tuple[int, int]:
    return reservation.at, reservation.id


def _first_usage(instance: Instance) -> tuple[bool, int, str]:
    return instance.at is None, instance.at or 0, instance.agent_id or ""
