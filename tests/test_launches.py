"""One launch has one reservation, under whatever names, ids and spellings its sub-agent starts, works and ends."""

import pytest

from harness.admission import GENERATED, ORACLE, RESEARCH, REVIEW, concurrently, reserved, write_agent_usage
from harness.daemon import Daemon, Home, started
from harness.hooks import SILENT, Claude
from harness.interstat import Interstat
from harness.transcripts import Transcript

# --- starts


@pytest.mark.parametrize(
    ("launched", "begun"),
    [
        ("researcher", "general-purpose"), ("Explore", "explore"), ("fd-quality", "interflux:fd-quality"),
        ("plugin:deep:worker", "Worker"), (None, "fork"), ("oracle", ""),
    ],
)  # fmt: skip
def test_start_under_another_name_takes_the_reservation(
    home: Home, daemon: Daemon, launched: str | None, begun: str
) -> None:
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch(launched)
    before = reserved(home, run)
    claude.starts("a1", begun)
    assert reserved(home, run) == before > 0
    claude.stops("a1", begun)
    assert reserved(home, run) == 0


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
    claude.stops("a1")
    assert reserved(home, run) == ORACLE
    home.ok("run", "finish", "--run", run)
    claude.starts("a3")
    assert reserved(home, run) == ORACLE
    assert Claude(home, "s9").starts("a4") == SILENT


def test_starts_take_the_reservations_of_their_type(home: Home, daemon: Daemon) -> None:
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


def test_launches_that_start_under_the_general_name_are_told_apart_by_their_calls(home: Home, daemon: Daemon) -> None:
    """Their transcripts' companions, which name the calls, are written after their starts."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("oracle", call="t1")
    claude.launch("x-analyst", call="t2")
    claude.starts("a1", "general-purpose")
    claude.starts("a2", "general-purpose")
    claude.stops("a1", "general-purpose")
    write_agent_usage(home, "s1", "a1", "general-purpose", tokens=10, call="t2")
    assert reserved(home, run) == ORACLE
    write_agent_usage(home, "s1", "a2", "general-purpose", tokens=10, call="t1")
    assert reserved(home, run) == ORACLE - 10
    claude.stops("a2", "general-purpose")
    assert reserved(home, run) == 0


def test_parallel_sub_agents_of_one_type_are_told_apart(home: Home, daemon: Daemon) -> None:
    """The usage of one, before or after its end, does not change another's reservation."""
    run = started(home, session="s1")
    claude = Claude(home)
    for _ in range(3):
        claude.launch()
    for agent_id in ("a1", "a2", "a3"):
        claude.starts(agent_id)
    write_agent_usage(home, "s1", "a3")
    assert reserved(home, run) == 3 * REVIEW - 100
    claude.stops("a3")
    assert reserved(home, run) == 2 * REVIEW
    claude.stops("a2")
    write_agent_usage(home, "s1", "a2")
    assert reserved(home, run) == REVIEW
    claude.launch()
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == 2 * REVIEW - 100


