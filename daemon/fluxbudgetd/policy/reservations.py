"""Reservations: an admitted sub-agent counts with its estimate until its usage is measured.

It also stops counting when it ends, or after half an hour. No record says which measured sub-agent was admitted by
which reservation, and several of one kind may run at once in a session. So the measured instances are assigned in the
order of their first usage, those without a time last, each to one reservation of its session.

1. An instance whose id a reservation has goes to that reservation, regardless of the names.
2. Any other goes to the earliest reservation of its plain name that has no other id and no instance yet, and was made
   no later than its first usage. An instance without an id is a row. Rows are written at the end of a sub-agent, so
   reservations that have ended are preferred.

Reservations that have ended or expired take an instance, too; otherwise their usage would close another reservation.
"""

from collections.abc import Iterable, Sequence

from fluxbudgetd.model import Instance, Reservation
from fluxbudgetd.policy.estimates import plain_name

#: A reservation of this age no longer counts, in microseconds: the end of its sub-agent may never be reported.
LIFETIME = 30 * 60 * 1_000_000

#: No instance can still appear for a reservation that is older than this.
KEPT = 2 * LIFETIME


def open_ones(reservations: Sequence[Reservation], instances: Sequence[Instance], now: int) -> tuple[Reservation, ...]:
    """Return the reservations that still count, earliest first. The order of the arguments does not matter."""
    ordered = sorted(reservations, key=lambda reservation: (reservation.at, reservation.id))
    measured = _measured(ordered, instances)
    return tuple(
        reservation
        for place, reservation in enumerate(ordered)
        if reservation.ended_at is None and now - reservation.at < LIFETIME and place not in measured
    )


def kept(reservations: Iterable[Reservation], now: int) -> tuple[Reservation, ...]:
    """Return the reservations to keep: those younger than `KEPT`.

    One that no longer counts still takes its instance, which may be measured late.
    """
    return tuple(reservation for reservation in reservations if now - reservation.at < KEPT)


def _measured(ordered: Sequence[Reservation], instances: Iterable[Instance]) -> set[int]:
    """Return the positions of the reservations that have been assigned an instance."""
    by_id: dict[tuple[str, str | None], list[int]] = {}
    by_name: dict[tuple[str, str], list[int]] = {}
    for place, reservation in enumerate(ordered):
        if reservation.agent_id is not None:
            by_id.setdefault((reservation.session, reservation.agent_id), []).append(place)
        by_name.setdefault((reservation.session, plain_name(reservation.agent)), []).append(place)
    taken: set[int] = set()
    unnamed = []
    for instance in sorted(instances, key=_assignment_order):
        own = by_id.get((instance.session, instance.agent_id))
        if own is None:
            unnamed.append(instance)
        else:
            taken.update([place for place in own if place not in taken][:1])
    for instance in unnamed:
        alike = by_name.get((instance.session, plain_name(instance.agent)), [])
        if instance.agent_id is None:
            alike = sorted(alike, key=lambda place: ordered[place].ended_at is None)
        taken.update([place for place in alike if place not in taken and _may_be(ordered[place], instance)][:1])
    return taken


def _assignment_order(instance: Instance) -> tuple[bool, int, bool]:
    # At the same time, those with an id come first: fewer reservations fit them.
    return instance.at is None, instance.at or 0, instance.agent_id is None


def _may_be(reservation: Reservation, instance: Instance) -> bool:
    """Return True if a reservation may have been made for an instance whose id no reservation has."""
    other = reservation.agent_id is not None and instance.agent_id is not None
    return not other and (instance.at is None or reservation.at <= instance.at)
