"""Sub-agents are admitted before they start, and count until they are measured, end, or half an hour passes."""

import json
import random
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from fluxbudgetd.policy import reservations
from fluxbudgetd.service import Service
from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import configure, require_quiet
from harness.hooks import SILENT, Claude, Said, launching, understood
from harness.interstat import Interstat
from harness.service import service_over, within
from harness.transcripts import Transcript

#: What a review agent, and any other, is expected to cost while nothing is known (flux-drive's defaults).
REVIEW, GENERATED, RESEARCH, ORACLE = 40_000, 40_000, 15_000, 80_000
#: How many random histories are played; more of them by hand, after a change.
SEEDS = 3
HALF_AN_HOUR = 30 * 60 * 1_000_000


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reserved(home: Home, run: str) -> int:
    return home.spend(run).reserved


def measures(
    home: Home,
    session: str,
    agent_id: str,
    agent: str = "fd-quality",
    *,
    tokens: int = 100,
    deeper: tuple[str, ...] = (),
) -> None:
    """Write a response into a sub-agent's transcript."""
    writer = Transcript(home.root / "claude", session).agent(agent_id, *deeper)
    writer.meta(agentType=agent)
    writer.response(f"m-{agent_id}", tokens=(tokens, 0, 0, 0), at=now())


def age_reservations(home: Home, micros: int) -> None:
    """Make every reservation in the ledger of a stopped daemon older."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        with connection:
            assert connection.execute("UPDATE reservations SET at = at - ?", (micros,)).rowcount
    finally:
        connection.close()


def together(count: int, call: Callable[[int], Said]) -> list[Said]:
    """Call so many at once, and return what each was told."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Said:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# --- the decision


@pytest.mark.parametrize("tool", ["Agent", "Task"])
def test_hard_denies_what_does_not_fit(home: Home, daemon: Daemon, tool: str) -> None:
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    claude = Claude(home)
    Transcript(home.root / "claude", "s1").response("m1", tokens=(5_000, 0, 0, 0))
    assert claude.launch(tool=tool) == SILENT
    said = claude.run("PreToolUse", tool_name=tool, tool_input=launching("fd-safety"))
    assert (said.decision, said.context, said.message) == ("deny", "", "")
    assert said.reason == (
        "fluxbudget: fd-safety does not fit into the budget: estimated at 40 000 billing tokens, 5 000/50 000 (10 %)"
        " spent, 40 000 reserved, 5 000 remaining; raise the budget with"
        f" `fluxbudgetctl run set --run {run} --budget N`, or finish without it"
    )
    assert reserved(home, run) == REVIEW


def test_hard_counts_what_was_just_written(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=50_000, enforcement="hard")
    writer = Transcript(home.root / "claude", "s1")
    writer.response("m1", tokens=(10_000, 0, 0, 0))
    writer.response("m2", tokens=(1, 0, 0, 0))
    assert Claude(home).launch().decision == "deny"


def test_soft_asks_once_the_budget_is_used_up(home: Home, daemon: Daemon) -> None:
    """What merely does not fit is admitted, and reserved; what a person let pass is reserved from its start."""
    run = started(home, session="s1", token_budget=50_000)
    claude = Claude(home)
    assert claude.launch() == claude.launch() == SILENT
    assert reserved(home, run) == 2 * REVIEW
    Transcript(home.root / "claude", "s1").response("m1", tokens=(50_000, 0, 0, 0))
    said = claude.run("PreToolUse", tool_name="Agent", tool_input=launching("fd-safety"))
    assert said.decision == "ask"
    assert said.reason.startswith("fluxbudget: the budget is spent, fd-safety goes beyond it: estimated at 40 000 ")
    assert reserved(home, run) == 2 * REVIEW
    claude.starts("a1", "fd-safety")
    assert reserved(home, run) == 3 * REVIEW


def test_without_a_budget_or_a_run_nobody_is_refused(home: Home, daemon: Daemon) -> None:
    claude = Claude(home)
    assert claude.launch() == SILENT
    run = started(home, token_budget="none", enforcement="hard")
    Transcript(home.root / "claude", "s1").response("m1", tokens=(10**9, 0, 0, 0))
    assert claude.launch() == SILENT
    assert reserved(home, run) == REVIEW
    home.ok("run", "finish", "--run", run)
    assert claude.launch() == SILENT
    assert reserved(home, run) == REVIEW