def test_parallel_starts_and_stops(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    assert set(concurrently(12, lambda _: Claude(home).launch())) == {SILENT}
    assert reserved(home, run) == 12 * REVIEW
    concurrently(24, lambda number: Claude(home).starts(f"a{number % 12}"))
    assert reserved(home, run) == 12 * REVIEW
    concurrently(20, lambda number: Claude(home).stops(f"a{number % 10}"))
    assert reserved(home, run) == 2 * REVIEW


# --- starts that are not reported


def test_usage_of_an_unreported_start_takes_one_reservation(home: Home, daemon: Daemon) -> None:
    """A start or an end that is reported later finds it."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.launch()
    write_agent_usage(home, "s1", "a1")
    assert reserved(home, run) == 2 * REVIEW - 100
    claude.starts("a1")
    assert reserved(home, run) == 2 * REVIEW - 100
    claude.stops("a1")
    assert reserved(home, run) == REVIEW
    claude.stops("a1")
    assert reserved(home, run) == REVIEW


def test_event_inside_a_sub_agent_reserves_if_its_start_was_not_reported(home: Home, daemon: Daemon) -> None:
    """What it had used before counts as a part of its estimate."""
    run = started(home, session="s1")
    claude = Claude(home)
    write_agent_usage(home, "s1", "a1", tokens=1_000)
    for _ in range(2):
        claude.batch("x", agent_id="a1")
        assert reserved(home, run) == REVIEW - 1_000
    claude.stops("a1")
    assert reserved(home, run) == 0


def test_event_inside_a_sub_agent_corrects_an_early_end(home: Home, daemon: Daemon) -> None:
    """Claude Code may let a sub-agent go on after its SubagentStop."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch()
    claude.starts("a1")
    write_agent_usage(home, "s1", "a1", tokens=1_000)
    claude.stops("a1")
    assert reserved(home, run) == 0
    claude.batch("x", agent_id="a1")
    assert reserved(home, run) == REVIEW - 1_000
    claude.stops("a1")
    assert reserved(home, run) == 0


# --- launches that never start


def test_result_of_a_launch_that_never_started_releases_it(home: Home, daemon: Daemon) -> None:
    """An unknown type, a permission rule: only the batch lists the call. Other launches keep their reservations."""
    run = started(home, session="s1")
    claude = Claude(home)
    for number, agent in enumerate(("nosuch", "oracle", "fd-quality", "fd-quality")):
        claude.launch(agent, call=f"t{number}")
    claude.starts("a1", "oracle")
    assert reserved(home, run) == GENERATED + ORACLE + 2 * REVIEW
    claude.batch("t0", "t2", "bash-1")
    assert reserved(home, run) == ORACLE + REVIEW
    claude.batch("t1")
    assert reserved(home, run) == ORACLE + REVIEW  # it runs in the background
    claude.starts("a2", "fd-quality")
    claude.batch("t3", "t0")
    assert reserved(home, run) == ORACLE + REVIEW


def test_refused_launch_does_not_keep_another_ones_reservation(home: Home, daemon: Daemon) -> None:
    """The start of the second launch was taken for that of the first, which is larger."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("oracle", call="t1")
    claude.launch("x-analyst", call="t2")
    claude.starts("a1", "general-purpose")
    write_agent_usage(home, "s1", "a1", "general-purpose", tokens=0, call="t2")
    claude.batch("t1", "t2")
    assert reserved(home, run) == RESEARCH


@pytest.mark.parametrize("end", ["prompt", "turn", "error"])
def test_end_of_the_turn_releases_what_has_not_started(home: Home, daemon: Daemon, end: str) -> None:
    """No event reports that the person has rejected a launch. A start after all is reserved again."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch(call="t1")
    claude.launch(call="t2")
    claude.starts("a1")
    if end == "prompt":
        claude.call("UserPromptSubmit", prompt="Hello.")
    elif end == "turn":
        claude.ends_turn("a1")
    else:
        claude.fails()
    assert reserved(home, run) == REVIEW
    claude.starts("a2")
    assert reserved(home, run) == 2 * REVIEW


def test_ends_of_other_sessions_release_nothing(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    Claude(home).launch(call="t1")
    other = Claude(home, "s2")
    other.batch("t1")
    other.ends_turn()
    other.call("UserPromptSubmit", prompt="Hello.")
    other.call("SessionEnd", reason="other")
    assert reserved(home, run) == REVIEW


# --- ends that only other events show


def test_error_of_the_api_ends_a_sub_agent(home: Home, daemon: Daemon) -> None:
    """Claude Code reports it instead of the sub-agent's end."""
    run = started(home, session="s1")
    claude = Claude(home)
    for agent_id in ("a1", "a2"):
        claude.launch()
        claude.starts(agent_id)
    claude.fails("a1")
    assert reserved(home, run) == REVIEW


def test_sub_agent_that_a_hook_has_stopped_ends_with_the_turn(home: Home, daemon: Daemon) -> None:
    """No event reports its end. Sub-agents in the background go on, and so do those that they have launched."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("oracle", call="t1")
    claude.launch(call="t2")
    claude.starts("a1", "oracle")
    claude.starts("a2")
    claude.launch("x-analyst", call="t3", parent="a2")
    claude.starts("a3", "x-analyst")
    claude.batch("t1", "t2")
    claude.ends_turn("a2")
    assert reserved(home, run) == REVIEW + RESEARCH
    claude.stops("a3", "x-analyst")
    claude.stops("a2")
    assert reserved(home, run) == 0


def test_turn_that_ends_without_a_list_of_tasks_ends_no_sub_agent(home: Home, daemon: Daemon) -> None:
    """Older versions of Claude Code do not report which tasks go on."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch(call="t1")
    claude.starts("a1")
    claude.call("Stop", stop_hook_active=False)
    assert reserved(home, run) == REVIEW


def test_end_of_a_sub_agent_releases_what_it_has_not_launched(home: Home, daemon: Daemon) -> None:
    """A launch inside a sub-agent in the background survives the end of the main loop's turn."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch(call="t1")
    claude.starts("a1")
    claude.launch("oracle", call="t2", parent="a1")
    claude.ends_turn("a1")
    assert reserved(home, run) == REVIEW + ORACLE
    claude.stops("a1")
    assert reserved(home, run) == 0


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


# --- messages and workflows


def test_message_to_a_finished_sub_agent_launches_it_again(home: Home, daemon: Daemon) -> None:
    """What it used before does not count as a part of the new estimate."""
    run = started(home, session="s1", token_budget=100_000, enforcement="hard")
    claude = Claude(home)
    claude.launch(call="t1")
    claude.starts("a1")
    write_agent_usage(home, "s1", "a1", tokens=30_000, call="t1")
    claude.stops("a1")
    assert claude.message("a1", call="t2") == SILENT
    assert reserved(home, run) == REVIEW
    claude.starts("a1")
    claude.batch("t2")
    assert reserved(home, run) == REVIEW
    write_agent_usage(home, "s1", "a1", tokens=5_000, call="t1", message="-2")
    assert (home.spend(run).spent, reserved(home, run)) == (35_000, REVIEW - 5_000)
    claude.stops("a1")
    assert claude.launch() == SILENT
    assert claude.message("a1", call="t3").decision == "deny"


def test_sub_agent_that_is_resumed_takes_no_other_launch(home: Home, daemon: Daemon) -> None:
    """Both wait, and the resumed one starts first and under the general name."""
    run = started(home, session="s1")
    claude = Claude(home)
    claude.launch("x-analyst", call="t1")
    claude.starts("a1", "x-analyst")
    claude.stops("a1", "x-analyst")
    claude.launch("oracle", call="t2")
    claude.message("a1", call="t3")
    claude.starts("a1", "general-purpose")
    claude.batch("t2", "t3")
    assert reserved(home, run) == RESEARCH


def test_message_to_a_running_sub_agent_reserves_nothing(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=REVIEW + 1, enforcement="hard")
    claude = Claude(home)
    claude.launch()
    claude.starts("a1")
    assert claude.message("a1", call="t2") == SILENT
    assert claude.message("main", call="t3") == SILENT
    assert reserved(home, run) == REVIEW
    Transcript(home.root / "claude", "s1").response(tokens=(1, 0, 0, 0))
    assert claude.message("a1", call="t4").decision == "deny"


def test_sub_agents_of_a_workflow_reserve_when_they_start(home: Home, daemon: Daemon) -> None:
    """They go on after the end of the turn, until no task is left."""
    run = started(home, session="s1")
    claude = Claude(home)
    assert claude.launch(None, "Workflow", call="t1") == SILENT
    assert reserved(home, run) == 0
    claude.batch("t1")
    claude.starts("a1", "workflow-subagent")
    claude.starts("a2", "workflow-subagent")
    claude.ends_turn("w1")
    assert reserved(home, run) == 2 * GENERATED
    claude.stops("a1", "workflow-subagent")
    assert reserved(home, run) == GENERATED
    claude.ends_turn()
    assert reserved(home, run) == 0
