"""What the commands that hooks call print, and their exit codes."""

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from fluxbudgetd.wire import codes, messages, replies
from harness.imports import HEAVY

SPEND = messages.Spend(
    budget=1000,
    spent=850,
    measured=800,
    provisional=50,
    reserved=20,
    remaining=130,
    pct=85.0,
    state="warning",
    stale=False,
    stale_why=None,
)
UNLIMITED = messages.Spend(
    budget=None,
    spent=850,
    measured=850,
    provisional=0,
    reserved=0,
    remaining=None,
    pct=None,
    state="unlimited",
    stale=False,
    stale_why=None,
)
EXHAUSTED = messages.Spend(
    budget=1000,
    spent=1200,
    measured=1200,
    provisional=0,
    reserved=0,
    remaining=0,
    pct=120.0,
    state="exceeded",
    stale=True,
    stale_why="interstat: locked\x1b[2J",
)
NO_BUDGET = b"fluxbudgetctl: run r1 has no budget\nhint: set one with 'fluxbudgetctl run set --run r1 --budget N'\n"
STALE = b"fluxbudgetctl: last known numbers: interstat: locked\\x1b[2J\n"
NO_RUN = ("there is no run", "start one", codes.NO_RUN)
NO_RUN_LINES = b"fluxbudgetctl: there is no run\nhint: start one\n"
AWAY = ("no daemon", "start it", codes.UNREACHABLE)
AWAY_LINES = b"fluxbudgetctl: no daemon\nhint: start it\n"


def seen(reply: replies.Reply) -> tuple[int, bytes, bytes]:
    assert reply.exports == b""
    return reply.exit_code, reply.out, reply.err


def left(spend: messages.Spend) -> messages.RemainingAnswer:
    return messages.RemainingAnswer(run="r1", phase="executing", spend=spend)


def checked(spend: messages.Spend = SPEND, **fields: Any) -> messages.CheckAnswer:
    plain = {"run": "r1", "phase": "executing", "allowed": True, "refusal": None, "overridden": None, "note": ""}
    return messages.CheckAnswer(**{**plain, **fields}, spend=spend)


@pytest.mark.parametrize(
    ("spend", "default", "expected"),
    [
        (SPEND, None, (0, b"130\n", b"")),
        (SPEND, 7, (0, b"130\n", b"")),
        (EXHAUSTED, 7, (0, b"0\n", STALE)),
        (UNLIMITED, None, (3, b"0\n", NO_BUDGET)),
        (UNLIMITED, 7, (3, b"7\n", NO_BUDGET)),
    ],
)
def test_remaining(spend: messages.Spend, default: int | None, expected: tuple[int, bytes, bytes]) -> None:
    assert seen(replies.remaining(left(spend), default=default)) == expected


@pytest.mark.parametrize(
    ("failure", "default", "expected"),
    [
        (NO_RUN, None, (3, b"0\n", NO_RUN_LINES)),
        (NO_RUN, 7, (3, b"7\n", NO_RUN_LINES)),
        (AWAY, None, (69, b"", AWAY_LINES)),
        (AWAY, 7, (0, b"7\n", AWAY_LINES)),
        (AWAY, 0, (0, b"0\n", AWAY_LINES)),
        (("late", "", codes.NO_ANSWER), 7, (0, b"7\n", b"fluxbudgetctl: late\n")),
        (("a bug", "", codes.INTERNAL), 7, (70, b"", b"fluxbudgetctl: a bug\n")),
    ],
)
def test_remaining_without_an_answer(
    failure: tuple[str, str, int], default: int | None, expected: tuple[int, bytes, bytes]
) -> None:
    assert seen(replies.remaining_failed(*failure, default=default)) == expected


