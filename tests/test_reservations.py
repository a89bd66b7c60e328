"""The rules of reservations: an admitted sub-agent counts with its estimate until it is measured or expires."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import Instance, Reservation
from fluxbudgetd.policy.reservations import LIFETIME, kept, open_ones
from harness.values import NOW

MINUTE = 60 * 1_000_000


def a_reservation(number: int, **fields: object) -> Reservation:
    blank = Reservation(id=number, run="r1", session="s1", agent="fd-quality", tokens=40_000, at=NOW)
    return msgspec.structs.replace(blank, **fields)


def an_instance(
    agent_id: str | None = None, at: int | None = NOW + MINUTE, agent: str = "fd-quality", session: str = "s1"
) -> Instance:
    return Instance(session, agent, agent_id, at)


def still_open(reservations: Sequence[Reservation], *instances: Instance, now: int = NOW + 2 * MINUTE) -> list[int]:
    return [one.id for one in open_ones(reservations, instances, now)]


def test_reservation_counts_until_its_end_or_for_half_an_hour() -> None:
    one = a_reservation(1)
    assert open_ones([one], [], NOW) == (one,)
    assert still_open([one], now=NOW + LIFETIME - 1) == [1]
    assert still_open([one], now=NOW + LIFETIME) == []
    assert still_open([a_reservation(1, ended_at=NOW)]) == []
    assert LIFETIME == 30 * MINUTE


def test_clock_that_is_set_back_ends_no_reservation() -> None:
    assert still_open([a_reservation(1)], now=NOW - 5 * MINUTE) == [1]


def test_measured_instance_closes_one_reservation_of_its_agent_and_session() -> None:
    several = [a_reservation(1), a_reservation(2), a_reservation(3, agent="fd-safety"), a_reservation(4, session="s2")]
    assert still_open(several, an_instance("a")) == [2, 3, 4]
    assert still_open(several, an_instance("a"), an_instance("b")) == [3, 4]
    assert still_open(several, an_instance("a"), an_instance("b"), an_instance("c")) == [3, 4]
    assert still_open(several, an_instance("a", session="s2")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("reserved", "measured"),
    [("fd-quality", "interflux:fd-quality"), ("interflux:fd-quality", "fd-quality")],
)
def test_both_names_of_an_agent_mean_the_same(reserved: str, measured: str) -> None:
    assert still_open([a_reservation(1, agent=reserved)], an_instance(agent=measured)) == []


def test_earliest_reservation_is_closed_first() -> None:
    three = [a_reservation(1, at=NOW + 2), a_reservation(3, at=NOW + 1), a_reservation(2, at=NOW + 1)]
    assert still_open(three) == [2, 3, 1]
    assert still_open(three, an_instance()) == [3, 1]
    assert still_open(three, an_instance(), an_instance()) == [1]


def test_instance_measured_before_a_reservation_does_not_close_it() -> None:
    """An instance without a time may close any."""
    late = a_reservation(1, at=NOW + MINUTE)
    assert still_open([late], an_instance(at=NOW + MINUTE - 1)) == [1]
    assert still_open([late], an_instance(at=NOW + MINUTE)) == []
    assert still_open([late], an_instance(at=None)) == []


def test_instances_without_a_time_choose_last() -> None:
    """The first reservation is left for the instance that can close no other."""
    two = [a_reservation(1), a_reservation(2, at=NOW + 2 * MINUTE)]
    assert still_open(two, an_instance(at=None), an_instance(at=NOW + MINUTE)) == []


def test_instances_choose_in_the_order_of_their_times() -> None:
    """The early reservation is left for the earlier instance, which can close no other."""
    two = [a_reservation(1), a_reservation(2, at=NOW + 2 * MINUTE)]
    assert still_open(two, an_instance(at=NOW + 3 * MINUTE), an_instance(at=NOW + MINUTE)) == []


def test_same_id_closes_regardless_of_name_and_time() -> None:
    two = [a_reservation(1), a_reservation(2, agent_id="a")]
    assert still_open(two, an_instance("a", at=NOW - MINUTE, agent="general-purpose")) == [1]
    assert still_open(two, an_instance("a", session="s2")) == [1, 2]


def test_instances_with_an_id_choose_before_the_others() -> None:
    """A reservation with an id is left for the instance with that id, even if that one is later."""
    two = [a_reservation(1, agent_id="a"), a_reservation(2)]
    assert still_open(two, an_instance(at=NOW + 1), an_instance("a", at=NOW + 9)) == []


def test_known_id_does_not_close_by_name() -> None:
    """A second transcript of the same id does not close another reservation."""
    two = [a_reservation(1, agent_id="a"), a_reservation(2)]
    assert still_open(two, an_instance("a"), an_instance("a", at=NOW + 9)) == [2]


def test_other_id_is_another_sub_agent() -> None:
    assert still_open([a_reservation(1, agent_id="a")], an_instance("b")) == [1]
    assert still_open([a_reservation(1, agent_id="a"), a_reservation(2)], an_instance("b")) == [1]


def test_instance_without_an_id_closes_reservations_with_one() -> None:
    assert still_open([a_reservation(1, agent_id="a")], an_instance(None)) == []


def test_at_the_same_time_instances_with_an_id_choose_first() -> None:
    """The one with an id can only close the reservation without one; the other closes the rest."""
    two = [a_reservation(1), a_reservation(2, agent_id="a")]
    assert still_open(two, an_instance(None), an_instance("b")) == []


@pytest.mark.parametrize("gone", [{"ended_at": NOW + 1}, {"at": NOW - LIFETIME}])
def test_ended_reservation_still_takes_its_own_instance(gone: dict[str, object]) -> None:
    """Otherwise the usage of an ended sub-agent would close the reservation of one that is running."""
    two = [a_reservation(1, **gone), a_reservation(2)]
    assert still_open(two, an_instance()) == [2]
    assert still_open(two, an_instance(), an_instance()) == []


def test_reservation_is_kept_for_twice_its_lifetime() -> None:
    three = [a_reservation(1), a_reservation(2, at=NOW - 1, ended_at=NOW), a_reservation(3, at=NOW + 1)]
    assert kept(three, NOW + 2 * LIFETIME - 2) == tuple(three)
    assert kept(three, NOW + 2 * LIFETIME - 1) == (three[0], three[2])
    assert kept(three, NOW + 2 * LIFETIME) == (three[2],)


# Few values, so that they coincide.
sessions = st.sampled_from(["s1", "s2"])
names = st.sampled_from(["fd-quality", "interflux:fd-quality", "fd-safety", ""])
ids = st.sampled_from([None, None, "a", "b", "c"])
times = st.integers(NOW - 3, NOW + 3) | st.sampled_from([NOW - LIFETIME, NOW + LIFETIME, 0])
instance_lists = st.lists(st.builds(Instance, sessions, names, ids, st.none() | times), max_size=8)
reservation_lists = st.lists(
    st.builds(
        a_reservation,
        st.integers(0, 20),
        session=sessions,
        agent=names,
        at=times,
        agent_id=ids,
        ended_at=st.none() | st.just(NOW),
    ),
    max_size=8,
    unique_by=lambda one: one.id,
)


@given(reservation_lists, instance_lists, times, st.data())
def test_order_of_the_input_does_not_matter(
    reservations: list[Reservation], instances: list[Instance], now: int, data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(reservations)), data.draw(st.permutations(instances))
    assert open_ones(reservations, instances, now) == open_ones(*mixed, now)


@given(reservation_lists, instance_lists, instance_lists, times)
def test_more_instances_never_reopen_a_reservation(
    reservations: list[Reservation], instances: list[Instance], more: list[Instance], now: int
) -> None:
    assert set(still_open(reservations, *instances, *more, now=now)) <= set(
        still_open(reservations, *instances, now=now)
    )


@given(reservation_lists, instance_lists, times)
def test_each_instance_closes_at_most_one_reservation(
    reservations: list[Reservation], instances: list[Instance], now: int
) -> None:
    before, after = still_open(reservations, now=now), still_open(reservations, *instances, now=now)
    assert set(after) <= set(before)
    assert len(before) - len(after) <= len(instances)


@given(reservation_lists, instance_lists, times, times)
def test_time_reopens_no_reservation(
    reservations: list[Reservation], instances: list[Instance], one: int, another: int
) -> None:
    now, later = sorted((one, another))
    assert set(still_open(reservations, *instances, now=later)) <= set(still_open(reservations, *instances, now=now))


@given(reservation_lists.filter(bool), instance_lists, times)
def test_end_closes_no_other_reservation(reservations: list[Reservation], instances: list[Instance], now: int) -> None:
    """It may reopen one whose instance is now matched to the ended one, unless all instances have an id."""
    first, *others = reservations
    ended = [msgspec.structs.replace(first, ended_at=NOW), *others]

    def others_open(kept: list[Reservation], found: list[Instance]) -> list[int]:
        return [number for number in still_open(kept, *found, now=now) if number != first.id]

    assert set(others_open(reservations, instances)) <= set(others_open(ended, instances))
    named = [one for one in instances if one.agent_id is not None]
    assert others_open(reservations, named) == others_open(ended, named)


@given(reservation_lists, instance_lists, times)
def test_sessions_are_independent(reservations: list[Reservation], instances: list[Instance], now: int) -> None:
    apart = [
        number
        for session in ("s1", "s2")
        for number in still_open(
            [one for one in reservations if one.session == session],
            *(one for one in instances if one.session == session),
            now=now,
        )
    ]
    assert sorted(still_open(reservations, *instances, now=now)) == sorted(apart)
