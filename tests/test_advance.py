"""Advancing through phases, with a real daemon: checks, refusals, overrides, provisional estimates, thresholds."""

import json
import sqlite3
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.interstat import Interstat

EXCEEDED = "budget_exceeded|brainstorm|120/100 billing tokens\n"


def events(home: Home, *kinds: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the ledger's events of these kinds, or all of them, in order."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        rows = connection.execute("SELECT kind, data FROM events ORDER BY seq").fetchall()
    finally:
        connection.close()
    return [(kind, json.loads(data)) for kind, data in rows if not kinds or kind in kinds]


def phase(home: Home, run: str, name: str) -> messages.PhaseLine:
    return next(line for line in home.details(run).by_phase if line.name == name)


def advance(home: Home, run: str, from_phase: str, **fields: Any) -> messages.AdvanceAnswer:
    answer = home.ask(messages.Advance(run=run, from_phase=from_phase, wait_ms=30_000, **fields))
    assert isinstance(answer, messages.AdvanceAnswer), answer
    return answer


def test_advance_through_the_whole_chain(home: Home, daemon: Daemon) -> None:
    """Each phase leads to the next; the last one cannot be advanced."""
    run = started(home, phases=("plan", "build", "ship"))
    for here, there in (("plan", "build"), ("build", "ship")):
        assert home.ok("advance", "--run", run, "--from", here) == f"advanced|{here}|{there}"
    assert home.json("run", "show", "--run", run)["run"]["phase"] == "ship"
    last = home.ctl("advance", "--run", run, "--from", "ship")
    assert (last.returncode, last.stdout) == (65, "")
    assert "ship is the last phase" in last.stderr
    assert "run finish" in last.stderr


def test_later_phase_may_be_named(home: Home, daemon: Daemon) -> None:
    """Phases in between are skipped. An earlier or unknown phase is bad input."""
    run = started(home)
    assert home.ok("advance", "--run", run, "--from", "brainstorm", "--to", "planned") == "advanced|brainstorm|planned"
    assert [line.state for line in home.details(run).by_phase[:4]] == ["completed", "skipped", "skipped", "current"]
    for to in ("brainstorm", "planned", "nowhere"):
        result = home.ctl("advance", "--run", run, "--from", "planned", "--to", to)
        assert (result.returncode, result.stdout) == (65, "")
        assert "ahead are plan-reviewed, executing" in result.stderr
    assert home.ctl("advance", "--run", run, "--from", "nowhere").returncode == 65


def refusals(home: Home) -> Counter[tuple[object, object]]:
    """Return how often each command was refused, and for what reason, according to the ledger."""
    counted: Counter[tuple[object, object]] = Counter()
    for _, data in events(home, "phase.blocked"):
        counted[data["by"], data["reason"]] += int(data["count"])
    return counted


def test_stale_phase(home: Home, daemon: Daemon) -> None:
    """A wrong --from phase is refused every time, even with an override."""
    run = started(home)
    home.ok("advance", "--run", run, "--from", "brainstorm")
    for _ in range(2):
        result = home.ctl("advance", "--run", run, "--from", "brainstorm", "--override", "never mind")
        assert result.returncode == 1
        assert result.stdout == "stale_phase|brainstorm|Phase already advanced to brainstorm-reviewed\n"
    early = home.ctl("advance", "--run", run, "--from", "executing")
    assert early.stdout == "stale_phase|executing|Phase not reached yet, still in brainstorm-reviewed\n"

    def refused() -> bool:
        blocked = [(data["reason"], data["count"]) for _, data in events(home, "phase.blocked")]
        return blocked == [("stale_phase", 2), ("stale_phase", 1)]

    wait_for(refused, "the refusals, with their numbers, to be in the ledger")


def test_ended_run_cannot_be_advanced(home: Home, daemon: Daemon) -> None:
    run = started(home)
    home.ok("run", "cancel", "--run", run)
    result = home.ctl("advance", "--run", run, "--from", "brainstorm")
    assert (result.returncode, result.stdout) == (65, "")
    assert "is cancelled" in result.stderr


def test_exceeded_is_refused_every_time(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Repeated checks and advances are refused like the first ones, even after a kill. All are in the event log."""
    run = started(home, session="s1", token_budget=100)
    interstat.insert("s1", input_tokens=100, output_tokens=20)
    for _ in range(2):
        for command in (("check",), ("advance", "--from", "brainstorm")):
            result = home.ctl(*command, "--run", run)
            assert (result.returncode, result.stdout) == (1, EXCEEDED), command
    twice = {("check", "budget_exceeded"): 2, ("advance", "budget_exceeded"): 2}
    wait_for(lambda: refusals(home) == twice, "the refusals to be in the ledger")
    daemon.kill()
    home.start()
    for command in (("check",), ("advance", "--from", "brainstorm")):
        result = home.ctl(*command, "--run", run)
        assert (result.returncode, result.stdout) == (1, EXCEEDED), command
    assert phase(home, run, "brainstorm").state == "current"
    thrice = {("check", "budget_exceeded"): 3, ("advance", "budget_exceeded"): 3}
    wait_for(lambda: refusals(home) == thrice, "the refusals to be in the ledger")


@pytest.mark.parametrize("by_environment", [False, True])
def test_soft_budget_can_be_overridden(home: Home, interstat: Interstat, daemon: Daemon, by_environment: bool) -> None:
    """The reason is recorded in an event. The next request without an override is refused again."""
    run = started(home, session="s1", token_budget=100)
    interstat.insert("s1", input_tokens=100, output_tokens=20)
    environ = {"CLAVAIN_SKIP_BUDGET": "demo today"} if by_environment else {}
    flags = () if by_environment else ("--override", "demo today")
    check = home.ctl("check", "--run", run, *flags, environ=environ)
    assert (check.returncode, check.stdout) == (0, "ok\n")
    assert "demo today" in check.stderr
    assert home.ctl("check", "--run", run, environ={"CLAVAIN_SKIP_BUDGET": ""}).returncode == 1
    moved = home.ctl("advance", "--run", run, "--from", "brainstorm", *flags, environ=environ)
    assert (moved.returncode, moved.stdout) == (0, "advanced|brainstorm|brainstorm-reviewed\n")
    assert phase(home, run, "brainstorm").override == "demo today"
    ((_, overridden),) = events(home, "budget.overridden")
    assert (overridden["by"], overridden["override"]) == ("check", "demo today")
    ((_, advanced),) = events(home, "phase.advanced")
    assert advanced["override"] == "demo today"


def test_hard_budget_cannot_be_overridden(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=100, enforcement="hard")
    interstat.insert("s1", input_tokens=100, output_tokens=20)
    for command in (("check",), ("advance", "--from", "brainstorm")):
        result = home.ctl(*command, "--run", run, "--override", "please", environ={"CLAVAIN_SKIP_BUDGET": "please"})
        assert (result.returncode, result.stdout) == (1, EXCEEDED)
        assert "overrides are not accepted" in result.stderr
    assert events(home, "budget.overridden", "phase.advanced") == []


def test_unneeded_override_makes_no_event(home: Home, daemon: Daemon) -> None:
    run = started(home)
    assert home.ok("check", "--run", run, "--override", "just in case") == "ok"
    home.ok("advance", "--run", run, "--from", "brainstorm", "--override", "just in case")
    assert phase(home, run, "brainstorm").override is None
    assert events(home, "budget.overridden") == []


def test_overlong_reason_is_cut(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Only its beginning is kept. An override that is not needed succeeds however long its reason is."""
    run = started(home, session="s1", token_budget=100)
    environ = {"CLAVAIN_SKIP_BUDGET": "x" * 5000}
    assert home.ok("check", "--run", run, environ=environ) == "ok"
    interstat.insert("s1", input_tokens=100, output_tokens=20)
    assert home.ok("check", "--run", run, environ=environ) == "ok"
    assert [data["override"] for _, data in events(home, "budget.overridden")] == ["x" * 1000]
    assert home.ctl("check", "--run", run, environ={"CLAVAIN_SKIP_BUDGET": "  "}).returncode == 1


def test_one_of_fifty_concurrent_advances_succeeds(home: Home, daemon: Daemon) -> None:
    """The others are refused, since the phase has changed."""
    run = started(home)
    answers: list[messages.AdvanceAnswer] = []
    together = threading.Barrier(50)

    def ask() -> None:
        with Wire(home.socket) as wire:
            together.wait()
            answer = wire.ask(messages.Advance(run=run, from_phase="brainstorm", wait_ms=30_000))
            assert isinstance(answer, messages.AdvanceAnswer)
            answers.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = Counter(answer.line for answer in answers)
    assert lines == {
        "advanced|brainstorm|brainstorm-reviewed": 1,
        "stale_phase|brainstorm|Phase already advanced to brainstorm-reviewed": 49,
    }
    assert sum(answer.advanced for answer in answers) == 1
    assert len(events(home, "phase.advanced")) == 1
    stale = {("advance", "stale_phase"): 49}
    wait_for(lambda: refusals(home) == stale, "the refusals to be in the ledger")
    assert len(events(home, "phase.blocked")) == 1


def test_three_phases_in_one_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Each phase gets the tokens of its own time. Together they add up to exactly the session's."""
    run = started(home, scope="b1", session="s1")
    for number, name in enumerate(("brainstorm", "brainstorm-reviewed", "strategized"), start=1):
        interstat.insert("s1", f"agent-{number}", input_tokens=1000 * number, output_tokens=7 * number, bead_id="b1")
        answer = advance(home, run, name)
        assert answer.completed is not None
        assert (answer.completed.input, answer.completed.output) == (1000 * number, 7 * number)
    shown = home.details(run)
    assert [(line.input, line.output) for line in shown.by_phase[:4]] == [(1000, 7), (2000, 14), (3000, 21), (0, 0)]
    assert sum(line.spent for line in shown.by_phase) == shown.spend.spent == 6042
    assert sum(line.spent for line in shown.by_stage) == 6042
    assert shown.spend.provisional == 0
    # The session's own row comes last and has the time of its last message.
    interstat.insert("s1", "main-session", input_tokens=500, output_tokens=0)
    shown = home.details(run)
    assert sum(line.spent for line in shown.by_phase) == shown.spend.spent == 6542


def test_row_counts_for_the_phase_that_it_names(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """This holds even if the row arrives late. If the run does not have that phase, the row's time decides."""
    run = started(home, scope="b1")
    early = datetime.now(UTC).isoformat()
    advance(home, run, "brainstorm")
    interstat.insert("s1", "late", input_tokens=5, output_tokens=0, bead_id="b1", phase="brainstorm")
    interstat.insert(
        "s1", "odd", input_tokens=70, output_tokens=0, bead_id="b1", phase="no such phase", timestamp=early
    )
    interstat.insert("s1", "now", input_tokens=900, output_tokens=0, bead_id="b1")
    assert [line.billing for line in home.details(run).by_phase[:2]] == [75, 900]


def test_row_without_a_valid_time_counts_for_the_current_phase(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """It counts as the newest row, so it moves along with the run. So does a row from the future."""
    run = started(home, scope="b1", session="s1")
    interstat.insert("s1", input_tokens=5, output_tokens=0, bead_id="b1", timestamp="no time")
    interstat.insert("s1", input_tokens=70, output_tokens=0, bead_id="b1", timestamp="2999-01-01T00:00:00Z")
    assert [line.billing for line in home.details(run).by_phase[:2]] == [75, 0]
    advance(home, run, "brainstorm")
    assert [line.billing for line in home.details(run).by_phase[:2]] == [0, 75]
    assert home.details(run).spend.spent == 75


def test_estimate_gives_way_when_tokens_arrive(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Advancing without usage counts the estimate until an UPDATE of the row supplies the tokens."""
    run = started(home, scope="b1", session="s1", token_budget=40_000)
    row = interstat.insert("s1", "fd-quality", bead_id="b1")
    answer = advance(home, run, "brainstorm")
    assert answer.completed is not None
    assert (answer.completed.provisional, answer.completed.estimate_source) == (30_000, "table")
    assert (answer.spend.measured, answer.spend.provisional, answer.spend.spent) == (0, 30_000, 30_000)
    assert home.ok("remaining", "--run", run) == "10000"
    wait_for(lambda: len(events(home, "budget.threshold")) == 1, "the 50 % event of the estimate")

    interstat.update(row, input_tokens=38_000, output_tokens=1_000)
    assert home.ok("remaining", "--run", run) == "1000"
    spend = home.spend(run)
    assert (spend.measured, spend.provisional, spend.state) == (39_000, 0, "warning")
    wait_for(lambda: len(events(home, "budget.threshold")) == 3, "the 80 and 95 % events of the measured tokens")
    fired = [(kind, data["threshold"]) for kind, data in events(home, "budget.threshold", "budget.warning")]
    assert fired == [
        ("budget.threshold", 50),
        ("budget.threshold", 80),
        ("budget.warning", 80),
        ("budget.threshold", 95),
    ]

    interstat.update(row, input_tokens=2_000, output_tokens=1_000)
    assert home.ok("remaining", "--run", run) == "37000"
    assert phase(home, run, "brainstorm").spent == 3_000


def test_estimate_stays_while_another_phase_is_measured(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A session that joined later says nothing about the phase before."""
    run = started(home, session="s1", token_budget=100_000)
    advance(home, run, "brainstorm")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    interstat.insert("s2", input_tokens=700, output_tokens=0)
    spend = home.spend(run)
    assert (spend.measured, spend.provisional, spend.remaining) == (700, 30_000, 69_300)
    # The first session's own row, dated by its last message, covers the first phase.
    interstat.insert("s1", "main-session", input_tokens=9_000, output_tokens=0)
    spend = home.spend(run)
    assert (spend.measured, spend.provisional) == (9_700, 0)


def test_provisional_estimates_can_exceed_a_budget(home: Home, daemon: Daemon) -> None:
    """They count as spent, so the check refuses, even after a restart."""
    run = started(home, token_budget=30_000)
    assert advance(home, run, "brainstorm").spend.state == "exceeded"
    refused = "budget_exceeded|brainstorm-reviewed|30000/30000 billing tokens\n"
    assert home.ctl("check", "--run", run).stdout == refused
    daemon.kill()
    home.start()
    assert home.ctl("check", "--run", run).stdout == refused
    assert phase(home, run, "brainstorm").provisional == 30_000


def test_advance_is_on_disk_before_it_is_answered(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, scope="b1")
    interstat.insert("s1", input_tokens=10, output_tokens=3, bead_id="b1")
    before = advance(home, run, "brainstorm")
    daemon.kill()
    home.start()
    after = phase(home, run, "brainstorm")
    assert after == before.completed
    assert home.details(run).run.phase == "brainstorm-reviewed"


def test_macro_stages_have_their_shares_of_the_budget(home: Home, daemon: Daemon) -> None:
    """10, 25, 40, 20 and 5 %. A run without a budget has no shares, an unknown phase has no stage."""
    run = started(home, token_budget=200_000)
    assert [(line.name, line.allocated) for line in home.details(run).by_stage] == [
        ("discover", 20_000), ("design", 50_000), ("build", 80_000), ("ship", 40_000), ("reflect", 10_000),
        ("done", None),
    ]  # fmt: skip
    free = started(home, token_budget="none", phases=("executing", "party"))
    assert [(line.name, line.allocated) for line in home.details(free).by_stage] == [("build", None), ("other", None)]


def test_thresholds_fire_once(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Each fires once per run and budget, however usage changes, even across restarts. Another budget re-arms them."""

    def fired() -> list[int]:
        return [data["threshold"] for _, data in events(home, "budget.threshold")]

    run = started(home, session="s1", token_budget=1000)
    row = interstat.insert("s1", input_tokens=850, output_tokens=0)
    home.spend(run)
    wait_for(lambda: fired() == [50, 80], "the events of 50 and 80 %")
    for tokens in (900, 100, 900):
        interstat.update(row, input_tokens=tokens)
        home.spend(run)
    daemon.kill()
    home.start()
    home.spend(run)
    home.ok("run", "set", "--run", run, "--budget", "2000")  # 45 %: both are armed again
    assert fired() == [50, 80]
    home.ok("run", "set", "--run", run, "--budget", "1200")  # 75 %
    assert fired() == [50, 80, 50]
    interstat.update(row, input_tokens=1300)
    home.spend(run)
    wait_for(lambda: fired() == [50, 80, 50, 80, 95, 100], "the remaining events")
    kinds = [kind for kind, _ in events(home, "budget.warning", "budget.exceeded")]
    assert kinds == ["budget.warning", "budget.warning", "budget.exceeded"]


def test_thresholds_fire_without_a_request(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A commit to the source is enough."""
    started(home, session="s1", token_budget=1000)
    time.sleep(0.5)  # wait until the watcher is armed; otherwise the second scan would find the commit
    interstat.insert("s1", input_tokens=990, output_tokens=0)
    wait_for(lambda: len(events(home, "budget.threshold")) == 3, "the events of 50, 80 and 95 %")


def test_changed_warning_percentage_re_arms_only_the_warning(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Thresholds stay fired under one budget, even if the usage falls. A new warning fires."""
    run = started(home, session="s1", token_budget=1000)
    row = interstat.insert("s1", input_tokens=600, output_tokens=0)
    home.spend(run)
    wait_for(lambda: len(events(home, "budget.threshold")) == 1, "the event of 50 %")
    interstat.update(row, input_tokens=100)
    home.ok("run", "set", "--run", run, "--warn-pct", "70")
    interstat.update(row, input_tokens=600)
    home.ok("run", "set", "--run", run, "--warn-pct", "60")
    fired = [(kind, data["threshold"]) for kind, data in events(home, "budget.threshold", "budget.warning")]
    assert fired == [("budget.threshold", 50), ("budget.threshold", 60), ("budget.warning", 60)]


def test_budget_change_right_after_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Until the usage has been read again, thresholds must stay fired instead of being re-armed."""
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    home.spend(run)
    wait_for(lambda: len(events(home, "budget.threshold")) == 2, "the events of 50 and 80 %")
    daemon.kill()
    home.start()
    home.ok("run", "set", "--run", run, "--budget", "1001")
    home.spend(run)
    assert len(events(home, "budget.threshold")) == 2


def test_refusal_holds_even_if_it_cannot_be_recorded(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Without a ledger, checks are still refused, and an advance changes nothing."""
    run = started(home, session="s1", token_budget=100)
    free = started(home)
    interstat.insert("s1", input_tokens=120, output_tokens=0)
    home.spend(run)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{home.state / 'ledger.db'}{suffix}").unlink()
    result = home.ctl("check", "--run", run)
    assert (result.returncode, result.stdout) == (1, EXCEEDED)
    moved = home.ctl("advance", "--run", free, "--from", "brainstorm")
    assert (moved.returncode, moved.stdout) == (70, "")
    assert home.details(free).run.phase == "brainstorm"


def test_events_are_written_after_the_ledger_is_unlocked(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Refusals and thresholds from while it was locked are written without another commit."""
    run = started(home, session="s1", token_budget=100)
    row = interstat.insert("s1", input_tokens=1, output_tokens=0)
    home.spend(run)
    holder = sqlite3.connect(home.state / "ledger.db", isolation_level=None, timeout=5)
    holder.execute("BEGIN IMMEDIATE")
    interstat.update(row, input_tokens=120)
    assert home.spend(run).state == "exceeded"
    assert home.ctl("check", "--run", run).stdout == EXCEEDED
    wait_for(lambda: '"records": "refusals and overrides"' in daemon.log, "the daemon to report the locked ledger")
    assert "database is locked" in home.ctl("doctor").stdout
    holder.execute("ROLLBACK")
    holder.close()
    wait_for(lambda: len(events(home, "budget.exceeded", "phase.blocked")) == 2, "both events")
    wait_for(lambda: home.ctl("doctor").returncode == 0, "doctor to find no problems")


def test_attaching_a_session_with_usage_fires_thresholds(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """No other request or commit is needed."""
    interstat.insert("s1", input_tokens=5000, output_tokens=0)
    started(home, session="s1", whole=True, token_budget=1000)
    wait_for(lambda: len(events(home, "budget.exceeded")) == 1, "the new run's threshold")
    interstat.insert("s2", input_tokens=5000, output_tokens=0)
    run = started(home, token_budget=1000)
    home.ok("run", "attach", "--run", run, "--session", "s2", "--whole")
    wait_for(lambda: len(events(home, "budget.exceeded")) == 2, "the attached session's threshold")


def test_finishing_a_run_fires_its_last_thresholds(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=5000, output_tokens=0)
    home.ok("run", "finish", "--run", run)
    kinds = [kind for kind, _ in events(home)]
    assert kinds[-2:] == ["budget.exceeded", "run.finished"]


def test_largest_estimates_do_not_overflow(home: Home, daemon: Daemon) -> None:
    """After three phases with the largest allowed estimate, the run and the status still get answers."""
    file = home.root / ".config" / "fluxbudget" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"[phases]\ndefault = {2**63 - 1}\n")
    run = started(home, phases=("a", "b", "c", "d", "e"))
    for here in "abcd":
        advance(home, run, here)
    assert home.json("status")["runs"][0]["spend"]["spent"] == 2**63 - 1
    assert home.json("run", "show", "--run", run)["by_stage"][0]["provisional"] == 2**63 - 1