def test_remaining_as_json() -> None:
    assert replies.remaining(left(SPEND), as_json=True).out == (
        b'{"run": "r1", "phase": "executing", "budget": 1000, "spent": 850, "measured": 800, "provisional": 50, '
        b'"reserved": 20, "remaining": 130, "pct": 85.0, "state": "warning", "stale": false, "stale_why": null}\n'
    )
    assert json.loads(replies.remaining(left(UNLIMITED), as_json=True).out)["remaining"] is None
    assert json.loads(replies.remaining(left(UNLIMITED), default=7, as_json=True).out)["remaining"] == 7
    no_run = json.loads(replies.remaining_failed(*NO_RUN, default=7, as_json=True).out)
    assert (no_run["remaining"], no_run["state"], no_run["stale"], no_run["budget"]) == (7, "no_run", False, None)
    assert replies.remaining_failed(*AWAY, default=7, as_json=True).out == (
        b'{"run": null, "phase": null, "budget": null, "spent": null, "measured": null, "provisional": null, '
        b'"reserved": null, "pct": null, "stale_why": null, "remaining": 7, "state": "no_answer", "stale": true}\n'
    )


def test_tied_runs_are_named_on_stderr() -> None:
    """The first five of them. How to choose another run is not said, because a model may read it."""
    note = (
        b"fluxbudgetctl: 7 active runs have this directory as their project (r1, r2, r3, r4, r5, and 2 more);"
        b" the hard one with the least left applies: r1\n"
    )
    tied = tuple(f"r{number}" for number in range(1, 8))
    for reply in (
        replies.remaining(msgspec.structs.replace(left(EXHAUSTED), tied=tied)),
        replies.env(msgspec.structs.replace(left(EXHAUSTED), tied=tied)),
        replies.check(checked(EXHAUSTED, tied=tied)),
    ):
        assert reply.err == note + STALE
    for as_json in (
        replies.remaining(msgspec.structs.replace(left(SPEND), tied=tied), as_json=True),
        replies.check(checked(tied=tied), as_json=True),
    ):
        assert json.loads(as_json.out)["tied"] == list(tied)


def test_env() -> None:
    assert seen(replies.env(left(SPEND))) == (0, b"export FLUX_BUDGET_REMAINING=130\n", b"")
    assert seen(replies.env(left(EXHAUSTED))) == (0, b"export FLUX_BUDGET_REMAINING=1\n", STALE)
    assert seen(replies.env(left(UNLIMITED))) == (3, b"unset FLUX_BUDGET_REMAINING\n", NO_BUDGET)
    assert seen(replies.env_failed(*NO_RUN)) == (3, b"unset FLUX_BUDGET_REMAINING\n", NO_RUN_LINES)
    assert seen(replies.env_failed(*AWAY)) == (69, b"", AWAY_LINES)


def test_check() -> None:
    assert seen(replies.check(checked())) == (0, b"ok\n", b"")
    refused = checked(EXHAUSTED, allowed=False, refusal="budget_exceeded|executing|1200/1000 billing tokens", note="no")
    line = b"budget_exceeded|executing|1200/1000 billing tokens\n"
    assert seen(replies.check(refused)) == (1, line, STALE + b"fluxbudgetctl: no\n")
    overridden = b"fluxbudgetctl: the budget is exceeded; overridden: a\\nb\n"
    assert seen(replies.check(checked(overridden="a\nb"))) == (0, b"ok\n", overridden)
    assert seen(replies.check(checked(allowed=False), as_json=True)) == (
        1,
        (
            b'{"run": "r1", "phase": "executing", "allowed": false, "refusal": null, "overridden": null, "note": "", '
            b'"choices": [], "budget": 1000, "spent": 850, "measured": 800, "provisional": 50, "reserved": 20, '
            b'"remaining": 130, "pct": 85.0, "state": "warning", "stale": false, "stale_why": null}\n'
        ),
        b"",
    )
    assert seen(replies.check_failed(*NO_RUN)) == (3, b"", NO_RUN_LINES)
    assert seen(replies.check_failed(*NO_RUN, require=True)) == (1, b"", NO_RUN_LINES)
    assert seen(replies.check_failed(*AWAY, require=True)) == (69, b"", AWAY_LINES)