@pytest.mark.parametrize("tool", ["Bash", "Read", "agent", "AgentOutput", "TaskOutput", "mcp__x__Agent", ""])
def test_other_tools_are_none_of_our_business(home: Home, daemon: Daemon, tool: str) -> None:
    run = started(home, session="s1", token_budget=10, enforcement="hard")
    Transcript(home.root / "claude", "s1").response("m1", tokens=(50, 0, 0, 0))
    assert Claude(home).launch(tool=tool) == SILENT
    assert Claude(home).launch().decision == "deny"
    assert reserved(home, run) == 0


def test_launch_attaches_the_session(home: Home, daemon: Daemon) -> None:
    """Without any hook before it."""
    run = started(home, token_budget=50_000, enforcement="hard")
    Transcript(home.root / "claude", "s7").response("m1", tokens=(20_000, 0, 0, 0))
    assert Claude(home, "s7").launch().decision == "deny"
    assert home.spend(run).spent == 20_000


def kept_reservations(home: Home) -> list[tuple[Any, ...]]:
    """Return what the ledger has of reservations: agent's id, time, end."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        return connection.execute("SELECT agent_id, at, ended_at FROM reservations ORDER BY id").fetchall()


@pytest.mark.parametrize("when", ["while the daemon runs", "at its end"])
def test_ledger_in_somebodys_hands_delays_no_decision(home: Home, interstat: Interstat, when: str) -> None:
    """It is decided, and counts, while nothing can be written; later all of it is in the ledger.

    A launch whose answer came late would be denied with another reason: the hooks give up before the daemon gives up
    the ledger.
    """
    configure(home)
    daemon = home.start()
    run = started(home, session="s1", token_budget=2 * REVIEW + 20_000, enforcement="hard")
    claude = Claude(home)
    claude.call("SessionStart", source="startup")
    require_quiet(home)
    raw = json.dumps(claude.given("PreToolUse", tool_name="Agent", tool_input=launching("fd-quality"))).encode()
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        closed = {"FLUXBUDGET_FAIL_CLOSED": "1"}
        said = [
            understood("PreToolUse", claude.printed(raw, environ=closed, seconds="1.5")).reason.partition(":")[2][:35]
            for _ in range(5)
        ]
        assert said == ["", "", *3 * [" fd-quality does not fit into the b"]]
        assert kept_reservations(home) == []
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: len(kept_reservations(home)) == 2, "the reservations to be on disk")
    assert daemon.stop() == 0
    assert len(kept_reservations(home)) == 2
    home.start()
    assert reserved(home, run) == 2 * REVIEW


def test_reservation_that_could_not_be_written_is_written_later(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1_000_000)
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert Claude(home).launch() == SILENT
        wait_for(lambda: '"what": "reservations"' in daemon.log, "the ledger to be missed")
        assert kept_reservations(home) == []
        other.execute("ROLLBACK")
    wait_for(lambda: len(kept_reservations(home)) == 1, "the reservation to be on disk")


def test_admission_that_nobody_has_heard_of_is_taken_back(home: Home, daemon: Daemon) -> None:
    """The hook has given up, and gone: whoever starts the sub-agent all the same is reserved for then."""
    run = started(home, session="s1", token_budget=1_000_000)
    claude = Claude(home)
    raw = json.dumps(claude.given("PreToolUse", tool_name="Agent", tool_input=launching("fd-quality"))).encode()
    daemon.signal(signal.SIGSTOP)
    assert claude.printed(raw, seconds="0.3") == ""
    daemon.signal(signal.SIGCONT)
    wait_for(lambda: [ended for _, _, ended in kept_reservations(home) if ended], "the admission to be taken back")
    assert reserved(home, run) == 0
    claude.starts("a1")
    assert reserved(home, run) == REVIEW


def test_launch_that_is_asked_about_twice_is_reserved_once(home: Home, interstat: Interstat) -> None:
    """Also over a restart; another one of the same kind is another one."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=2 * REVIEW, enforcement="hard")
    claude = Claude(home)

    def launch(call: str) -> str:
        return claude.call(
            "PreToolUse", tool_name="Agent", tool_use_id=call, tool_input=launching("fd-quality")
        ).decision

    assert [launch("t1"), launch("t1")] == ["", ""]
    assert reserved(home, run) == REVIEW
    daemon.stop()
    home.start()
    assert [launch("t1"), launch("t2"), launch("t2"), launch("t3")] == ["", "", "", "deny"]
    assert reserved(home, run) == 2 * REVIEW


