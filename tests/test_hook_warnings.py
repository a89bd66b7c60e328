"""Claude Code's hooks at a real daemon: warnings are told once."""

import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber, wait_until_delivered
from harness.hooks import (
    EVENTS,
    SILENT,
    WARNING_EVENTS,
    Claude,
    HookOutput,
    is_warning,
    saved_warning_seq,
    write_usage,
)
from harness.interstat import Interstat

# --- warnings


@pytest.mark.parametrize("event", WARNING_EVENTS)
def test_warning_is_told_once_by_what_was_just_written(home: Home, daemon: Daemon, event: str) -> None:
    run = started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    assert claude.call(event) == SILENT
    write_usage(home, 820)
    output = claude.call(event)
    words = f"fluxbudget: 80 % of the budget spent: run {run}, phase brainstorm: 820 of 1 000 billing tokens (82 %)"
    assert is_warning(output, words), output
    for again in WARNING_EVENTS:
        assert claude.call(again) == SILENT
    write_usage(home, 10, message="m2")
    assert claude.call(event) == SILENT


def test_other_events_tell_nothing_and_use_nothing_up(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    for event in EVENTS:
        if event not in (*WARNING_EVENTS, "SessionStart"):
            assert claude.call(event, reason="clear", tool_name="Bash", tool_input={"command": "ls"}) == SILENT, event
    assert is_warning(claude.call("UserPromptSubmit"), "80 %")


def test_gravest_of_several_is_told_and_the_rest_with_it(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 1200)
    claude = Claude(home)
    assert is_warning(claude.call("PostToolBatch"), "the budget is used up")
    assert claude.call("PostToolBatch") == SILENT


def test_exceeding_tells_again(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    write_usage(home, 820)
    assert is_warning(claude.call("PostToolBatch"), "80 %")
    write_usage(home, 230, message="m2")
    expected = f"fluxbudget: the budget is used up: run {run}, phase brainstorm: 1 050 of 1 000 billing tokens (105 %)"
    assert is_warning(claude.run("PostToolBatch"), expected)
    assert claude.call("PostToolBatch") == SILENT


def test_parallel_hooks_of_one_session_tell_once(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    for number, tokens in enumerate((820, 230, 500)):
        write_usage(home, tokens, message=f"m{number}")
        together = threading.Barrier(12)

        def call(event: str, together: threading.Barrier = together) -> HookOutput:
            together.wait()
            return Claude(home).call(event)

        with ThreadPoolExecutor(12) as pool:
            output = list(pool.map(call, WARNING_EVENTS * 4))
        # Once it is used up there is nothing left to tell.
        assert len([one for one in output if one != SILENT]) == (number < 2), number


def test_each_session_of_the_run_is_told(home: Home, daemon: Daemon) -> None:
    """Also one that comes later; one of another run is not."""
    run = started(home, session="s1", token_budget=1000)
    home.ok("run", "attach", "--run", run, "--session", "s2")
    write_usage(home, 820)
    for session in ("s1", "s2", "s3"):
        assert is_warning(Claude(home, session).call("UserPromptSubmit"), "80 %"), session
        assert Claude(home, session).call("UserPromptSubmit") == SILENT
    answer = home.ask(messages.RunStart(project_dir="/elsewhere", session="s9", token_budget=10, wait_ms=30_000))
    assert isinstance(answer, messages.RunAnswer)
    assert Claude(home, "s9").call("UserPromptSubmit") == SILENT


def test_raised_budget_warns_anew(home: Home, daemon: Daemon) -> None:
    """What it has not reached any more is taken back; when it is reached again, it is told again."""
    run = started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    write_usage(home, 820)
    assert is_warning(claude.call("UserPromptSubmit"), "80 %")
    home.ok("run", "set", "--run", run, "--budget", "10000")
    assert claude.call("UserPromptSubmit") == SILENT
    write_usage(home, 7300, message="m2")
    assert is_warning(claude.call("UserPromptSubmit"), "8 120 of 10 000")
    assert claude.call("UserPromptSubmit") == SILENT
    home.ok("run", "set", "--run", run, "--budget", "8000")
    assert is_warning(claude.call("UserPromptSubmit"), "the budget is used up")


def test_warning_that_was_taken_back_is_not_told_late(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 1200)
    assert home.spend(run).state == "exceeded"
    home.ok("run", "set", "--run", run, "--budget", "100000")
    assert Claude(home).call("UserPromptSubmit") == SILENT


def test_reminder_has_the_present_numbers(home: Home, daemon: Daemon) -> None:
    """A session that hears of a warning late is not told where the run stood then."""
    run = started(home, id="r1", session="s1", token_budget=100_000)
    home.ok("run", "attach", "--run", run, "--session", "s2")
    write_usage(home, 81_000)
    assert is_warning(Claude(home).call("UserPromptSubmit"), "81 000 of 100 000 billing tokens (81 %), 19 000 left")
    write_usage(home, 11_000, message="m2")
    home.ok("advance", "--run", run, "--from", "brainstorm")
    expected = (
        "fluxbudget: 80 % of the budget spent: run r1, phase brainstorm-reviewed:"
        " 92 000 of 100 000 billing tokens (92 %), 8 000 left"
    )
    output = Claude(home, "s2").call("UserPromptSubmit")
    assert (output.context, output.message) == (expected, expected)


def test_what_is_left_is_what_remaining_says(home: Home, daemon: Daemon) -> None:
    """What is reserved is taken off in both, whatever of the two they say."""
    run = started(home, session="s1", token_budget=100_000)
    claude = Claude(home)
    claude.launch()
    for tokens, left in ((10_000, "50 000"), (45_000, "5 000"), (30_000, "0")):
        write_usage(home, tokens, message=f"m{tokens}")
        output = claude.call("SessionStart", source="resume").context
        assert f", {left} left (40 000 reserved)" in output, output
        assert home.ok("remaining", "--run", run) == left.replace(" ", "")
    assert ", 0 left (40 000 reserved)" in claude.call("UserPromptSubmit").context


@pytest.mark.parametrize("killed", [False, True])
def test_told_once_over_restarts(home: Home, interstat: Interstat, killed: bool) -> None:
    """Who was told is not told again; who was not is; and what comes later is told everybody."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    assert is_warning(Claude(home).call("UserPromptSubmit"), "80 %")
    wait_for(lambda: saved_warning_seq(home, "s1"), "what s1 was told to be on disk")
    if killed:
        daemon.kill()
    else:
        daemon.stop()
    home.start()
    assert Claude(home).call("UserPromptSubmit") == SILENT
    home.ok("run", "attach", "--run", run, "--session", "s2")
    assert is_warning(Claude(home, "s2").call("UserPromptSubmit"), "80 %")
    write_usage(home, 500, message="m2")
    for session in ("s1", "s2"):
        assert is_warning(Claude(home, session).call("PostToolBatch"), "the budget is used up")


def test_warning_of_before_a_kill_is_told_after_it(home: Home, interstat: Interstat) -> None:
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    assert home.spend(run).state == "warning"
    daemon.kill()
    home.start()
    assert is_warning(Claude(home).call("UserPromptSubmit"), "80 %")


def configure(home: Home, text: str) -> None:
    place = home.root / ".config" / "fluxbudget" / "config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_channel_as_configured(home: Home, interstat: Interstat) -> None:
    """Its own percentages; off, it tells nothing, and on again what is still to be told."""
    configure(home, "[channels.hook]\nthresholds = [60]\n")
    home.start()
    run = started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    for tokens, words in ((550, ""), (60, "60 %"), (300, "")):
        write_usage(home, tokens, message=f"m{tokens}")
        assert (claude.call("UserPromptSubmit").context[:16] == "fluxbudget: 60 %") == bool(words)
    configure(home, "[channels.hook]\nenabled = false\n")
    home.ctl("doctor")
    write_usage(home, 500, message="m4")
    assert home.spend(run).state == "exceeded"
    assert claude.call("UserPromptSubmit") == SILENT
    configure(home, "")
    home.ctl("doctor")
    assert is_warning(claude.call("UserPromptSubmit"), "the budget is used up")


def test_warning_of_a_new_threshold_is_in_the_answer_that_finds_it(home: Home, interstat: Interstat) -> None:
    """The hook reads the changed configuration, and reports what it newly passes in the same answer."""
    configure(home, '[warnings]\nthresholds = [90]\n[channels.hook]\nthresholds = "all"\n')
    home.start()
    started(home, session="s1", token_budget=1000)
    write_usage(home, 550)
    claude = Claude(home)
    assert claude.call("UserPromptSubmit") == SILENT
    configure(home, '[warnings]\nthresholds = [50]\n[channels.hook]\nthresholds = "all"\n')
    assert claude.call("UserPromptSubmit").context.startswith("fluxbudget: 50 %")


def test_channel_that_is_switched_off_is_silent_from_then_on(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    assert "820 of 1 000" in Claude(home).call("SessionStart").context
    configure(home, "[channels.hook]\nenabled = false\n")
    assert Claude(home).call("UserPromptSubmit") == SILENT


def test_warning_is_waited_for_until_it_is_on_disk(home: Home, daemon: Daemon) -> None:
    """What is told is kept; while the ledger is in somebody's hands, the answer is late."""
    started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    assert claude.call("UserPromptSubmit") == SILENT
    other = sqlite3.connect(home.state / "ledger.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        write_usage(home, 820)
        with ThreadPoolExecutor(1) as pool:
            output = pool.submit(claude.call, "UserPromptSubmit")
            with contextlib.suppress(TimeoutError):
                output.result(timeout=0.5)
            other.execute("ROLLBACK")
            assert is_warning(output.result(), "80 %")
    finally:
        other.close()


@pytest.mark.parametrize("when", ["while the daemon runs", "at its end"])
def test_what_a_session_was_told_is_kept_once_the_ledger_is_free(home: Home, interstat: Interstat, when: str) -> None:
    """A locked ledger delays no warning and is a finding of doctor; the warning is not repeated after a restart."""
    configure(home, "[channels.desktop]\nenabled = false\n")
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    with Subscriber(home, since=0) as stream:
        assert home.spend(run).state == "warning"
        stream.until("budget.warning")
    wait_until_delivered(home)
    with contextlib.closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert is_warning(Claude(home).call("UserPromptSubmit"), "80 %")
        wait_for(lambda: '"what": "session warnings"' in daemon.log, "the ledger to be missed")
        found = home.ctl("doctor")
        assert (found.returncode, "database is locked" in found.stdout) == (1, True)
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: saved_warning_seq(home, "s1"), "what the session was told to be on disk")
        wait_for(lambda: home.ctl("doctor").returncode == 0, "doctor to find nothing wrong")
    assert daemon.stop() == 0
    assert saved_warning_seq(home, "s1")
    home.start()
    assert Claude(home).call("UserPromptSubmit") == SILENT
