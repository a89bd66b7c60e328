"""The daemon admits, denies or asks before a sub-agent starts, and reserves what it is expected to cost."""

import json
import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.admission import (
    GENERATED,
    ORACLE,
    RESEARCH,
    REVIEW,
    concurrently,
    reserved,
    stored_reservations,
)
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import configure, wait_until_delivered
from harness.hooks import SILENT, Claude, HookOutput, attached_sessions, launch_input, parse_output
from harness.interstat import Interstat
from harness.suspend import suspend
from harness.transcripts import Transcript

# --- the decision


@pytest.mark.parametrize("tool", ["Agent", "Task"])
def test_hard_enforcement_denies_what_does_not_fit(home: Home, daemon: Daemon, tool: str) -> None:
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    claude = Claude(home)
    Transcript(home.root / "claude", "s1").response("m1", tokens=(5_000, 0, 0, 0))
    assert claude.launch(tool=tool) == SILENT
    output = claude.run("PreToolUse", tool_name=tool, tool_input=launch_input("fd-safety"))
    assert (output.decision, output.context) == ("deny", "")
    assert output.reason == (
        f"fluxbudget: fd-safety does not fit into the budget of run {run}: estimated at 40 000 billing tokens,"
        " 5 000 of 50 000 billing tokens spent, 40 000 reserved; finish without it"
    )
    assert f"`fluxbudgetctl run set --run {run} --budget N`" in output.message
    assert reserved(home, run) == REVIEW


def test_hard_enforcement_counts_usage_written_just_before(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=50_000, enforcement="hard")
    writer = Transcript(home.root / "claude", "s1")
    writer.response("m1", tokens=(10_000, 0, 0, 0))
    writer.response("m2", tokens=(1, 0, 0, 0))
    assert Claude(home).launch().decision == "deny"


def test_soft_enforcement_asks_once_the_budget_is_spent(home: Home, daemon: Daemon) -> None:
    """Before that, it admits and reserves. A sub-agent that the user allows is reserved when it starts."""
    run = started(home, session="s1", token_budget=50_000)
    claude = Claude(home)
    assert claude.launch() == claude.launch() == SILENT
    assert reserved(home, run) == 2 * REVIEW
    Transcript(home.root / "claude", "s1").response("m1", tokens=(50_000, 0, 0, 0))
    interactive = {"CLAUDE_CODE_ENTRYPOINT": "cli"}
    output = claude.run("PreToolUse", environ=interactive, tool_name="Agent", tool_input=launch_input("fd-safety"))
    assert output.decision == "ask"
    assert output.reason.startswith(f"fluxbudget: the budget of run {run} is exceeded, and fd-safety adds to it: ")
    assert reserved(home, run) == 2 * REVIEW
    claude.starts("a1", "fd-safety")
    assert reserved(home, run) == 3 * REVIEW


def test_launch_without_a_budget_or_a_run_is_allowed(home: Home, daemon: Daemon) -> None:
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
def test_other_tools_are_ignored(home: Home, daemon: Daemon, tool: str) -> None:
    run = started(home, session="s1", token_budget=10, enforcement="hard")
    Transcript(home.root / "claude", "s1").response("m1", tokens=(50, 0, 0, 0))
    assert Claude(home).launch(tool=tool) == SILENT
    assert Claude(home).launch().decision == "deny"
    assert reserved(home, run) == 0


def test_launch_attaches_the_session(home: Home, daemon: Daemon) -> None:
    """No other hook has to run first."""
    run = started(home, token_budget=50_000, enforcement="hard")
    Transcript(home.root / "claude", "s7").response("m1", tokens=(20_000, 0, 0, 0))
    assert Claude(home, "s7").launch().decision == "deny"
    assert home.spend(run).spent == 20_000


@pytest.mark.parametrize("when", ["while the daemon runs", "at its end"])
def test_locked_ledger_does_not_delay_the_decision(home: Home, interstat: Interstat, when: str) -> None:
    """Decisions count at once and are written later.

    A late answer would show up as a different reason, because the hook times out before the daemon stops waiting for
    the ledger.
    """
    configure(home)
    daemon = home.start()
    run = started(home, session="s1", token_budget=2 * REVIEW + 20_000, enforcement="hard")
    claude = Claude(home)
    claude.call("SessionStart", source="startup")
    wait_until_delivered(home)
    raw = json.dumps(claude.hook_input("PreToolUse", tool_name="Agent", tool_input=launch_input("fd-quality"))).encode()
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        closed = {"FLUXBUDGET_FAIL_CLOSED": "1"}
        output = [
            parse_output("PreToolUse", claude.run_raw(raw, environ=closed, seconds="1.5")).reason.partition(":")[2][:35]
            for _ in range(5)
        ]
        assert output == ["", "", *3 * [" fd-quality does not fit into the b"]]
        assert stored_reservations(home) == []
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: len(stored_reservations(home)) == 2, "the reservations to be on disk")
    assert daemon.stop() == 0
    assert len(stored_reservations(home)) == 2
    home.start()
    assert reserved(home, run) == 2 * REVIEW


