"""Claude Code's hooks at a real daemon: each session gets each warning once."""

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


@pytest.mark.parametrize("event", WARNING_EVENTS)
def test_hook_warns_once_of_usage_written_just_before_it(home: Home, daemon: Daemon, event: str) -> None:
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


def test_other_events_show_no_warning_and_consume_none(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    for event in EVENTS:
        if event not in (*WARNING_EVENTS, "SessionStart"):
            assert claude.call(event, reason="clear", tool_name="Bash", tool_input={"command": "ls"}) == SILENT, event
    assert is_warning(claude.call("UserPromptSubmit"), "80 %")


def test_only_the_most_severe_warning_is_shown(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 1200)
    claude = Claude(home)
    assert is_warning(claude.call("PostToolBatch"), "budget exceeded")
    assert claude.call("PostToolBatch") == SILENT


def test_exceeding_the_budget_warns_again(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    write_usage(home, 820)
    assert is_warning(claude.call("PostToolBatch"), "80 %")
    write_usage(home, 230, message="m2")
    expected = f"fluxbudget: budget exceeded: run {run}, phase brainstorm: 1 050 of 1 000 billing tokens (105 %)"
    assert is_warning(claude.run("PostToolBatch"), expected)
    assert claude.call("PostToolBatch") == SILENT


def test_only_one_of_parallel_hooks_shows_a_warning(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    for number, tokens in enumerate((820, 230, 500)):
        write_usage(home, tokens, message=f"m{number}")
        together = threading.Barrier(12)

        def call(event: str, together: threading.Barrier = together) -> HookOutput:
            together.wait()
            return Claude(home).call(event)

        with ThreadPoolExecutor(12) as pool:
            output = list(pool.map(call, WARNING_EVENTS * 4))
        # No threshold comes after the whole budget.
        assert len([one for one in output if one != SILENT]) == (number < 2), number


def test_each_session_of_the_run_is_warned(home: Home, daemon: Daemon) -> None:
    """Sessions that join later are warned, too; sessions of other runs are not."""
    run = started(home, session="s1", token_budget=1000)
    home.ok("run", "attach", "--run", run, "--session", "s2")
    write_usage(home, 820)
    for session in ("s1", "s2", "s3"):
        assert is_warning(Claude(home, session).call("UserPromptSubmit"), "80 %"), session
        assert Claude(home, session).call("UserPromptSubmit") == SILENT
    answer = home.ask(messages.RunStart(project_dir="/elsewhere", session="s9", token_budget=10, wait_ms=30_000))
    assert isinstance(answer, messages.RunAnswer)
    assert Claude(home, "s9").call("UserPromptSubmit") == SILENT


@pytest.mark.parametrize("event", WARNING_EVENTS)
def test_sub_agents_do_not_use_up_the_main_sessions_warning(home: Home, daemon: Daemon, event: str) -> None:
    """Each sub-agent is warned once, and so is the main loop, which has another context."""
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    for agent_id in ("a1", "a2"):
        assert "80 % of the budget spent" in claude.call(event, agent_id=agent_id, agent_type="x").context
        assert claude.call(event, agent_id=agent_id, agent_type="x") == SILENT
    assert is_warning(claude.call("PostToolBatch"), "80 %")
    assert claude.call("PostToolBatch") == SILENT
    write_usage(home, 230, message="m2")
    assert is_warning(claude.call("PostToolBatch"), "budget exceeded")
    assert "budget exceeded" in claude.call(event, agent_id="a1", agent_type="x").context


def test_person_is_not_told_by_every_sub_agent(home: Home, daemon: Daemon) -> None:
    """The first one tells the person; the main loop does so in any case."""
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    outputs = [claude.call("PostToolBatch", agent_id=f"a{number}") for number in range(3)]
    assert ["80 %" in output.context for output in outputs] == [True, True, True]
    assert ["80 %" in output.message for output in outputs] == [True, False, False]
    assert is_warning(claude.call("PostToolBatch"), "80 %")
    write_usage(home, 230, message="m2")
    assert is_warning(claude.call("PostToolBatch"), "budget exceeded")
    output = claude.call("PostToolBatch", agent_id="a1")
    assert ("budget exceeded" in output.context, output.message) == (True, "")


def test_parallel_sub_agents_are_each_warned_once(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    together = threading.Barrier(12)

    def call(agent_id: str) -> HookOutput:
        together.wait()
        return Claude(home).call("PostToolBatch", agent_id=agent_id or None)

    agents = ["", "a1", "a2", "a3"] * 3
    with ThreadPoolExecutor(12) as pool:
        outputs = list(pool.map(call, agents))
    assert sorted(agent for agent, one in zip(agents, outputs, strict=True) if one != SILENT) == ["", "a1", "a2", "a3"]


@pytest.mark.parametrize("restarts", [False, True])
def test_main_session_is_warned_after_a_long_pause(home: Home, interstat: Interstat, restarts: bool) -> None:
    """Its sub-agents have been warned, and the events have left the daemon's memory since."""
    home.start()
    started(home, session="s1", token_budget=1000)
    other = started(home, session="s2", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    assert "80 %" in claude.call("PostToolBatch", agent_id="a1").context
    for number in range(520):
        home.ask(messages.RunSet(run=other, token_budget=1001 + number, wait_ms=30_000))
    if restarts:
        wait_for(lambda: saved_warning_seq(home, "s1"), "the warning shown to the sub-agent to be on disk")
        home.stop_all()
        home.start()
    assert claude.call("PostToolBatch", agent_id="a1") == SILENT
    assert is_warning(claude.call("UserPromptSubmit"), "80 %")
    assert claude.call("UserPromptSubmit") == SILENT
    write_usage(home, 230, message="m2")
    assert is_warning(claude.call("UserPromptSubmit"), "budget exceeded")
    assert "budget exceeded" in claude.call("PostToolBatch", agent_id="a1").context
    assert claude.call("UserPromptSubmit") == SILENT


def test_raised_budget_warns_again(home: Home, daemon: Daemon) -> None:
    """Raising the budget re-arms the thresholds that are no longer passed."""
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
    assert is_warning(claude.call("UserPromptSubmit"), "budget exceeded")


def test_withdrawn_warning_is_not_shown_later(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 1200)
    assert home.spend(run).state == "exceeded"
    home.ok("run", "set", "--run", run, "--budget", "100000")
    assert Claude(home).call("UserPromptSubmit") == SILENT


def test_late_warning_has_the_current_numbers(home: Home, daemon: Daemon) -> None:
    """It does not repeat the numbers from when the threshold was passed."""
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


def test_tokens_left_are_those_that_remaining_prints(home: Home, daemon: Daemon) -> None:
    """Both subtract the reserved tokens."""
    run = started(home, session="s1", token_budget=100_000)
    claude = Claude(home)
    claude.launch()
    for tokens, left in ((10_000, "50 000"), (45_000, "5 000"), (30_000, "0")):
        write_usage(home, tokens, message=f"m{tokens}")
        output = claude.call("SessionStart", source="resume").context
        assert f", {left} left (40 000 reserved)" in output, output
        assert home.ok("remaining", "--run", run) == left.replace(" ", "")
    assert ", 0 left (40 000 reserved)" in claude.call("PostToolBatch").context


@pytest.mark.parametrize("killed", [False, True])
def test_warning_is_shown_once_across_restarts(home: Home, interstat: Interstat, killed: bool) -> None:
    """Sessions that have seen it do not see it again, others do. Later warnings reach both."""
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    assert is_warning(Claude(home).call("UserPromptSubmit"), "80 %")
    wait_for(lambda: saved_warning_seq(home, "s1"), "the warning shown to s1 to be on disk")
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
        assert is_warning(Claude(home, session).call("PostToolBatch"), "budget exceeded")


def test_warning_not_shown_before_a_kill_is_shown_after_it(home: Home, interstat: Interstat) -> None:
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


def test_channel_follows_its_configuration(home: Home, interstat: Interstat) -> None:
    """It has its own thresholds and shows nothing while off. Once it is on again, it shows what is still due."""
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
    assert is_warning(claude.call("UserPromptSubmit"), "budget exceeded")


def test_warning_of_a_new_threshold_is_in_the_answer_that_finds_it(home: Home, interstat: Interstat) -> None:
    """The hook's request reads the changed configuration, and its answer shows the threshold that was just passed."""
    configure(home, '[warnings]\nthresholds = [90]\n[channels.hook]\nthresholds = "all"\n')
    home.start()
    started(home, session="s1", token_budget=1000)
    write_usage(home, 550)
    claude = Claude(home)
    assert claude.call("UserPromptSubmit") == SILENT
    configure(home, '[warnings]\nthresholds = [50]\n[channels.hook]\nthresholds = "all"\n')
    assert claude.call("UserPromptSubmit").context.startswith("fluxbudget: 50 %")


def test_channel_is_silent_as_soon_as_it_is_switched_off(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    assert "820 of 1 000" in Claude(home).call("SessionStart").context
    configure(home, "[channels.hook]\nenabled = false\n")
    assert Claude(home).call("UserPromptSubmit") == SILENT


def test_hook_waits_until_its_warning_is_on_disk(home: Home, daemon: Daemon) -> None:
    """While another process locks the ledger, the answer waits."""
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
def test_shown_warning_is_saved_after_the_ledger_is_unlocked(home: Home, interstat: Interstat, when: str) -> None:
    """The locked ledger does not delay the warning, doctor reports it, and a restart repeats nothing."""
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
        wait_for(lambda: '"records": "session warnings"' in daemon.log, "the daemon to report the locked ledger")
        found = home.ctl("doctor")
        assert (found.returncode, "database is locked" in found.stdout) == (1, True)
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: saved_warning_seq(home, "s1"), "the shown warning to be on disk")
        wait_for(lambda: home.ctl("doctor").returncode == 0, "doctor to find no problems")
    assert daemon.stop() == 0
    assert saved_warning_seq(home, "s1")
    home.start()
    assert Claude(home).call("UserPromptSubmit") == SILENT
