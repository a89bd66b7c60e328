"""The daemon's values in answers: every field arrives under its name."""

import msgspec
import pytest

from fluxbudgetd.model import Attachment, Balance, Counts, Event, Run, SourceStatus
from fluxbudgetd.server import answers
from fluxbudgetd.structs import converted
from fluxbudgetd.totals import Standing
from fluxbudgetd.wire import messages

RUN = Run(
    id="r1",
    scope="b1",
    project_dir="/p",
    goal="a goal",
    complexity=4,
    phases=("brainstorm", "done"),
    phase="brainstorm",
    token_budget=1000,
    warn_pct=70,
    enforcement="hard",
    cost_basis="total",
    status="done",
    started_at=0,
    ended_at=1_500_000,
)
BALANCE = Balance(budget=1000, measured=10, provisional=20, reserved=40, spent=30, remaining=930, pct=3.0, state="ok")


def encoded(value: object) -> object:
    return msgspec.msgpack.decode(messages.encode(value))


def test_run() -> None:
    assert encoded(answers.run_info(RUN)) == {
        "id": "r1",
        "scope": "b1",
        "project_dir": "/p",
        "goal": "a goal",
        "complexity": 4,
        "phases": ["brainstorm", "done"],
        "phase": "brainstorm",
        "token_budget": 1000,
        "warn_pct": 70,
        "enforcement": "hard",
        "cost_basis": "total",
        "allowed_to": None,
        "allowed_until": None,
        "adopted_from": None,
        "kept": [],
        "withheld": "",
        "status": "done",
        "started_at": "1970-01-01T00:00:00.000000Z",
        "ended_at": "1970-01-01T00:00:01.500000Z",
    }


def test_spend() -> None:
    assert encoded(answers.spend(Standing(RUN, BALANCE, "interstat is locked"))) == {
        "budget": 1000,
        "spent": 30,
        "measured": 10,
        "provisional": 20,
        "reserved": 40,
        "remaining": 930,
        "pct": 3.0,
        "state": "ok",
        "stale": True,
        "stale_why": "interstat is locked",
    }


def test_tally_stops_at_the_largest_number_that_can_be_sent() -> None:
    huge = messages.MAX_TOKENS + 5
    assert encoded(answers.tally("all", Counts(2, 1, huge, 3, 4, 5))) == {
        "name": "all",
        "records": 2,
        "pending": 1,
        "input": messages.MAX_TOKENS,
        "output": 3,
        "cache_read": 4,
        "cache_creation": 5,
        "billing": messages.MAX_TOKENS,
        "total": messages.MAX_TOKENS,
    }


def test_attachment() -> None:
    """It shows the time from which its usage counts, unless that is the session's beginning."""
    made = Attachment(session="s1", run="r1", since=9, until=1_000_000, counts_from=5, origin="bead")
    assert encoded(answers.attachment(made)) == {
        "session": "s1",
        "since": "1970-01-01T00:00:00.000005Z",
        "until": "1970-01-01T00:00:01.000000Z",
        "origin": "bead",
        "claimed": False,
    }
    whole = msgspec.structs.replace(made, counts_from=0, until=None)
    assert (answers.attachment(whole).since, answers.attachment(whole).until) == (None, None)


def test_conversion_leaves_no_field_without_a_value() -> None:
    status = SourceStatus(name="interstat", path="/db", state="ok")
    with pytest.raises(TypeError, match="since"):
        converted(status, messages.SourceInfo, anomalies=0)
    event = Event(seq=1, at=2, run=None, kind="run.started", data={"by": "a person"})
    assert converted(event, messages.EventAnswer, at="now") == messages.EventAnswer(
        seq=1, at="now", run=None, kind="run.started", data={"by": "a person"}
    )