def test_reservation_is_written_after_the_ledger_is_unlocked(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1_000_000)
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert Claude(home).launch() == SILENT
        wait_for(lambda: '"records": "reservations"' in daemon.log, "the daemon to report the locked ledger")
        assert stored_reservations(home) == []
        other.execute("ROLLBACK")
    wait_for(lambda: len(stored_reservations(home)) == 1, "the reservation to be on disk")


def test_admission_whose_hook_gave_up_is_withdrawn(home: Home, daemon: Daemon) -> None:
    """If the sub-agent starts anyway, it is reserved at that point."""
    run = started(home, token_budget=1_000_000)
    claude = Claude(home)
    raw = json.dumps(claude.hook_input("PreToolUse", tool_name="Agent", tool_input=launch_input("oracle"))).encode()
    suspend(daemon.process.pid)
    assert claude.run_raw(raw, seconds="0.3") == ""
    daemon.signal(signal.SIGCONT)
    wait_for(lambda: attached_sessions(home, run).get("s1"), "the launch to be handled")
    claude.starts("a1", "fd-quality")
    wait_for(lambda: reserved(home, run) == REVIEW, "the admission to be withdrawn")


def test_launch_is_reserved_once_for_repeated_hooks(home: Home, interstat: Interstat) -> None:
    """A restart makes no difference. Another tool use of the same type is reserved separately."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=2 * REVIEW, enforcement="hard")
    claude = Claude(home)

    def launch(call: str) -> str:
        return claude.call(
            "PreToolUse", tool_name="Agent", tool_use_id=call, tool_input=launch_input("fd-quality")
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
def test_estimate_from_the_agents_history(
    home: Home, interstat: Interstat, daemon: Daemon, basis: str, estimate: int
) -> None:
    """Three rows are enough, with or without the plugin's prefix; fewer are ignored."""
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


def test_estimate_from_the_projects_file(home: Home, daemon: Daemon) -> None:
    """Changes to the file take effect at once. While it is broken, its last good version counts."""
    file = home.project / ".claude" / "flux-drive-budget.yaml"
    file.parent.mkdir()
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    claude = Claude(home)
    file.write_text("agent_defaults:\n  review: 50001\n")
    assert "estimated at 50 001 " in claude.launch().reason
    file.write_text("agent_defaults: [broken\n")
    assert "estimated at 50 001 " in claude.launch().reason
    file.write_text("agent_defaults:\n  review: -5\n")
    assert "estimated at 50 001 " in claude.launch().reason
    file.write_text("agent_defaults:\n  review: 12345\n")
    assert claude.launch() == SILENT
    assert reserved(home, run) == 12_345
    file.unlink()
    assert "estimated at 40 000 " in claude.launch().reason


# --- concurrent launches, and what is shown


@pytest.mark.parametrize("processes", [False, True])
def test_three_of_ten_concurrent_launches_fit(home: Home, daemon: Daemon, processes: bool) -> None:
    run = started(home, token_budget=3 * REVIEW + 39_999, enforcement="hard")
    for session in ("s1", "s2"):
        home.ok("run", "attach", "--run", run, "--session", session)

    def launch(number: int) -> HookOutput:
        claude = Claude(home, f"s{1 + number % 2}")
        if processes:
            return claude.run("PreToolUse", tool_name="Agent", tool_input=launch_input("fd-quality"))
        return claude.launch()

    decisions = [output.decision for output in concurrently(10, launch)]
    assert sorted(decisions) == [""] * 3 + ["deny"] * 7
    assert reserved(home, run) == 3 * REVIEW


def test_reserved_tokens_are_shown(home: Home, daemon: Daemon) -> None:
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


def test_reserved_tokens_are_not_spent(home: Home, daemon: Daemon) -> None:
    """They pass no threshold and do not make a check fail."""
    run = started(home, session="s1", token_budget=REVIEW)
    claude = Claude(home)
    claude.launch()
    assert home.spend(run).remaining == 0
    assert claude.call("UserPromptSubmit") == SILENT
    assert home.ctl("check", "--run", run).returncode == 0
