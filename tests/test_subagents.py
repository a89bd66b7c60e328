"""A sub-agent holds its estimate, less what it has used, until it has ended or half an hour passes without a sign."""

import pytest

from harness.admission import (
    HALF_AN_HOUR,
    ORACLE,
    REVIEW,
    age_reservations,
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
def test_sub_agent_holds_what_it_has_not_used_yet(
    home: Home, daemon: Daemon, named: bool, deeper: tuple[str, ...]
) -> None:
    """Its usage is matched by id, or else by type. The usage of another type changes nothing."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("interflux:fd-quality")
    if named:
        claude.starts("a1", "interflux:fd-quality")
    assert reserved(home, run) == REVIEW
    write_agent_usage(home, "s1", "other", "fd-safety")
    assert reserved(home, run) == REVIEW
    write_agent_usage(home, "s1", "a1", tokens=100, deeper=deeper)
    assert (home.spend(run).spent, reserved(home, run)) == (200, REVIEW - 100)
    write_agent_usage(home, "s1", "a1", tokens=REVIEW - 101, deeper=deeper, message="-2")
    assert reserved(home, run) == 1
    write_agent_usage(home, "s1", "a1", tokens=50_000, deeper=deeper, message="-3")
    assert reserved(home, run) == 0
    claude.stops("a1")
    assert (home.spend(run).spent, reserved(home, run)) == (REVIEW + 50_099, 0)


def test_two_estimates_do_not_share_a_gap(home: Home, daemon: Daemon) -> None:
    """The first sub-agent's first response does not make room for a second one."""
    run = started(home, session="s1", token_budget=70_000, enforcement="hard")
    claude = Claude(home)
    assert claude.launch() == SILENT
    claude.starts("a1")
    write_agent_usage(home, "s1", "a1", tokens=1_000)
    assert claude.launch().decision == "deny"
    spend = home.spend(run)
    assert (spend.spent, spend.reserved, spend.remaining) == (1_000, 39_000, 30_000)
    claude.stops("a1")
    assert claude.launch() == SILENT


def test_usage_is_compared_in_tokens_of_the_cost_basis(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", cost_basis="total")
    claude = Claude(home)
    claude.launch()
    claude.starts("a1")
    estimate = reserved(home, run)
    writer = Transcript(home.root / "claude", "s1").agent("a1")
    writer.response("m1", tokens=(1, 20, 300, 4_000), at=timestamp())
    assert reserved(home, run) == estimate - 4_321


def test_response_that_grows_is_used_once(home: Home, daemon: Daemon) -> None:
    """Each of its lines has what it had used until then."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.starts("a1")
    writer = Transcript(home.root / "claude", "s1").agent("a1")
    for output in (10, 300, 2_000):
        writer.response("m1", tokens=(5, output, 0, 0), at=timestamp())
        assert (home.spend(run).spent, reserved(home, run)) == (5 + output, REVIEW - 5 - output)


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_used_survives_a_restart(home: Home, interstat: Interstat, killed: bool) -> None:
    daemon = home.start()
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.starts("a1")
    for number in range(3):
        write_agent_usage(home, "s1", "a1", tokens=1_000, message=f"-{number}")
    assert reserved(home, run) == REVIEW - 3_000
    if killed:
        daemon.kill()
    else:
        daemon.stop()
    home.start()
    assert reserved(home, run) == REVIEW - 3_000
    write_agent_usage(home, "s1", "a1", tokens=500, message="-3")
    assert reserved(home, run) == REVIEW - 3_500


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


@pytest.mark.parametrize("sign", ["event", "usage"])
def test_sign_of_the_sub_agent_postpones_the_expiry(home: Home, interstat: Interstat, sign: str) -> None:
    """A sign is an event inside the sub-agent, or usage in its transcript."""
    daemon = home.start()
    run = started(home, session="s1")
    claude = Claude(home)
    for agent_id in ("a1", "a2"):
        claude.launch()
        claude.starts(agent_id)
    daemon.stop()
    age_reservations(home, HALF_AN_HOUR - 60_000_000)
    daemon = home.start()
    if sign == "event":
        claude.batch("x", agent_id="a1")
    else:
        write_agent_usage(home, "s1", "a1", tokens=0)
        write_agent_usage(home, "s1", "a1", tokens=1, message="-2")
    assert reserved(home, run) == 2 * REVIEW - (sign == "usage")
    daemon.stop()
    age_reservations(home, 61_000_000)
    home.start()
    assert reserved(home, run) == REVIEW - (sign == "usage")


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
    """It keeps the agent's id and its end."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=3 * REVIEW, enforcement="hard")
    claude = Claude(home)
    assert claude.launch() == claude.launch() == claude.launch() == SILENT
    claude.starts("a1")
    claude.starts("a2")
    claude.stops("a2")
    assert reserved(home, run) == 2 * REVIEW
    if killed:
        daemon.kill()
    else:
        daemon.stop()
    home.start()
    assert reserved(home, run) == 2 * REVIEW
    assert claude.launch() == SILENT
    assert claude.launch().decision == "deny"
    claude.starts("a3")
    claude.stops("a2")
    claude.stops("a1")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a3")
    assert reserved(home, run) == REVIEW
