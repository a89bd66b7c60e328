"""The client against something else in the daemon's place."""

import json
from typing import Any

import msgspec
import pytest

from fluxbudgetd.wire.framing import MAX_FRAME, encode_frame
from harness.daemon import Home
from harness.false_daemon import answering, frame, refused
from harness.native import both_clients

COMMAND: dict[str, Any] = {
    "ok": True,
    "op": "command",
    "mine": True,
    "exit": 1,
    "out": b"out\n",
    "err": b"err\n",
    "exports": b"",
}
NONE = [
    (b"", 69),
    (b"\0\0", 69),
    (b"\0\0\0\5ab", 69),
    (b"\xff\xff\xff\xff", 70),
    (b"\0\0\0\0", 70),
    (MAX_FRAME.to_bytes(4, "big") + b"\xc0", 69),
    ((MAX_FRAME + 1).to_bytes(4, "big") + b"\xc0", 70),
    (b"\0\0\0\1\xc1", 70),
    (frame([1, 2]), 70),
    (frame({"ok": True}), 70),
    (frame({"ok": True, "op": "remaining", "spend": {}}), 70),
    (frame({"ok": False}), 70),
    (refused("busy"), 69),
    (refused("unsupported_version"), 70),
    (refused("of-the-future"), 70),
]


def require_failure(home: Home, verb: str, answer: bytes, code: int) -> None:
    """Require this exit code and a reason, and that nothing of the answer is used."""
    place = home.root / "env"
    with answering(home, answer):
        result = home.ctl(verb, "--timeout", "20", environ={"CLAUDE_ENV_FILE": str(place)})
    assert (result.returncode, result.stdout) == (code, ""), result
    line, hint = result.stderr.splitlines()
    assert line.startswith("fluxbudgetctl: ")
    assert hint.startswith("hint: ")
    assert not place.exists()


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "status"])
@pytest.mark.parametrize(("answer", "code"), NONE)
def test_answers_that_are_none(home: Home, verb: str, answer: bytes, code: int) -> None:
    require_failure(home, verb, answer, code)


ODD: list[Any] = [None, "text", [], 2.5]


@both_clients
@pytest.mark.parametrize(
    "odd",
    [
        *({name: value} for name in ("mine", "exit", "out", "err", "exports") for value in ODD),
        {"mine": 1},
        {"mine": b"x"},
        *({"exit": code} for code in (-1, 256, 2**40, True, b"\0")),
        {"out": 0},
        {"op": "check"},
        {"op": None},
        {"ok": 1},
    ],
    ids=str,
)
def test_answers_with_an_odd_field(home: Home, odd: dict[str, Any]) -> None:
    require_failure(home, "check", frame({**COMMAND, "exports": b"export A=1\n", **odd}), 70)


@both_clients
@pytest.mark.parametrize("missing", ["mine", "exit", "out", "err", "exports", "op", "ok"])
def test_answers_without_a_field(home: Home, missing: str) -> None:
    require_failure(home, "check", frame({name: value for name, value in COMMAND.items() if name != missing}), 70)


@both_clients
def test_answer_that_is_cut_or_continued(home: Home) -> None:
    body = msgspec.msgpack.encode(COMMAND)
    for damaged in (body[:-1], body[: len(body) // 2], body + b"\xc0", b"\x8f" + body[1:]):
        require_failure(home, "check", encode_frame(damaged), 70)
        home.socket.unlink()


@both_clients
@pytest.mark.parametrize(
    "more",
    [None, 1.5, -5, 2**63, "x" * 70_000, b"x" * 300, list(range(70_000)), {str(n): n for n in range(20)}, {"a": [{}]}],
    ids=lambda value: str(value)[:12],
)
def test_unknown_fields_are_ignored(home: Home, more: object) -> None:
    """A later version may put anything into them. What follows the frame is not read."""
    with answering(home, frame({"more": more, **COMMAND, "later": more}) + b"\xff"):
        result = home.ctl("check", "--timeout", "20")
    assert (result.returncode, result.stdout, result.stderr) == (1, "out\n", "err\n")


@both_clients
def test_largest_answer(home: Home) -> None:
    """All of it is printed, even into a pipe that holds less."""
    room = MAX_FRAME - len(msgspec.msgpack.encode(COMMAND)) - 8
    with answering(home, frame({**COMMAND, "out": b"x" * room})):
        result = home.ctl("check", "--timeout", "20")
    assert (result.returncode, len(result.stdout), result.stderr) == (1, room, "err\n")


#: Answers of version 0.1.0.
OLD_ESTIMATES = frame(
    {
        "ok": True, "op": "estimates", "defaults": {"review": 40_000}, "slicing_multiplier": 1.0, "stale_why": None,
        "estimates": {"fd-x": {"est_tokens": 9, "est_billing": 5, "sample_size": 3, "source": "interstat"}},
    }
)  # fmt: skip
_PART = {"agents": 0, "est_tokens": 0}
OLD_TRIAGE = frame(
    {
        "ok": True, "op": "triage", "triage_id": "triage-1", "verdict": "ok", "run": None, "session": "s1",
        "input_type": "other", "model": "m", "slicing": False, "cost_basis": "billing", "enforcement": "soft",
        "budget": 7, "type_budget": 7, "sprint_remaining": None, "sprint_constrained": False, "selected": _PART,
        "deferred": _PART, "by_stage": {}, "agents": [], "summary": "Budget: 0K", "override": None, "note": "",
        "stale_why": None,
    }
)  # fmt: skip


def test_older_daemon_says_nothing_about_the_history(home: Home) -> None:
    """That is not the same as having none."""
    with answering(home, OLD_ESTIMATES):
        result = home.ctl("estimates")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["history"] == {}


def test_older_daemon_does_not_know_the_reaction_round(home: Home) -> None:
    """It has decided about another round, so its answer is not used."""
    with answering(home, OLD_TRIAGE):
        result = home.ctl("triage", stdin='{"agents": []}')
        assert (result.returncode, result.stderr) == (0, "")
        result = home.ctl("triage", "--round", "reaction", stdin='{"agents": []}')
    assert (result.returncode, result.stdout) == (70, "")
    line, hint = result.stderr.splitlines()
    assert line == "fluxbudgetctl: the daemon is older than this client: it does not know --round reaction"
    assert hint.startswith("hint: ")
