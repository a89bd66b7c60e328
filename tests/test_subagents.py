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
    timestamp,
    write_agent_usage,
)
from harness.daemon import Daemon, Home, started, wait_for
from harness.hooks import SILENT, Claude
from harness.interstat import Interstat
from harness.transcripts import Transcript

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
    write_agent_usage(home, "s1", "other", "fd-safety")
    assert reserved(home, run) == REVIEW
    writer.response("m1", tokens=(100, 0, 0, 0), at=timestamp())
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
    write_agent_usage(home, "s1", "old")
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
    wait_for(lambda: stored_reservations(home)[0][0] == "a1", "its start to be on disk")
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


def test_end_of_a_measured_one_without_a_known_id_ends_no_other(home: Home, daemon: Daemon) -> None:
    """Without the hook of SubagentStart nobody says which id was admitted by which reservation."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.launch()
    write_agent_usage(home, "s1", "a1")
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
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == 0
    claude.starts("a1")
    claude.stops("a1")
    assert reserved(home, run) == 0
