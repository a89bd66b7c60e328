"""A reservation counts until its sub-agent is measured, ends, or half an hour passes."""

import pytest

from harness.admission import (
    GENERATED,
    HALF_AN_HOUR,
    ORACLE,
    REVIEW,
    age_reservations,
    concurrently,
    reserved,
    stored_reservations,
    write_agent_usage,
)
from harness.daemon import Daemon, Home, started, wait_for
from harness.hooks import SILENT, Claude
from harness.interstat import Interstat
from harness.transcripts import Transcript, timestamp

# --- the end of a reservation


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("deeper", [(), ("a", "b")])
def test_reservation_ends_with_the_sub_agents_first_usage(
    home: Home, daemon: Daemon, named: bool, deeper: tuple[str, ...]
) -> None:
    """It is matched by id, or else by type. A transcript without usage, or usage of another type, ends nothing."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("interflux:fd-quality")
    if named:
        claude.starts("a1", "interflux:fd-quality")
    assert reserved(home, run) == REVIEW
    writer = Transcript(home.root / "claude", "s1").agent("a1", *deeper)
    writer.meta(agentType="fd-quality")
    writer.line(b'{"type":"user","isSidechain":true}\n')
    write_agent_usage(home, "s1", "other", "fd-safety")
    assert reserved(home, run) == REVIEW
    writer.response("m1", tokens=(100, 0, 0, 0), at=timestamp())
    assert reserved(home, run) == 0
    assert home.spend(run).spent == 200


def test_reservation_ends_with_a_row_of_interstat(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """This is for sessions without transcripts. The row appears before its tokens do."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    interstat.insert("s2", "fd-quality")
    interstat.insert("s1", "fd-safety")
    interstat.insert("s1", "main-session", input_tokens=5, output_tokens=5)
    assert reserved(home, run) == REVIEW
    interstat.insert("s1", "interflux:fd-quality")
    assert reserved(home, run) == 0


def test_usage_before_the_launch_ends_no_reservation(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    write_agent_usage(home, "s1", "old")
    interstat.insert("s2", "fd-quality", input_tokens=10, output_tokens=0)
    for session in ("s1", "s2"):
        Claude(home, session).launch()
    assert reserved(home, run) == 2 * REVIEW


@pytest.mark.parametrize("started_with_id", [True, False])
@pytest.mark.parametrize("stopped_with_id", [True, False])
def test_reservation_ends_with_its_sub_agent(
    home: Home, daemon: Daemon, started_with_id: bool, stopped_with_id: bool
) -> None:
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    if started_with_id:
        claude.starts("a1")
    claude.stops("a1" if stopped_with_id else None, "fd-safety")
    expected = 0 if started_with_id and stopped_with_id else REVIEW  # if there are ids, they decide, whatever the type
    assert reserved(home, run) == expected
    claude.stops("a1" if stopped_with_id else None, "interflux:fd-quality")
    assert reserved(home, run) == 0


def test_reservation_ends_with_its_session(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    for session in ("s1", "s1", "s2"):
        Claude(home, session).launch()
    assert Claude(home).run("SessionEnd", reason="logout") == SILENT
    assert reserved(home, run) == REVIEW


def test_a_hundred_reservations_end_with_their_session(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget="none")
    claude = Claude(home)
    for number in range(100):
        claude.launch()
        if number % 2:
            claude.starts(f"a{number}")
    assert reserved(home, run) == 100 * REVIEW
    claude.call("SessionEnd", reason="other")
    assert reserved(home, run) == 0


def test_end_of_an_unknown_sub_agent_ends_no_other(home: Home, daemon: Daemon) -> None:
    """Claude Code has internal sub-agents without a type. An unknown id can only match the same type."""
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


def test_reservation_with_a_time_in_the_future_expires(home: Home, interstat: Interstat) -> None:
    """After the clock was set back, it expires half an hour after the daemon notices."""
    daemon = home.start()
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    daemon.stop()
    age_reservations(home, -48 * HALF_AN_HOUR)
    daemon = home.start()
    assert reserved(home, run) == REVIEW
    claude.starts("a1")
    wait_for(lambda: stored_reservations(home)[0][0] == "a1", "the agent's start to be on disk")
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR)
    home.start()
    assert reserved(home, run) == 0


def test_reservation_expires_after_half_an_hour(home: Home, interstat: Interstat) -> None:
    """Time also passes while the daemon is not running."""
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


def test_expiry_needs_no_request(home: Home, interstat: Interstat) -> None:
    """The run's state file changes by itself."""
    daemon = home.start()
    run = started(home, session="s1")
    Claude(home).launch()
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR - 3_000_000)
    home.start()
    place = home.socket.parent / "state" / "runs" / run

    def is_shown() -> bool:
        return place.exists() and "reserved=0" in place.read_text().splitlines()

    wait_for(is_shown, "the reservation to expire")