# --- estimates


@pytest.mark.parametrize(
    ("agent", "estimate"),
    [
        ("fd-quality", REVIEW), ("interflux:fd-quality", REVIEW), ("fd-systems", 35_000), ("best-researcher", RESEARCH),
        ("oracle-x", ORACLE), ("anything", GENERATED), (None, GENERATED),
    ],
)  # fmt: skip
def test_estimate_by_category(home: Home, daemon: Daemon, agent: str | None, estimate: int) -> None:
    run = started(home, session="s1")
    Claude(home).launch(agent)
    assert reserved(home, run) == estimate


@pytest.mark.parametrize(("basis", "estimate"), [("billing", 2_000), ("total", 9_000)])
def test_estimate_by_what_the_agent_has_cost(
    home: Home, interstat: Interstat, daemon: Daemon, basis: str, estimate: int
) -> None:
    """From three rows on, with or without the plugin's prefix; fewer say nothing."""
    for number in range(3):
        run = started(home, id=f"r{number}", session=f"s{number}", cost_basis=basis)
        if number == 2:
            wait_for(lambda: _estimates(home)["fd-quality"].sample_size == 3, "the agents' history to be read")
        Claude(home, f"s{number}").launch("interflux:fd-quality")
        assert reserved(home, run) == (estimate if number == 2 else REVIEW)
        rows = 1 if number == 0 else 2
        for _ in range(rows):
            interstat.insert(
                "old", input_tokens=1_500, output_tokens=500, cache_read_tokens=7_000, cache_creation_tokens=0,
                total_tokens=9_000, model="claude-opus-4-6",
            )  # fmt: skip


def _estimates(home: Home) -> Any:
    answer = home.ask(messages.Estimates(wait_ms=30_000))
    assert isinstance(answer, messages.EstimatesAnswer), answer
    return answer.estimates


def test_estimate_of_the_project(home: Home, daemon: Daemon) -> None:
    """Its file counts at once; a broken one is passed over."""
    file = home.project / ".claude" / "flux-drive-budget.yaml"
    file.parent.mkdir()
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    file.write_text("agent_defaults:\n  review: 12345\n")
    claude = Claude(home)
    assert claude.launch() == SILENT
    assert reserved(home, run) == 12_345
    file.write_text("agent_defaults: [broken\n")
    assert claude.launch().decision == "deny"
    file.write_text("agent_defaults:\n  review: -5\n")
    assert "estimated at 40 000 " in claude.launch().reason
    file.write_text("agent_defaults:\n  review: 37655\n")
    assert claude.launch() == SILENT
    assert reserved(home, run) == 50_000


# --- many at once


@pytest.mark.parametrize("processes", [False, True])
def test_ten_at_once_into_a_gap_for_three(home: Home, daemon: Daemon, processes: bool) -> None:
    run = started(home, token_budget=3 * REVIEW + 39_999, enforcement="hard")
    for session in ("s1", "s2"):
        home.ok("run", "attach", "--run", run, "--session", session)

    def launch(number: int) -> Said:
        claude = Claude(home, f"s{1 + number % 2}")
        if processes:
            return claude.run("PreToolUse", tool_name="Agent", tool_input=launching("fd-quality"))
        return claude.launch()

    decisions = [said.decision for said in together(10, launch)]
    assert sorted(decisions) == [""] * 3 + ["deny"] * 7
    assert reserved(home, run) == 3 * REVIEW


def test_reserved_is_shown(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=100_000)
    Claude(home).launch()
    Transcript(home.root / "claude", "s1").response("m1", tokens=(5_000, 0, 0, 0))
    assert home.ok("remaining", "--run", run) == "55000"
    spend = home.json("remaining", "--run", run)
    assert (spend["spent"], spend["reserved"], spend["remaining"]) == (5_000, REVIEW, 55_000)
    assert home.json("status")["runs"][0]["spend"]["reserved"] == REVIEW
    assert home.json("run", "show", "--run", run)["spend"]["reserved"] == REVIEW
    head, line = home.ok("status").splitlines()
    assert dict(zip(head.split(), line.split(), strict=False))["RESERVED"] == str(REVIEW)
    shown = [one.split()[:2] for one in home.ok("run", "show", "--run", run).splitlines()]
    assert ["reserved:", str(REVIEW)] in shown
    assert "40 000 reserved" in Claude(home).call("SessionStart").context


