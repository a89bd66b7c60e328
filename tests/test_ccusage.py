"""The same transcripts, counted by ccusage and by us: sessions are equal, or differ in a way that has a name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fluxbudgetd.wire import messages
from harness import ccusage, npm
from harness.counting import WAIT_MS, InProcess, in_process
from harness.histories import PLAIN_ACTS, History
from harness.transcript_recount import Tokens, plus
from harness.transcripts import assistant_line, encoded

pytestmark = pytest.mark.skipif(npm.ccusage() is None, reason="missing: ccusage, which make installs with npm")

#: Why the two differ. Each has at least one case below.
KINDS = {
    "compaction": "ccusage does not count what compaction used below the top level",
    "final": "ccusage counts the largest copy of a response, we count the final one",
    "replay": "ccusage recognises a replay under another request id only by its time",
    "relay": "of all responses under one message id and no request id, ccusage counts the largest",
    "some requests": "with a request id on only some of its lines, ccusage counts a response twice",
    "fork without requests": "without request ids, ccusage counts a fork's copies again",
    "forked from": "ccusage counts lines that say that they were copied from a session whose file is gone",
    "which session": "ccusage counts a fork's copies for the session that it reads first, we count them for the older",
    "workflow": "ccusage shows a workflow as a session",
    "old layout": "ccusage shows a sub-agent's file beside its session's as a session",
    "quoted": "ccusage ignores what a session's file quotes of a sub-agent",
    "damaged": "ccusage ignores a damaged line with a whole record",
    "zero parts": "cache creation that is not zero, in parts that are: ccusage counts none",
    "odd counts": "ccusage ignores a line with a count that is not a whole number, we ignore or read that count",
    "huge": "ccusage counts a count beyond 63 bits, we ignore it",
    "timeless": "ccusage ignores a line without a time",
    "incomplete": "ccusage counts a last line before its newline is written",
}


class Case(NamedTuple):
    """A small history. `ours` and `theirs` are (input, output, cache reads, cache creation) by session."""

    name: str
    files: dict[str, bytes]
    ours: dict[str, Tokens]
    theirs: dict[str, Tokens] | None = None
    kind: str | None = None


def line(session: str, message: str | None, *tokens: Any, final: bool = True, **more: Any) -> bytes:
    """Return a response's line. Ids contain the session's name, except for what is shared on purpose."""
    counts = (*tokens, *(0,) * (4 - len(tokens)))
    top = {name: more.pop(name) for name in ("uuid", "forkedFrom", "timestamp") if name in more}
    request = more.pop("request", f"req_{session}_{message}")
    made = assistant_line(session, message, request=request, tokens=counts, **more)
    made["message"]["stop_reason"] = "end_turn" if final else None
    return encoded(made | top)


def one(session: str, *lines: bytes) -> dict[str, bytes]:
    return {f"{session}.jsonl": b"".join(lines)}


def quoted(session: str, made: bytes) -> bytes:
    data = {"type": "agent_progress", "agentId": "q", "message": json.loads(made)}
    return encoded({"type": "progress", "sessionId": session, "uuid": f"u-{session}", "data": data})


ADVISOR = [
    {"type": "message", "input_tokens": 2, "output_tokens": 491},
    {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 159_419, "output_tokens": 7805},
]
COMPACTION = [{"type": "compaction", "input_tokens": 1000, "output_tokens": 50}]
FALLBACK = [{"type": "fallback", "model": "claude-haiku-4-5", "input_tokens": 1000, "output_tokens": 50}]
PARTS = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 10}
ZERO_PARTS = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
EARLIER = "2026-11-01T10:00:00.000Z"
ORIGIN = {"sessionId": "elsewhere", "messageUuid": "x"}
RELAY: dict[str, Any] = {"request": None}
ODD = ((100.0, 50), (-5, 3), ("7", 2), (1, 1))

CASES = [
    Case("plain", one("p", line("p", "m1", 100, 50), line("p", "m2", 7, 3, 20, 5)), {"p": (107, 53, 20, 5)}),
    Case("copies", one("c", line("c", "m1", 100, 50), line("c", "m1", 100, 50)), {"c": (100, 50, 0, 0)}),
    Case("growing", one("g", line("g", "m1", 100, 1, final=False), line("g", "m1", 100, 50)), {"g": (100, 50, 0, 0)}),
    Case("zeroed", one("z", line("z", "m1", 2, 517, 9), line("z", "m1", 0, 0)), {"z": (2, 517, 9, 0)}),
    Case("advisor", one("a", line("a", "m1", 2, 491, iterations=ADVISOR)), {"a": (159_421, 8296, 0, 0)}),
    Case("fallback", one("fb", line("fb", "m1", 100, 50, iterations=FALLBACK)), {"fb": (100, 50, 0, 0)}),
    Case("parts", one("pa", line("pa", "m1", 1, 2, 0, 99, cache_creation=PARTS)), {"pa": (1, 2, 0, 40)}),
    Case("fast", one("fa", line("fa", "m1", 100, 50, speed="fast")), {"fa": (100, 50, 0, 0)}),
    Case(
        "CRLF",
        one("cr", line("cr", "m1", 100, 50).replace(b"\n", b"\r\n"), line("cr", "m2", 7, 3)),
        {"cr": (107, 53, 0, 0)},
    ),
    Case(
        "half a line",
        one("hl", line("hl", "m1", 100, 50), line("hl", "m2", 7, 3)[:-40]),
        {"hl": (100, 50, 0, 0)},
    ),
    Case(
        "sub-agent",
        one("sa", line("sa", "m1", 100, 50))
        | {"sa/subagents/agent-1.jsonl": line("sa", "m2", 10, 5, sidechain=True)},
        {"sa": (110, 55, 0, 0)},
    ),
    Case(
        "sub-agent that repeats its parent",
        one("sr", line("sr", "m1", 100, 50))
        | {
            "sr/subagents/agent-1.jsonl": line("sr", "m1", 100, 50, sidechain=True)
            + line("sr", "m2", 10, 5, sidechain=True)
        },
        {"sr": (110, 55, 0, 0)},
    ),
    Case(
        "replay at the same time",
        one("rp", line("rp", "m1", 100, 50, at=EARLIER))
        | {
            "rp/subagents/agent-1.jsonl": line(
                "rp", "m1", 100, 50, sidechain=True, request="req_aside", at=EARLIER
            )
        },
        {"rp": (100, 50, 0, 0)},
    ),
    Case(
        "replay at another time",
        one("rt", line("rt", "m1", 100, 50, at=EARLIER))
        | {"rt/subagents/agent-1.jsonl": line("rt", "m1", 100, 50, sidechain=True, request="req_aside_2")},
        {"rt": (100, 50, 0, 0)},
        {"rt": (200, 100, 0, 0)},
        "replay",
    ),
    Case(
        "fork",
        one("f1", line("f1", "m1", 100, 50))
        | one("f2", line("f2", "m1", 100, 50, request="req_f1_m1"), line("f2", "own", 1, 1)),
        {"f1": (100, 50, 0, 0), "f2": (1, 1, 0, 0)},
    ),
    Case(
        "compaction",
        one("co", line("co", "m1", 100, 50, iterations=COMPACTION)),
        {"co": (1100, 100, 0, 0)},
        {"co": (100, 50, 0, 0)},
        "compaction",
    ),
    Case(
        "final copy with a smaller input",
        one("fi", line("fi", "m1", 173_306, 0, 5000, final=False), line("fi", "m1", 250, 166, 173_056)),
        {"fi": (250, 166, 173_056, 0)},
        {"fi": (173_306, 0, 5000, 0)},
        "final",
    ),
    Case(
        "final copy with less output",
        one("fo", line("fo", "m1", 100, 80, final=False), line("fo", "m1", 100, 50)),
        {"fo": (100, 50, 0, 0)},
        {"fo": (100, 80, 0, 0)},
        "final",
    ),
    Case(
        "one message id for everything",
        one("re", *(line("re", "relay", n, n, **RELAY) for n in (100, 200, 200, 300))),
        {"re": (600, 600, 0, 0)},
        {"re": (300, 300, 0, 0)},
        "relay",
    ),
    Case(
        "no message id",
        one("nm", line("nm", None, 100, 50), line("nm", None, 7, 3, **RELAY), line("nm", "m1", 1, 1)),
        {"nm": (108, 54, 0, 0)},
    ),
    Case(
        "request id on the second line",
        one("so", line("so", "m1", 100, 50, **RELAY), line("so", "m1", 100, 50)),
        {"so": (100, 50, 0, 0)},
        {"so": (200, 100, 0, 0)},
        "some requests",
    ),
    Case(
        "fork without request ids",
        one("q1", line("q1", "q", 100, 50, uuid="q", **RELAY)) | one("q2", line("q2", "q", 100, 50, uuid="q", **RELAY)),
        {"q1": (100, 50, 0, 0)},
        {"q1": (100, 50, 0, 0), "q2": (100, 50, 0, 0)},
        "fork without requests",
    ),
    Case(
        "branch of a session whose file is gone",
        one("br", line("br", "m1", 100, 50, forkedFrom=ORIGIN), line("br", "m2", 7, 3)),
        {"br": (7, 3, 0, 0)},
        {"br": (107, 53, 0, 0)},
        "forked from",
    ),
    Case(
        "fork whose name comes first",
        one("w2", line("w2", "m1", 100, 50)) | one("w1", line("w1", "m1", 100, 50, request="req_w2_m1")),
        {"w2": (100, 50, 0, 0)},
        {"w1": (100, 50, 0, 0)},
        "which session",
    ),
    Case(
        "workflow",
        one("wo", line("wo", "m1", 100, 50))
        | {"wo/subagents/workflows/wf_wo/agent-1.jsonl": line("wo", "m2", 10, 5, sidechain=True)},
        {"wo": (110, 55, 0, 0)},
        {"wo": (100, 50, 0, 0), "wf_wo": (10, 5, 0, 0)},
        "workflow",
    ),
    Case(
        "sub-agent beside its session",
        one("ol", line("ol", "m1", 100, 50)) | {"agent-old.jsonl": line("ol", "m2", 10, 5, sidechain=True)},
        {"ol": (110, 55, 0, 0)},
        {"ol": (100, 50, 0, 0), "agent-old": (10, 5, 0, 0)},
        "old layout",
    ),
    Case(
        "quoted sub-agent without a file",
        one("qu", line("qu", "m1", 100, 50), quoted("qu", line("qu", "m2", 10, 5, sidechain=True))),
        {"qu": (110, 55, 0, 0)},
        {"qu": (100, 50, 0, 0)},
        "quoted",
    ),
    Case(
        "NULs before a record",
        one("nu", b"\0" * 100, line("nu", "m1", 100, 50), line("nu", "m2", 7, 3)),
        {"nu": (107, 53, 0, 0)},
        {"nu": (7, 3, 0, 0)},
        "damaged",
    ),
    Case(
        "byte order mark before a record",
        one("bo", b"\xef\xbb\xbf", line("bo", "m1", 100, 50), line("bo", "m2", 7, 3)),
        {"bo": (107, 53, 0, 0)},
        {"bo": (7, 3, 0, 0)},
        "damaged",
    ),
    Case(
        "two records on a line",
        one("tw", line("tw", "m1", 100, 50)[:-1], line("tw", "m2", 7, 3), line("tw", "m3", 1, 1)),
        {"tw": (108, 54, 0, 0)},
        {"tw": (1, 1, 0, 0)},
        "damaged",
    ),
    Case(
        "half a record before a whole one",
        one("cu", b'{"type":"user","message":{"content":"hal', line("cu", "m2", 7, 3), line("cu", "m3", 1, 1)),
        {"cu": (8, 4, 0, 0)},
        {"cu": (1, 1, 0, 0)},
        "damaged",
    ),
    Case(
        "cache creation in parts that are zero",
        one("zp", line("zp", "m1", 1, 2, 0, 40, cache_creation=ZERO_PARTS)),
        {"zp": (1, 2, 0, 40)},
        {"zp": (1, 2, 0, 0)},
        "zero parts",
    ),
    Case(
        "counts that are no whole numbers",
        one("oc", *(line("oc", f"m{number}", *tokens) for number, tokens in enumerate(ODD))),
        {"oc": (101, 56, 0, 0)},
        {"oc": (1, 1, 0, 0)},
        "odd counts",
    ),
    Case(
        "count beyond 63 bits",
        one("hu", line("hu", "m1", 2**63, 50)),
        {"hu": (0, 50, 0, 0)},
        {"hu": (2**63, 50, 0, 0)},
        "huge",
    ),
    Case(
        "no time",
        one("ti", line("ti", "m1", 100, 50, timestamp=None), line("ti", "m2", 7, 3)),
        {"ti": (107, 53, 0, 0)},
        {"ti": (7, 3, 0, 0)},
        "timeless",
    ),
    Case(
        "last line without its newline",
        one("nn", line("nn", "m1", 100, 50), line("nn", "m2", 7, 3)[:-1]),
        {"nn": (100, 50, 0, 0)},
        {"nn": (107, 53, 0, 0)},
        "incomplete",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def program() -> Path:
    found = npm.ccusage()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def counted(
    tmp_path_factory: pytest.TempPathFactory, program: Path
) -> Iterator[tuple[dict[str, Tokens], dict[str, Tokens]]]:
    """Return what we and ccusage count for each session of all cases, which are in one directory."""
    directory = tmp_path_factory.mktemp("claude")
    for case in CASES:
        for name, raw in case.files.items():
            path = directory / "projects" / "-work" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    with in_process(directory) as daemon:
        yield our_sessions(daemon, [name for case in CASES for name in case.ours]), ccusage.sessions(program, directory)


def by_session(daemon: InProcess, run: str) -> dict[str, Tokens]:
    """Return what a run counts for each of its sessions."""
    report = daemon.ask(messages.RunShow(run=run, wait_ms=WAIT_MS))
    assert not report.spend.stale, report.spend
    return {each.name: (each.input, each.output, each.cache_read, each.cache_creation) for each in report.by_session}


def our_sessions(daemon: InProcess, names: list[str]) -> dict[str, Tokens]:
    """Attach sessions in this order to a run, and return what it counts for each."""
    run = daemon.ask(messages.RunStart(project_dir="/p", token_budget="none", wait_ms=WAIT_MS)).run.id
    for name in names:
        daemon.ask(messages.RunAttach(attach=name, run=run, whole=True, wait_ms=WAIT_MS))
    return by_session(daemon, run)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sessions_are_equal_or_differ_in_a_known_way(
    counted: tuple[dict[str, Tokens], dict[str, Tokens]], case: Case
) -> None:
    ours, theirs = counted
    expected = case.ours if case.theirs is None else case.theirs
    assert {name: ours.get(name) for name in case.ours} == case.ours
    assert {name: theirs.get(name) for name in expected} == expected
    # The other one may have sessions of its own, but none of ours without a name for the difference.
    assert (case.ours == expected) == (case.kind is None)


def test_no_session_is_compared_without_a_case(counted: tuple[dict[str, Tokens], dict[str, Tokens]]) -> None:
    """The cases include what only one of the two counts."""
    ours, theirs = counted
    named = {name for case in CASES for name in (*case.ours, *(case.theirs or {}))}
    assert {name for name, tokens in ours.items() if any(tokens)} <= named
    assert theirs.keys() <= named


def test_each_kind_of_difference_is_shown() -> None:
    assert {case.kind for case in CASES if case.kind is not None} == KINDS.keys()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("forks", [False, True])
def test_random_histories_without_such_differences_are_equal(
    tmp_path: Path, program: Path, seed: int, forks: bool
) -> None:
    """Sessions, sub-agents and repeated lines; with forks, all sessions together."""
    ours: dict[str, Tokens] = {}
    weights = PLAIN_ACTS if forks else {name: weight for name, weight in PLAIN_ACTS.items() if name != "fork"}
    with in_process(tmp_path) as daemon:
        history = History(daemon, f"plain {seed}", whole=True, plain=True)
        history.go(80, weights)
        for run in history.runs:
            for session, tokens in by_session(daemon, run.name).items():
                ours[session] = plus(ours.get(session, (0, 0, 0, 0)), tokens)
    theirs = ccusage.sessions(program, tmp_path)
    assert list(map(sum, zip(*ours.values(), strict=True))) == list(map(sum, zip(*theirs.values(), strict=True)))
    if not forks:
        assert {session: tokens for session, tokens in ours.items() if any(tokens)} == theirs