def test_advance() -> None:
    answer = messages.AdvanceAnswer(
        run="r1",
        advanced=True,
        line="advanced|planned|executing",
        phase="executing",
        completed=None,
        overridden="because",
        note="",
        spend=EXHAUSTED,
    )
    overridden = b"fluxbudgetctl: the budget is exceeded; overridden: because\n"
    assert seen(replies.advance(answer)) == (0, b"advanced|planned|executing\n", STALE + overridden)
    shown = replies.advance(answer, as_json=True).out
    assert [*json.loads(shown)] == [
        *("run", "advanced", "line", "phase", "completed", "overridden", "note", "choices", "spend"),
    ]
    stale = messages.AdvanceAnswer(
        run="r1",
        advanced=False,
        line="stale_phase|planned|Phase already advanced to executing",
        phase="executing",
        completed=None,
        overridden=None,
        note="a note",
        spend=SPEND,
    )
    assert seen(replies.advance(stale)) == (1, f"{stale.line}\n".encode(), b"fluxbudgetctl: a note\n")


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("budget_exceeded|planned|1200/1000 billing tokens", ["continue", "stop", "adjust"]),
        ("stale_phase|planned|Phase already advanced to executing", []),
        ("advanced|planned|executing", []),
    ],
)
def test_exceeded_budget_offers_choices(line: str, choices: list[str]) -> None:
    """A skill can ask the person which of them to take."""
    is_advanced = line.startswith("advanced")
    advanced = messages.AdvanceAnswer(
        run="r1",
        advanced=is_advanced,
        line=line,
        phase="planned",
        completed=None,
        overridden=None,
        note="",
        spend=SPEND,
    )
    assert json.loads(replies.advance(advanced, as_json=True).out)["choices"] == choices
    refused = checked(allowed=is_advanced, refusal=None if is_advanced else line)
    assert json.loads(replies.check(refused, as_json=True).out)["choices"] == choices


def test_ping() -> None:
    answer = messages.PingAnswer(version="1.2", protocol=1, pid=7, started_at="2026-11-28T07:00:00.000000Z")
    assert seen(replies.ping(answer, 1.23456)) == (0, b"fluxbudgetd 1.2 (pid 7) answered in 1.23 ms\n", b"")
    assert seen(replies.ping(answer, None)) == (0, b"fluxbudgetd 1.2 (pid 7) answered\n", b"")
    assert replies.ping(answer, 1.23456, as_json=True).out == (
        b'{"version": "1.2", "protocol": 1, "pid": 7, "started_at": "2026-11-28T07:00:00.000000Z", '
        b'"round_trip_ms": 1.235}\n'
    )


def test_hook_and_status_line() -> None:
    assert seen(replies.hook(messages.HookAnswer())) == (0, b"", b"")
    reply = replies.hook(messages.HookAnswer(output="{}", exports="export A=1"))
    assert (reply.exit_code, reply.out, reply.err, reply.exports) == (0, b"{}\n", b"", b"export A=1\n")
    assert replies.hook(messages.HookAnswer(exports="export A=1\n")).exports == b"export A=1\n"
    line = messages.StatusLineAnswer(run="r1", line="executing ██ 5%", stale_why="locked")
    stale = b"fluxbudgetctl: last known numbers: locked\n"
    assert seen(replies.statusline(line)) == (0, "executing ██ 5%\n".encode(), stale)


def test_json_has_every_field_of_the_answer_in_its_order() -> None:
    """The names are listed, so that the Python client needs no structs; a new field must be listed, too."""
    for names, kind in (
        (replies.SPEND, messages.Spend),
        (replies.COMPLETED, messages.PhaseLine),
        ((*replies.CHECK, "tied", "spend"), messages.CheckAnswer),
        # (The last two are not printed: they tell the client to run `ic`.)
        ((*replies.ADVANCE, "spend", "ic_run", "ic_directory"), messages.AdvanceAnswer),
        (replies.PING, messages.PingAnswer),
    ):
        assert names == tuple(name for name in kind.__struct_fields__ if name != "ok"), kind


def test_rendering_loads_nothing_heavy() -> None:
    code = f"import fluxbudgetd.wire.replies, sys; print(sorted({HEAVY!r} & sys.modules.keys()))"
    path = [entry for entry in sys.path if entry]
    made = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == "[]\n"