def test_reserved_is_not_spent(home: Home, daemon: Daemon) -> None:
    """It warns nobody, and passes every check."""
    run = started(home, session="s1", token_budget=REVIEW)
    claude = Claude(home)
    claude.launch()
    assert home.spend(run).remaining == 0
    assert claude.call("UserPromptSubmit") == SILENT
    assert home.ctl("check", "--run", run).returncode == 0


# --- the end of a reservation


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("deeper", [(), ("a", "b")])
def test_it_ends_when_the_sub_agent_is_measured(
    home: Home, daemon: Daemon, named: bool, deeper: tuple[str, ...]
) -> None:
    """Known by its id, or by its kind; its transcript alone, and another kind's usage, end nothing."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("interflux:fd-quality")
    if named:
        claude.starts("a1", "interflux:fd-quality")
    assert reserved(home, run) == REVIEW
    writer = Transcript(home.root / "claude", "s1").agent("a1", *deeper)
    writer.meta(agentType="fd-quality")
    writer.line(b'{"type":"user","isSidechain":true}\n')
    measures(home, "s1", "other", "fd-safety")
    assert reserved(home, run) == REVIEW
    writer.response("m1", tokens=(100, 0, 0, 0), at=now())
    assert reserved(home, run) == 0
    assert home.spend(run).spent == 200


def test_it_ends_with_a_row_of_interstats(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """When the session has no transcripts; the row is there before its tokens are."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    interstat.insert("s2", "fd-quality")
    interstat.insert("s1", "fd-safety")
    interstat.insert("s1", "main-session", input_tokens=5, output_tokens=5)
    assert reserved(home, run) == REVIEW
    interstat.insert("s1", "interflux:fd-quality")
    assert reserved(home, run) == 0


