"""The rules of reservations: which launch a sub-agent belongs to, what it holds, and until when."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import Counts, Instance, Reservation
from fluxbudgetd.policy.reservations import (
    LIFETIME,
    corrected,
    ended_by_rows,
    ended_with_turn,
    fitting,
    held,
    is_waiting,
    last_sign,
)
from harness.values import NOW

MINUTE = 60 * 1_000_000


def a_reservation(number: int = 1, **fields: object) -> Reservation:
    blank = Reservation(id=number, run="r1", session="s1", agent="fd-quality", tokens=40_000, at=NOW, seen_at=NOW)
    return msgspec.structs.replace(blank, **fields)


def an_instance(agent_id: str = "a", agent: str = "fd-quality", **fields: Any) -> Instance:
    """Return a sub-agent with a transcript."""
    return Instance("s1", agent, agent_id, NOW + MINUTE)._replace(**fields)


def a_row(at: int | None = NOW + MINUTE, agent: str = "fd-quality") -> Instance:
    return Instance("s1", agent, None, at)


# --- what is held


@pytest.mark.parametrize(
    ("used", "base", "tokens"),
    [
        (0, 0, 40_000),
        (1, 0, 39_999),
        (40_000, 0, 0),
        (50_000, 0, 0),
        (50_000, 50_000, 40_000),
        (51_000, 50_000, 39_000),
    ],
)
def test_estimate_is_held_less_what_was_used_since(used: int, base: int, tokens: int) -> None:
    instance = an_instance(counts=Counts(input=used, cache_read=7))
    assert held(a_reservation(agent_id="a", base=base), instance, "billing", NOW) == tokens
    assert held(a_reservation(agent_id="a", base=base), instance, "total", NOW) == max(
        0, 40_000 - max(0, used + 7 - base)
    )


def test_reservation_holds_until_its_end_or_for_half_an_hour() -> None:
    one = a_reservation()
    assert held(one, None, "billing", NOW + LIFETIME - 1) == 40_000
    assert held(one, None, "billing", NOW + LIFETIME) == 0
    assert held(a_reservation(ended_at=NOW), None, "billing", NOW) == 0
    assert LIFETIME == 30 * MINUTE


def test_signs_postpone_the_expiry() -> None:
    """A time in the future is no sign; otherwise a wrong one would keep the reservation for ever."""
    now = NOW + LIFETIME
    for instance, sign in (
        (None, NOW),
        (an_instance(last=NOW + 5), NOW + 5),
        (an_instance(last=now), now),
        (an_instance(last=now + 1), NOW),
        (an_instance(last=NOW - 5), NOW),
    ):
        assert last_sign(a_reservation(agent_id="a"), instance, now) == sign
        assert (held(a_reservation(agent_id="a"), instance, "billing", now) > 0) == (sign > NOW)


def test_clock_that_is_set_back_ends_no_reservation() -> None:
    assert held(a_reservation(), None, "billing", NOW - 5 * MINUTE) == 40_000


# --- names


@pytest.mark.parametrize(
    ("launched", "agent", "fits"),
    [
        ("fd-quality", "fd-quality", True), ("interflux:fd-quality", "FD-Quality", True), ("a:b:c", "c", True),
        ("fd-quality", "fd-safety", False), ("fd-quality", "general-purpose", True), ("fd-quality", "", True),
        ("general-purpose", "fork", True), ("fork", "fd-quality", False),
    ],
)  # fmt: skip
def test_names_that_fit(launched: str, agent: str, fits: bool) -> None:
    assert (fitting([a_reservation(agent=launched)], agent) is not None) == fits


def test_same_name_fits_best_and_the_earliest_first() -> None:
    several = [
        a_reservation(1, agent="general-purpose", at=NOW - 2),
        a_reservation(2, at=NOW + 1),
        a_reservation(4, agent="oracle", at=NOW - 1),
        a_reservation(3),
    ]

    def number(agent: str, reservations: list[Reservation] = several) -> int | None:
        found = fitting(reservations, agent)
        return None if found is None else found.id

    names = ("fd-quality", "oracle", "fork", "general-purpose", "")
    assert [number(agent) for agent in names] == [3, 4, 1, 1, 1]
    assert number("general-purpose", several[1:]) == 4
    assert number("fork", several[1:]) is None


def test_launch_that_resumes_a_sub_agent_fits_only_that() -> None:
    several = [a_reservation(1, resumes="b"), a_reservation(2, at=NOW + 1), a_reservation(3, resumes="a", agent="x")]

    def number(agent: str, agent_id: str | None) -> int | None:
        found = fitting(several, agent, agent_id)
        return None if found is None else found.id

    assert [number("fd-quality", agent_id) for agent_id in ("a", "b", "c", None)] == [3, 1, 2, 2]
    assert [number("", agent_id) for agent_id in ("a", "c")] == [3, 2]
    assert agents(several, an_instance("a")) == [None, "a", None]


# --- what transcripts correct


def agents(reservations: Sequence[Reservation], *instances: Instance) -> list[str | None]:
    """Return the sub-agents of the reservations after the correction, in the order of their numbers."""
    changed = {each.id: each for each in corrected(reservations, instances)}
    assert not corrected([changed.get(each.id, each) for each in reservations], instances), "one correction is enough"
    return [changed.get(each.id, each).agent_id for each in sorted(reservations, key=lambda each: each.id)]


def test_unreported_start_takes_the_reservation_of_its_call() -> None:
    """If the transcript does not say the call, it takes the earliest of its name that was made before its usage."""
    two = [a_reservation(1, call="t1"), a_reservation(2, call="t2", at=NOW + 1)]
    assert agents(two, an_instance("a", "Other", call="t2", at=None)) == [None, "a"]
    assert agents(two, an_instance("a", call="t3")) == [None, None]
    assert agents(two, an_instance("a", "plugin:FD-quality")) == ["a", None]
    assert agents(two, an_instance("a"), an_instance("b")) == ["a", "b"]
    assert agents(two, an_instance("a", "fd-safety")) == [None, None]
    assert agents(two, an_instance("a", at=NOW)) == ["a", None]
    assert agents(two, an_instance("a", at=NOW - 1)) == [None, None]
    assert agents(two, an_instance("a", at=None)) == [None, None]
    assert agents([a_reservation(1)], an_instance("a", call="t1")) == ["a"]


def test_confused_launches_swap_their_sub_agents() -> None:
    two = [
        a_reservation(1, call="t1", agent_id="b", ended_at=NOW + 9, seen_at=NOW + 8, base=7),
        a_reservation(2, call="t2", agent="oracle"),
    ]
    changed = corrected(two, [an_instance("b", call="t2")])
    assert [each.agent_id for each in changed] == [None, "b"]
    assert [(each.ended_at, each.seen_at, each.base) for each in changed] == [(None, NOW, 0), (NOW + 9, NOW + 8, 7)]
    assert [(each.call, each.agent, each.tokens) for each in changed] == [
        (each.call, each.agent, each.tokens) for each in two
    ]
    three = [a_reservation(number, call=f"t{number}", agent_id=name) for number, name in enumerate("bca", 1)]
    assert agents(three, *(an_instance(name, call=f"t{number}") for number, name in enumerate("abc", 1))) == [
        "a",
        "b",
        "c",
    ]


def test_reservation_without_a_call_learns_it() -> None:
    """It was made at the start of a sub-agent."""
    (changed,) = corrected([a_reservation(agent_id="a")], [an_instance("a", call="t1")])
    assert changed.call == "t1"


def test_call_belongs_to_one_sub_agent() -> None:
    """If two transcripts name it, only the earlier one counts."""
    two = [a_reservation(1, call="t1", agent_id="a"), a_reservation(2, call="t2", agent_id="b")]
    assert agents(two, an_instance("b", call="t1", at=NOW + 9), an_instance("a", call="t1", at=NOW + 8)) == ["a", "b"]


def test_sub_agent_that_was_launched_again_keeps_its_later_reservation() -> None:
    """Its transcript names only the first call."""
    two = [a_reservation(1, call="t1", agent_id="a", ended_at=NOW), a_reservation(2, call="t2", agent_id="a")]
    assert agents(two, an_instance("a", call="t1")) == ["a", "a"]


# --- rows


def test_row_ends_one_reservation_of_its_agent() -> None:
    several = [a_reservation(1), a_reservation(2), a_reservation(3, agent="fd-safety")]
    assert ended_by_rows(several, [a_row()]) == {1}
    assert ended_by_rows(several, [a_row(), a_row(), a_row()]) == {1, 2}
    assert ended_by_rows(several, [a_row(NOW - 1)]) == set()
    assert ended_by_rows(several, [a_row(agent="oracle"), a_row(agent="interflux:fd-safety")]) == {3}


def test_rows_end_reservations_in_the_order_of_their_times() -> None:
    """The early reservation is left for the row that can end no other. Rows without a time choose last."""
    two = [a_reservation(1), a_reservation(2, at=NOW + 2 * MINUTE)]
    assert ended_by_rows(two, [a_row(NOW + 3 * MINUTE), a_row(NOW + MINUTE)]) == {1, 2}
    assert ended_by_rows(two, [a_row(None), a_row(NOW + MINUTE)]) == {1, 2}


def test_row_belongs_to_a_reservation_that_has_ended_first() -> None:
    two = [a_reservation(1, agent_id="a"), a_reservation(2, agent_id="b", ended_at=NOW + 1)]
    assert ended_by_rows(two, [a_row()]) == {2}
    assert ended_by_rows(two, [a_row(), a_row()]) == {1, 2}


# --- the end of a turn


def test_end_of_a_turn() -> None:
    of_turn = [
        a_reservation(1),
        a_reservation(2, parent="bg"),
        a_reservation(3, parent="fg"),
        a_reservation(4, call="t4", agent_id="bg"),
        a_reservation(5, call="t5", agent_id="fg"),
        a_reservation(6, call="t6", agent_id="child", parent="bg"),
        a_reservation(7, call="t7", agent_id="grandchild", parent="child"),
        a_reservation(8, agent_id="of-workflow"),
        a_reservation(9, call="t9", agent_id="done", ended_at=NOW),
    ]

    def ended(background: list[str] | None) -> set[int]:
        return {each.id for each in ended_with_turn(of_turn, background)}

    assert ended(None) == {1}
    assert ended(["bg"]) == {1, 3, 5}
    assert ended(["other"]) == {1, 2, 3, 4, 5, 6, 7}
    assert ended([]) == {1, 2, 3, 4, 5, 6, 7, 8}


# --- any reservations, any instances

# Few values, so that they coincide.
names = st.sampled_from(["fd-quality", "interflux:fd-quality", "Oracle", "oracle", "general-purpose", ""])
ids = st.sampled_from(["a", "b", "c", "d"])
calls = st.sampled_from(["t1", "t2", "t3", None])
times = st.integers(NOW - 3, NOW + 3) | st.sampled_from([NOW - LIFETIME, NOW + LIFETIME, 0])
instance_lists = st.lists(
    st.builds(Instance, st.just("s1"), names, ids, st.none() | times, st.none() | times, calls),
    max_size=5,
    unique_by=lambda one: one.agent_id,
)
reservation_lists = st.lists(
    st.builds(
        a_reservation,
        st.integers(0, 20),
        agent=names,
        at=times,
        agent_id=st.none() | ids,
        call=calls,
        parent=st.none() | ids,
        ended_at=st.none() | st.just(NOW),
    ),
    max_size=6,
    unique_by=(lambda one: one.id, lambda one: one.call or one.id),
)


def sorted_ids(reservations: Sequence[Reservation]) -> list[str]:
    return sorted(each.agent_id for each in reservations if each.agent_id is not None)


@given(reservation_lists, instance_lists, st.data())
def test_correction_is_stable_and_does_not_depend_on_the_order(
    reservations: list[Reservation], instances: list[Instance], data: st.DataObject
) -> None:
    def after(some: list[Reservation], others: list[Instance]) -> dict[int, Reservation]:
        return {each.id: each for each in (*some, *corrected(some, others))}

    once = after(reservations, instances)
    assert once == after(data.draw(st.permutations(reservations)), data.draw(st.permutations(instances)))
    assert once == after(list(once.values()), instances)


@given(reservation_lists, instance_lists)
def test_correction_loses_no_sub_agent_and_no_launch(
    reservations: list[Reservation], instances: list[Instance]
) -> None:
    """Corrections move sub-agents and add new ones, but do not change what was launched."""
    after = {each.id: each for each in (*reservations, *corrected(reservations, instances))}
    before = {each.id: each for each in reservations}
    assert after.keys() == before.keys()
    ids_after = sorted_ids(list(after.values()))
    for name in sorted_ids(reservations):
        ids_after.remove(name)
    assert set(ids_after) <= {each.agent_id for each in instances}
    assert len(ids_after) == len(set(ids_after))
    for number, each in after.items():
        one = before[number]
        assert (each.agent, each.tokens, each.at, each.parent) == (one.agent, one.tokens, one.at, one.parent)
        assert each.call == one.call or one.call is None


@given(reservation_lists, st.lists(st.builds(a_row, st.none() | times, names), max_size=6), st.data())
def test_rows_end_at_most_one_reservation_each_in_any_order(
    reservations: list[Reservation], rows: list[Instance], data: st.DataObject
) -> None:
    ended = ended_by_rows(reservations, rows)
    assert len(ended) <= len(rows)
    assert ended == ended_by_rows(data.draw(st.permutations(reservations)), data.draw(st.permutations(rows)))
    assert ended <= ended_by_rows(reservations, [*rows, *rows])


@given(reservation_lists, st.none() | st.lists(ids))
def test_end_of_a_turn_leaves_no_launch_of_the_main_loop_waiting(
    reservations: list[Reservation], background: list[str] | None
) -> None:
    ended = ended_with_turn(reservations, background)
    assert len({each.id for each in ended}) == len(ended)
    assert all(each.ended_at is None for each in ended)
    left = [each for each in reservations if each not in ended]
    running = {each.agent_id for each in left if each.ended_at is None}
    assert all(each.parent in running for each in left if is_waiting(each))
    if background is not None:
        assert set(background) & {each.agent_id for each in reservations if each.ended_at is None} <= running
