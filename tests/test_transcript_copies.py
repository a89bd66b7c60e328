"""Which responses copies make, and which copy of each counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import OWN, QUOTED, SIDECHAIN, Copy, ModelUsage
from fluxbudgetd.policy.responses import records
from harness.responses import Responses, anonymous, any_copy, requested

ADVISOR = ModelUsage("haiku", 100, 20, 3, 4, 0)


def counted(*copies: Copy) -> list[int]:
    """Return the outputs of the responses that these copies of one session make."""
    responses = Responses()
    responses.add("a", *copies)
    return [response.output for response in responses.of("a")]


@pytest.mark.parametrize(
    ("copies", "outputs"),
    [
        pytest.param([requested(1, 1, output=5), requested(1, 1, output=5)], [5], id="lines of one response"),
        pytest.param([requested(1, 1, output=5), requested(2, 1, output=6)], [5, 6], id="two messages"),
        pytest.param([requested(1, 1, output=5), requested(1, 2, output=6)], [5, 6], id="two requests"),
        pytest.param([anonymous(1, 1, output=5), anonymous(1, 2, output=7)], [7], id="no request, not final"),
        pytest.param(
            [anonymous(1, 1, is_final=True, input=1, output=5), anonymous(1, 2, is_final=True, input=1, output=5)],
            [5],
            id="no request, the same prompt",
        ),
        pytest.param(
            [anonymous(1, line, is_final=True, input=line, output=line) for line in range(1, 5)],
            [1, 2, 3, 4],
            id="one id for everything",
        ),
        pytest.param(
            [anonymous(1, 1, is_final=True, cache_read=1), anonymous(1, 2, is_final=True, cache_read=2)],
            [0, 0],
            id="other cache reads",
        ),
        pytest.param([anonymous(1, 1, output=5), requested(1, 1, output=7)], [7], id="a request id later"),
        pytest.param([requested(1, 1, output=5), anonymous(1, 1, output=7)], [7], id="a request id earlier"),
        pytest.param(
            [anonymous(1, 1, output=5), requested(1, 1, output=7), requested(1, 2, output=9)],
            [7, 9],
            id="another request after one without",
        ),
        pytest.param(
            [requested(1, 1, is_fork=True, output=5), anonymous(2, 1, is_fork=True, output=5)], [], id="a fork's lines"
        ),
    ],
)
def test_copies_make_responses(copies: list[Copy], outputs: list[int]) -> None:
    assert counted(*copies) == outputs


def test_copy_without_request_belongs_to_the_last_response_in_its_file() -> None:
    """Otherwise, to the last one of the session."""
    responses = Responses()
    responses.add("a", requested(1, 1, file=1, is_final=True, input=1), requested(1, 2, file=2, is_final=True, input=2))
    responses.add("a", anonymous(1, 1, file=1, is_final=True, input=1, output=5))
    assert [(each.file, each.output) for each in responses.of("a")] == [(1, 5), (2, 0)]
    responses.add("a", anonymous(1, 2, file=3, is_final=True, input=2, output=6))
    assert [(each.file, each.output) for each in responses.of("a")] == [(1, 5), (3, 6)]


def test_quoted_lines_do_not_come_between_the_lines_of_a_response() -> None:
    """They are mixed into the session's file, and compared with what their own agent wrote, in any file."""
    main = [anonymous(1, line, is_final=True, input=1, output=line) for line in (1, 2)]
    agents = [
        anonymous(1, 10 + number, place=SIDECHAIN, file=number, agent=f"agent-{number}", is_final=True, input=number)
        for number in (5, 6)
    ]
    quotes = [
        anonymous(1, 20 + number, place=QUOTED, agent=f"agent-{number}", is_final=True, input=number, output=number)
        for number in (5, 6, 7)
    ]
    responses = Responses()
    for copy in (main[0], *agents, *quotes, main[1]):
        responses.add("a", copy)
    assert [(each.agent, each.output) for each in responses.of("a")] == [
        ("main-session", 2),
        ("agent-5", 0),
        ("agent-6", 0),
        ("agent-7", 7),
    ]