def test_what_was_measured_before_is_anothers(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    measures(home, "s1", "old")
    interstat.insert("s2", "fd-quality", input_tokens=10, output_tokens=0)
    for session in ("s1", "s2"):
        Claude(home, session).launch()
    assert reserved(home, run) == 2 * REVIEW


@pytest.mark.parametrize("started_with_id", [True, False])
@pytest.mark.parametrize("stopped_with_id", [True, False])
def test_it_ends_with_the_sub_agent(home: Home, daemon: Daemon, started_with_id: bool, stopped_with_id: bool) -> None:
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    if started_with_id:
        claude.starts("a1")
    claude.stops("a1" if stopped_with_id else None, "fd-safety")
    expected = 0 if started_with_id and stopped_with_id else REVIEW  # an id says it, whatever the kind
    assert reserved(home, run) == expected
    claude.stops("a1" if stopped_with_id else None, "interflux:fd-quality")
    assert reserved(home, run) == 0


def test_it_ends_with_the_session(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    for session in ("s1", "s1", "s2"):
        Claude(home, session).launch()
    assert Claude(home).run("SessionEnd", reason="logout") == SILENT
    assert reserved(home, run) == REVIEW


def test_a_hundred_end_with_their_session(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget="none")
    claude = Claude(home)
    for number in range(100):
        claude.launch()
        if number % 2:
            claude.starts(f"a{number}")
    assert reserved(home, run) == 100 * REVIEW
    claude.call("SessionEnd", reason="other")
    assert reserved(home, run) == 0


def test_end_of_a_sub_agent_that_nobody_knows_ends_no_other(home: Home, daemon: Daemon) -> None:
    """Claude Code has sub-agents of its own, without a type; only one of the same type may be meant."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.launch()
    claude.starts("a1")
    for agent in ("", "fd-safety"):
        claude.stops("internal-1", agent)
        assert reserved(home, run) == 2 * REVIEW, agent
    claude.stops("a2")
    assert reserved(home, run) == REVIEW
    claude.stops("a3")
    assert reserved(home, run) == REVIEW


def test_reservation_of_the_future_lasts_no_longer_than_others(home: Home, interstat: Interstat) -> None:
    """The clock was set back: it ends half an hour after that was noticed."""
    daemon = home.start()
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    daemon.stop()
    age_reservations(home, -48 * HALF_AN_HOUR)
    daemon = home.start()
    assert reserved(home, run) == REVIEW
    claude.starts("a1")
    wait_for(lambda: kept_reservations(home)[0][0] == "a1", "its start to be on disk")
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR)
    home.start()
    assert reserved(home, run) == 0


def test_it_ends_after_half_an_hour(home: Home, interstat: Interstat) -> None:
    """While the daemon is not there, too."""
    daemon = home.start()
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR - 60_000_000)
    daemon = home.start()
    claude.launch("oracle")
    assert reserved(home, run) == REVIEW + ORACLE
    daemon.stop()
    age_reservations(home, 61_000_000)
    home.start()
    assert reserved(home, run) == ORACLE


def test_its_time_ends_it_without_any_question(home: Home, interstat: Interstat) -> None:
    """The run's state file says so."""
    daemon = home.start()
    run = started(home, session="s1")
    Claude(home).launch()
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR - 3_000_000)
    home.start()
    place = home.socket.parent / "state" / "runs" / run

    def is_shown() -> bool:
        return place.exists() and "reserved=0" in place.read_text().splitlines()

    wait_for(is_shown, "the reservation to end with its time")


@pytest.mark.parametrize("killed", [False, True])
def test_it_survives_a_restart(home: Home, interstat: Interstat, killed: bool) -> None:
    """With what is known of it: its id, its end, its measurement."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=3 * REVIEW, enforcement="hard")
    claude = Claude(home)
    assert claude.launch() == claude.launch() == claude.launch() == SILENT
    claude.starts("a1")
    claude.starts("a2")
    claude.stops("a2")
    measures(home, "s1", "a1", tokens=10)
    assert reserved(home, run) == REVIEW
    if killed:
        daemon.kill()
    else:
        daemon.stop()
    home.start()
    assert reserved(home, run) == REVIEW
    assert claude.launch() == SILENT
    assert claude.launch().decision == "deny"
    claude.starts("a3")
    claude.stops("a2")
    claude.stops("a1")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a3")
    assert reserved(home, run) == REVIEW


# --- starts


def test_start_without_an_admission_is_reserved(home: Home, daemon: Daemon) -> None:
    """Once, however often it is told; none of an ended run, none without a run."""
    run = started(home, session="s1", token_budget=10, enforcement="hard")
    claude = Claude(home)
    for _ in range(3):
        claude.starts("a1")
        assert reserved(home, run) == REVIEW
    claude.starts("a2", "oracle")
    assert reserved(home, run) == REVIEW + ORACLE
    claude.stops("a1")
    claude.starts("a1")
    assert reserved(home, run) == ORACLE
    home.ok("run", "finish", "--run", run)
    claude.starts("a3")
    assert reserved(home, run) == ORACLE
    assert Claude(home, "s9").starts("a4") == SILENT


def test_starts_take_the_admissions_of_their_kind(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    claude = Claude(home)
    for agent in ("fd-quality", "oracle", "fd-quality"):
        claude.launch(agent)
    for agent_id, agent in (("a1", "oracle"), ("a2", "interflux:fd-quality"), ("a3", "fd-quality")):
        claude.starts(agent_id, agent)
    assert reserved(home, run) == 2 * REVIEW + ORACLE
    claude.stops("a1", "oracle")
    assert reserved(home, run) == 2 * REVIEW
    claude.starts("a4", "fd-quality")
    assert reserved(home, run) == 3 * REVIEW


def test_launch_without_a_kind_may_start_under_any_name(home: Home, daemon: Daemon) -> None:
    """It is one sub-agent, reserved once, and ends as what it started as; of several it cannot be told which it is."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch(None)
    claude.starts("f1", "fork")
    assert reserved(home, run) == GENERATED
    claude.stops(None, "general-purpose")
    assert reserved(home, run) == GENERATED
    claude.stops(None, "fork")
    assert reserved(home, run) == 0
    claude.launch("fd-quality")
    claude.starts("f2", "fork")
    assert reserved(home, run) == REVIEW + GENERATED


def test_parallel_sub_agents_of_one_kind_are_told_apart(home: Home, daemon: Daemon) -> None:
    """What is measured of one, before and after its end, ends no other's."""
    run = started(home, session="s1")
    claude = Claude(home)
    for _ in range(3):
        claude.launch()
    for agent_id in ("a1", "a2", "a3"):
        claude.starts(agent_id)
    measures(home, "s1", "a3")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a3")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a2")
    measures(home, "s1", "a2")
    assert reserved(home, run) == REVIEW
    claude.launch()
    measures(home, "s1", "a1")
    assert reserved(home, run) == REVIEW