@pytest.mark.parametrize("killed", [False, True])
def test_reservation_survives_a_restart(home: Home, interstat: Interstat, killed: bool) -> None:
    """It keeps the agent's id, its end, and whether its usage was seen."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=3 * REVIEW, enforcement="hard")
    claude = Claude(home)
    assert claude.launch() == claude.launch() == claude.launch() == SILENT
    claude.starts("a1")
    claude.starts("a2")
    claude.stops("a2")
    write_agent_usage(home, "s1", "a1", tokens=10)
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


def test_start_without_an_admission_makes_a_reservation(home: Home, daemon: Daemon) -> None:
    """Repeated hooks make only one. An ended run, or no run, makes none."""
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


def test_starts_use_the_admissions_of_their_type(home: Home, daemon: Daemon) -> None:
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


def test_launch_without_a_type_may_start_as_any_type(home: Home, daemon: Daemon) -> None:
    """It is reserved once and ends as the type that it started as. A launch with a type is not matched this way."""
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


def test_parallel_sub_agents_of_one_type_are_told_apart(home: Home, daemon: Daemon) -> None:
    """The usage of one, before or after its end, does not end another's reservation."""
    run = started(home, session="s1")
    claude = Claude(home)
    for _ in range(3):
        claude.launch()
    for agent_id in ("a1", "a2", "a3"):
        claude.starts(agent_id)
    write_agent_usage(home, "s1", "a3")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a3")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a2")
    write_agent_usage(home, "s1", "a2")
    assert reserved(home, run) == REVIEW
    claude.launch()
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == REVIEW


def test_parallel_starts_and_stops(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    assert set(concurrently(12, lambda _: Claude(home).launch())) == {SILENT}
    assert reserved(home, run) == 12 * REVIEW
    concurrently(24, lambda number: Claude(home).starts(f"a{number % 12}"))
    assert reserved(home, run) == 12 * REVIEW
    concurrently(20, lambda number: Claude(home).stops(f"a{number % 10}"))
    assert reserved(home, run) == 2 * REVIEW


def test_end_after_the_usage_of_an_unknown_id_ends_no_other(home: Home, daemon: Daemon) -> None:
    """Without a SubagentStart hook the id of a reservation is unknown until its usage is seen."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.launch()
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == REVIEW
    claude.stops("a1")
    assert reserved(home, run) == REVIEW


def test_row_of_an_ended_sub_agent_ends_no_other(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row has no id. It is attributed to a sub-agent that has ended before one that is running."""
    run = started(home, session="s1")
    claude = Claude(home)
    for agent_id in ("a1", "a2"):
        claude.launch()
        claude.starts(agent_id)
    claude.stops("a2")
    assert reserved(home, run) == REVIEW
    interstat.insert("s1", "fd-quality")
    assert reserved(home, run) == REVIEW


def test_start_after_the_first_usage_makes_no_reservation(home: Home, daemon: Daemon) -> None:
    """The sub-agent has already been reserved and measured."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == 0
    claude.starts("a1")
    claude.stops("a1")
    assert reserved(home, run) == 0