@pytest.mark.parametrize(
    ("known", "better"),
    [
        pytest.param({"place": SIDECHAIN, "is_final": True, "output": 9}, {"place": OWN, "output": 1}, id="own"),
        pytest.param({"place": QUOTED, "output": 9}, {"place": SIDECHAIN, "output": 1}, id="sidechain, not quoted"),
        pytest.param({"input": 9000, "output": 1}, {"input": 1, "output": 1, "is_final": True}, id="final"),
        pytest.param({"input": 9, "output": 1}, {"input": 1, "output": 2}, id="more output"),
        pytest.param({"input": 1, "output": 1}, {"input": 2, "output": 1}, id="more tokens"),
        pytest.param({"output": 1}, {"output": 1, "below": (ADVISOR,)}, id="more below the top level"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_best_copy_counts(known: dict[str, Any], better: dict[str, Any], swapped: bool) -> None:
    """It counts in either order. The response keeps the time of its first copy."""
    copies = [requested(1, 1, at=1, model="known", **known), requested(1, 1, at=2, model="better", **better)]
    responses = Responses()
    for copy in reversed(copies) if swapped else copies:
        responses.add("a", copy)
    (response,) = responses.of("a")
    assert (response.model, response.at) == ("better", 2 if swapped else 1)
    assert {name: getattr(response, name) for name in better} == better


def test_first_of_equal_copies_counts() -> None:
    """The exception: one in a file that is gone gives way to one in a file that is not."""
    responses = Responses()
    responses.add("a", requested(1, 1, file=1, agent="x", output=1))
    assert not responses.add("a", requested(1, 1, file=2, agent="y", output=1), lost={3}).responses
    responses.add("a", requested(1, 1, file=2, agent="y", output=1), lost={1})
    ((response),) = responses.of("a")
    assert (response.file, response.agent) == (2, "y")


def test_response_belongs_to_the_session_that_had_it_first() -> None:
    """A better copy in another session's file completes it there."""
    responses = Responses()
    responses.add("a", requested(1, 1, file=3, agent="x", output=1), anonymous(2, 21, output=1))
    merged = responses.add(
        "b",
        requested(1, 1, file=7, agent="y", at=9, output=5, is_final=True),
        anonymous(2, 21, output=1),
        requested(3, 1, output=30),
    )
    assert responses.totals == {"a": 6, "b": 30}
    completed = responses.of("a")[0]
    assert (completed.file, completed.agent, completed.at) == (3, "x", 1)
    assert merged.deltas.keys() == {"a", "b"}
    assert responses.sharing == {"b"}


@pytest.mark.parametrize("copy", [requested(1, 1, output=1), requested(1, 2, output=1, is_fork=True)])
def test_session_that_only_has_usage_of_others_is_known(copy: Copy) -> None:
    """Its total is 0, not what another source says of it."""
    responses = Responses()
    responses.add("a", requested(1, 1, output=1))
    responses.add("b", copy)
    assert (responses.totals, responses.sharing) == ({"a": 1}, {"b"})


def test_line_without_request_before_the_line_that_shows_its_response() -> None:
    """It made a response, which turns out to be a copy of another session's."""
    responses = Responses()
    responses.add("a", requested(1, 1, output=3, at=1))
    responses.add("b", anonymous(1, 1, file=2, output=5))
    assert responses.totals == {"a": 3, "b": 5}
    merged = responses.add("b", requested(1, 1, file=2, output=3))
    assert responses.totals == {"a": 5}
    assert [response.output for response in merged.deltas["b"].gone] == [5]
    # The line is known from now on.
    assert not responses.add("b", anonymous(1, 1, file=2, output=5)).deltas
    assert responses.totals == {"a": 5}
    responses.add("b", requested(1, 2, file=2, output=7))
    assert responses.totals == {"a": 5, "b": 7}


def test_lines_with_and_without_request_in_one_reading() -> None:
    responses = Responses()
    responses.add("a", requested(1, 1, output=3))
    responses.add("b", anonymous(1, 1, output=5), requested(1, 1, output=3), requested(1, 2, output=7))
    assert responses.totals == {"a": 5, "b": 7}


def test_line_without_request_keeps_what_it_made_when_its_file_is_read_again() -> None:
    """It follows a response of the same message, whose better copy is in another file."""
    lines = [
        requested(1, 1, place=SIDECHAIN, is_final=True, output=9),
        anonymous(1, 1, place=SIDECHAIN, input=5000),
    ]
    responses = Responses()
    responses.add("a", *lines, requested(1, 1, file=2, is_final=True, output=9))
    responses.add("a", *lines)
    assert responses.totals == {"a": 5009}


@pytest.mark.parametrize("swapped", [False, True])
def test_response_replayed_in_a_sidechain_counts_once(swapped: bool) -> None:
    """A replay has another request id, but the same message and prompt."""
    own = requested(1, 1, input=5, cache_read=100, output=3, is_final=True)
    replay = requested(1, 2, place=SIDECHAIN, file=2, input=5, cache_read=100, output=2, is_final=True)
    other = requested(1, 3, place=SIDECHAIN, file=2, input=6, cache_read=100, output=2, is_final=True)
    assert counted(*([replay, own] if swapped else [own, replay]), other) == [3, 2]


def test_response_replayed_after_a_fork_counts_once() -> None:
    """It is the first session's, although only the fork's sidechain has the replay."""
    own = requested(1, 1, input=5, output=3, is_final=True)
    responses = Responses()
    responses.add("a", own)
    responses.add("b", own, requested(1, 2, place=SIDECHAIN, file=2, input=5, output=3, is_final=True))
    responses.add("b", requested(1, 3, place=SIDECHAIN, file=2, input=6, output=1, is_final=True))
    assert responses.totals == {"a": 8, "b": 7}


def test_two_equal_requests_in_one_place_both_count() -> None:
    assert counted(*(requested(1, request, place=SIDECHAIN, output=4) for request in (1, 2))) == [4, 4]


def test_renamed_agent_changes_the_responses_of_its_file() -> None:
    """A quoted response in the same file has an agent of its own."""
    responses = Responses()
    responses.add("a", *(requested(number, 1, file=number, agent="agent-1", output=1) for number in (1, 2)))
    responses.add("a", requested(3, 1, file=1, place=QUOTED, agent="other", output=1))
    responses.add("a", requested(1, 1, file=1, agent="fd-x", output=2), renamed={1: ("agent-1", "fd-x")})
    assert [response.agent for response in responses.of("a")] == ["fd-x", "agent-1", "other"]


def test_usage_below_the_top_level_is_a_record_of_its_own_model() -> None:
    responses = Responses()
    responses.add("a", requested(1, 1, input=1, output=2, below=(ADVISOR, ModelUsage("sonnet", 0, 7, 0, 0, 0))))
    (response,) = responses.of("a")
    usage = list(records(response))
    assert [(record.model, record.counts.total) for record in usage] == [("opus", 3), ("haiku", 127), ("sonnet", 7)]
    assert len({record.key for record in usage}) == 3
    assert {record.at for record in usage} == {1}


@pytest.mark.parametrize("has_request", [True, False])
@given(data=st.data())
def test_reading_again_changes_no_total(has_request: bool, data: st.DataObject) -> None:
    """A file is read again after it was replaced, or its history was appended again."""
    copy = any_copy(forks=False, has_request=has_request)
    copies = data.draw(st.lists(st.tuples(st.sampled_from("ab"), copy), max_size=12))
    responses = Responses()
    for session, each in copies:
        responses.add(session, each)
    before = responses.totals
    for session, each in copies:
        responses.add(session, each)
    assert responses.totals == before


@given(st.lists(any_copy(), max_size=12), st.integers(0, 12))
def test_splitting_a_reading_changes_nothing(copies: list[Copy], at: int) -> None:
    whole, parts = Responses(), Responses()
    whole.add("a", *copies)
    parts.add("a", *copies[:at])
    parts.add("a", *copies[at:])
    assert (parts.known, parts.aliases) == (whole.known, whole.aliases)
    assert parts.add("a").deltas == {}