def test_parallel_starts_and_stops(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    assert set(together(12, lambda _: Claude(home).launch())) == {SILENT}
    assert reserved(home, run) == 12 * REVIEW
    together(24, lambda number: Claude(home).starts(f"a{number % 12}"))
    assert reserved(home, run) == 12 * REVIEW
    together(20, lambda number: Claude(home).stops(f"a{number % 10}"))
    assert reserved(home, run) == 2 * REVIEW


def test_end_of_a_measured_one_without_a_known_id_ends_no_other(home: Home, daemon: Daemon) -> None:
    """Without the hook of SubagentStart nobody says which id was admitted by which reservation."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.launch()
    measures(home, "s1", "a1")
    assert reserved(home, run) == REVIEW
    claude.stops("a1")
    assert reserved(home, run) == REVIEW


def test_row_of_an_ended_one_ends_no_other(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row has no id: it is rather of the one that has ended than of the one that is running."""
    run = started(home, session="s1")
    claude = Claude(home)
    for agent_id in ("a1", "a2"):
        claude.launch()
        claude.starts(agent_id)
    claude.stops("a2")
    assert reserved(home, run) == REVIEW
    interstat.insert("s1", "fd-quality")
    assert reserved(home, run) == REVIEW


def test_start_that_is_told_after_the_first_usage(home: Home, daemon: Daemon) -> None:
    """It has been reserved, and measured: nothing is left of it."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    measures(home, "s1", "a1")
    assert reserved(home, run) == 0
    claude.starts("a1")
    claude.stops("a1")
    assert reserved(home, run) == 0


# --- what is kept in memory


def watched(service: Service) -> set[str]:
    """Return the sessions of which it is remembered what is measured."""
    return service.totals.instances.watched


async def launched(service: Service, run: str, session: str) -> str:
    admitted = await service.admission.admit(service.accounts.runs[run], session, "fd-quality", REVIEW, None)
    return admitted.admission.decision


def test_denied_sessions_leave_nothing_behind(tmp_path: Path) -> None:
    """A session without reservations is looked at no more; one that has some is, whatever it is denied besides."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            asked = messages.RunStart(project_dir="/p", id="r", token_budget=REVIEW, enforcement="hard")
            await service.lifecycle.start(asked, within(10))
            assert await launched(service, "r", "s1") == "allow"
            assert await launched(service, "r", "s1") == "deny"
            for session in (f"x{number}" for number in range(20)):
                assert await launched(service, "r", session) == "deny"
                assert watched(service) == {"s1"}
                await service.admission.start(None, session, "fd-quality", "a1", REVIEW)
                await service.admission.stop(session, "fd-quality", "a1")
                await service.admission.end_session(session)
            assert watched(service) == {"s1"}

    anyio.run(body)


def test_old_reservations_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time has passed in which something of theirs may still be measured."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            await service.lifecycle.start(messages.RunStart(project_dir="/p", id="r"), within(10))
            monkeypatch.setattr(reservations, "KEPT", 0)  # an hour cannot be waited for
            for session in ("s1", "s2"):
                assert await launched(service, "r", session) == "allow"
            with anyio.fail_after(30):
                while watched(service):  # noqa: ASYNC110  it is seen from outside
                    await anyio.sleep(0.005)
                while await service.ledger.reservations.all():  # noqa: ASYNC110  likewise
                    await anyio.sleep(0.005)

    anyio.run(body)


# --- everything together


class SubAgent:
    """One sub-agent as it really was; the model of what is reserved has no other rule than `counts`."""

    def __init__(self, session: str, agent: str, agent_id: str, tokens: int) -> None:
        self.session, self.agent, self.agent_id, self.tokens = session, agent, agent_id, tokens
        self.started = self.measured = self.ended = False

    @property
    def counts(self) -> int:
        return 0 if self.measured or self.ended else self.tokens


class History:
    """Sub-agents of two sessions: one has transcripts and ids, the other only rows, and no ids."""

    BUDGET = 300_000
    KINDS = (("fd-quality", REVIEW), ("interflux:fd-quality", REVIEW), ("x-analyst", RESEARCH))

    def __init__(self, home: Home, interstat: Interstat, seed: int) -> None:
        self.home, self.interstat = home, interstat
        self.chance = random.Random(seed)
        self.daemon = home.start()
        self.run = started(home, session="ids", token_budget=self.BUDGET, enforcement="hard")
        home.ok("run", "attach", "--run", self.run, "--session", "rows")
        Transcript(home.root / "claude", "ids").response("m0", tokens=(0, 1, 0, 0), at=now())
        self.everybody: list[SubAgent] = []
        self.spent = 1
        self.deeds = (
            self.admit, self.admit, self.start, self.start, self.start_again, self.start_unasked, self.measure,
            self.stop, self.stop, self.stop, self.end, self.restart,
        )  # fmt: skip

    @property
    def reserved(self) -> int:
        return sum(one.counts for one in self.everybody)

    def living(self, session: str) -> list[SubAgent]:
        return [one for one in self.everybody if one.session == session and not one.ended]

    def one(self, session: str, *, is_started: bool) -> SubAgent | None:
        """Return any living sub-agent of a session that has started, or has not."""
        found = [one for one in self.living(session) if one.started == is_started]
        return self.chance.choice(found) if found else None

    def new(self, session: str, agent: str, tokens: int) -> SubAgent:
        self.everybody.append(SubAgent(session, agent, f"a{len(self.everybody)}", tokens))
        return self.everybody[-1]

    def admit(self) -> None:
        session = self.chance.choice(["ids", "rows"])
        agent, tokens = self.chance.choice(self.KINDS)
        fits = tokens <= self.BUDGET - self.spent - self.reserved
        assert Claude(self.home, session).launch(agent).decision == ("" if fits else "deny")
        if fits:
            self.new(session, agent, tokens)

    def start(self) -> None:
        if one := self.one("ids", is_started=False):
            Claude(self.home, "ids").starts(one.agent_id, one.agent)
            one.started = True

    def start_again(self) -> None:
        if one := self.one("ids", is_started=True):
            Claude(self.home, "ids").starts(one.agent_id, one.agent)

    def start_unasked(self) -> None:
        if self.one("ids", is_started=False) is None:  # else it would be taken for that one
            one = self.new("ids", *self.chance.choice(self.KINDS))
            Claude(self.home, "ids").starts(one.agent_id, one.agent)
            one.started = True

    def measure(self) -> None:
        if one := self.one("ids", is_started=True):
            self.transcribe(one)

    def transcribe(self, one: SubAgent) -> None:
        if not one.measured:
            measures(self.home, "ids", one.agent_id, one.agent, tokens=10)
            one.measured = True
            self.spent += 10

    def stop(self) -> None:
        session = self.chance.choice(["ids", "rows"])
        one = self.one(session, is_started=session == "ids")
        if one is None:
            return
        one.ended = True
        if session == "rows":
            Claude(self.home, "rows").stops(None, one.agent)
            self.interstat.insert("rows", one.agent, input_tokens=10, output_tokens=0)
            self.spent += 10
        else:
            Claude(self.home, "ids").stops(one.agent_id, one.agent)
            if self.chance.random() < 0.5:
                self.transcribe(one)

    def end(self) -> None:
        if self.chance.random() < 0.2:
            session = self.chance.choice(["ids", "rows"])
            Claude(self.home, session).call("SessionEnd", reason="other")
            for one in self.living(session):
                one.ended = True

    def restart(self) -> None:
        if self.chance.random() < 0.3:
            self.chance.choice([self.daemon.kill, self.daemon.stop])()
            self.daemon = self.home.start()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_history(home: Home, interstat: Interstat, seed: int) -> None:
    """Reserved is what those sub-agents were expected to cost that are neither measured nor ended.

    Whatever fits besides is admitted, and nothing else. The daemon is stopped and killed in between.
    """
    history = History(home, interstat, seed)
    for step in range(150):
        deed = history.chance.choice(history.deeds)
        deed()
        found = home.spend(history.run)
        assert (found.spent, found.reserved) == (history.spent, history.reserved), (step, deed.__name__)
        assert found.remaining == max(0, history.BUDGET - history.spent - history.reserved)
    assert len(history.everybody) > 20
