"""Telling: what happens is told on every channel, once, by a real daemon to real files, programs and readers."""

import fcntl
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.clock import now_micros
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.events import delivery as delivery_module
from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger import Ledger, LedgerWriter, open_ledger
from fluxbudgetd.model import Event
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.interstat import Interstat
from harness.telling import (
    Program,
    Stream,
    Told,
    alerts,
    changed,
    channels,
    committed,
    configure,
    hooked,
    logged,
    require_quiet,
    state_file,
)
from harness.transcripts import Transcript

HALF = Told("budget.threshold", 50)
EIGHTY = Told("budget.threshold", 80)
WARNING = Told("budget.warning", 80)
NEARLY = Told("budget.threshold", 95)
ALL = Told("budget.threshold", 100)
EXCEEDED = Told("budget.exceeded", 100)


@pytest.fixture
def program(home: Home) -> Program:
    """Give the program that the command channel starts, which is configured."""
    made = Program(home)
    configure(home, argv=made.argv)
    return made


# One crossing, every channel.


def test_one_commit_over_the_mark_tells_every_channel_once(home: Home, interstat: Interstat, program: Program) -> None:
    """More commits above it tell nothing more; another budget tells again; a lower one at once."""
    daemon = home.start()
    run = started(home, id="r1", session="s1", token_budget=1000, scope="b1", goal="the parser")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=700, output_tokens=110)
        warning = stream.until("budget.warning")
        assert stream.thresholds == [HALF, EIGHTY, WARNING]
        assert (warning.run, warning.data["spent"], warning.data["budget"], warning.data["pct"]) == (
            "r1",
            810,
            1000,
            81,
        )
        wait_for(lambda: program.told == [WARNING], "the command")
        wait_for(lambda: alerts(home) == {"s1": (81.0, 810), "s2": (81.0, 810)}, "interband's files")
        for session in ("s1", "s2"):
            assert "80 % of the budget spent: run r1" in hooked(home, session)
            assert hooked(home, session) == ""
        for _ in range(100):
            interstat.insert("s1", input_tokens=1, output_tokens=0)
        assert home.spend(run).spent == 910

        changed(home, messages.RunSet(run=run, token_budget=10_000, wait_ms=30_000))
        wait_for(lambda: alerts(home) == {}, "interband's files to go")
        assert (hooked(home, "s1"), hooked(home, "s2")) == ("", "")
        interstat.insert("s2", input_tokens=7190, output_tokens=0)
        assert stream.until("budget.warning").data["spent"] == 8100
        wait_for(lambda: alerts(home) == {"s1": (81.0, 8100), "s2": (81.0, 8100)}, "interband's files once more")
        assert "80 % of the budget spent" in hooked(home, "s2")

        changed(home, messages.RunSet(run=run, token_budget=8500, wait_ms=30_000))
        stream.until("budget.threshold", 95)
        changed(home, messages.RunSet(run=run, token_budget=8000, wait_ms=30_000))
        assert stream.until("budget.exceeded").data["budget"] == 8000
        wait_for(lambda: alerts(home) == {"s1": (100.0, 8100), "s2": (100.0, 8100)}, "a full bar")
        assert "the budget is used up" in hooked(home, "s1")
        assert "the budget is used up" in hooked(home, "s2")
        require_quiet(home)
        assert (hooked(home, "s1"), hooked(home, "s2")) == ("", "")

        again = [HALF, EIGHTY, WARNING, HALF, EIGHTY, WARNING, NEARLY, ALL, EXCEEDED]
        assert stream.thresholds == again
        assert [entry[0] for entry in committed(home)][-len(stream.events) :] == stream.seqs
    assert daemon.stop() == 0
    assert program.told == [WARNING, WARNING, EXCEEDED]
    assert logged(daemon) == [HALF, WARNING, HALF, WARNING, NEARLY, EXCEEDED]
    said = program.events[0]
    assert (said["run"], said["scope"], said["goal"], said["project_dir"]) == (
        "r1",
        "b1",
        "the parser",
        str(home.project),
    )
    assert said["message"].startswith("fluxbudget: 80 % of the budget spent: run r1, phase brainstorm: 810 of 1 000")
    assert (said["seq"], said["at"], said["data"]) == (warning.seq, warning.at, warning.data)


def test_jump_over_every_mark_tells_each_once(home: Home, interstat: Interstat, program: Program) -> None:
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        assert home.spend(run).spent == 100
        interstat.insert("s1", input_tokens=900, output_tokens=0)
        stream.until("budget.exceeded")
        assert stream.thresholds == [HALF, EIGHTY, WARNING, NEARLY, ALL, EXCEEDED]
    require_quiet(home)
    assert "the budget is used up" in hooked(home, "s1")  # the gravest, and only that
    assert hooked(home, "s1") == ""
    assert daemon.stop() == 0
    assert program.told == [WARNING, EXCEEDED]
    assert logged(daemon) == [HALF, WARNING, NEARLY, EXCEEDED]


def test_transcript_that_grows_over_the_mark_is_told(home: Home, program: Program) -> None:
    """Nobody asks anything: the daemon sees it by itself."""
    home.start()
    writer = Transcript(home.root / "claude", "s1")
    writer.response("m1", tokens=(10, 0, 0, 0))
    started(home, session="s1", token_budget=1000)
    with Stream(home, since=0) as stream:
        writer.response("m2", tokens=(800, 0, 0, 0))
        stream.until("budget.warning")
    wait_for(lambda: program.told == [WARNING], "the command")


def test_restart_tells_nothing_again(home: Home, interstat: Interstat, program: Program) -> None:
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: program.told == [WARNING], "the command")
    assert hooked(home, "s1")
    require_quiet(home)
    daemon.stop()
    second = home.start()
    assert home.spend(run).spent == 810
    assert hooked(home, "s1") == ""
    interstat.insert("s1", input_tokens=150, output_tokens=0)
    wait_for(lambda: NEARLY in logged(second), "the log")
    require_quiet(home)
    second.stop()
    assert (program.told, logged(second)) == ([WARNING], [NEARLY])


def test_what_happened_while_the_daemon_was_away_is_told(home: Home, interstat: Interstat, program: Program) -> None:
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    daemon.kill()
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    home.start()
    wait_for(lambda: program.told == [WARNING], "the command")
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810)}, "interband's file")


@pytest.mark.parametrize("kind", ["budget.warning", "budget.threshold"])
def test_event_in_which_a_byte_has_turned_over(home: Home, interstat: Interstat, program: Program, kind: str) -> None:
    """It keeps its number and says no more; the daemon starts, and what comes later is told everywhere."""
    configure(home, argv=["false"])
    daemon = home.start()
    started(home, id="r1", session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: channels(home)["command"].state == "failing", "the command to fail: it has to be told again")
    assert daemon.stop() == 0
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection, connection:
        turned = "UPDATE events SET data = CAST(replace(CAST(data AS TEXT), ?, ?) AS BLOB) WHERE kind = ?"
        assert connection.execute(turned, ('{"threshold"', '{!threshold"', kind)).rowcount
    configure(home, argv=program.argv)
    home.start()
    with Stream(home, since=0) as stream:
        stream.up_to(committed(home)[-1][0])
        assert [(one.seq, one.kind, one.run or "") for one in stream.events] == committed(home)
        assert {one.kind: one.data for one in stream.events}[kind] == {}
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        stream.until("budget.exceeded")
    wait_for(lambda: alerts(home) == {"s1": (100.0, 1010)}, "interband's file")
    wait_for(lambda: program.told[-1:] == [EXCEEDED], "the command")
    assert "the budget is used up" in hooked(home, "s1")
    require_quiet(home)


# Interband follows the runs and their sessions.


def test_interband_follows_sessions_and_runs(home: Home, interstat: Interstat, program: Program) -> None:
    """Files come with a session, go when it leaves or the run ends; those of others are left alone."""
    home.start()
    run = started(home, session="s1", token_budget=1000)
    other = started(home, session="o1", token_budget=1000)
    foreign = home.root / ".interband" / "interstat" / "budget" / "stranger.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"payload": {"pct_consumed": 1, "total_tokens": 2}}')
    stranger = {"stranger": (1, 2)}
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    interstat.insert("o1", input_tokens=900, output_tokens=0)
    others = {"o1": (90.0, 900), **stranger}
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810), **others}, "a file of each run's session")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810), "s2": (81.0, 810), **others}, "the new session's file")
    home.ok("run", "detach", "--session", "s2")
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810), **others}, "the detached session's file to go")
    home.ok("run", "attach", "--run", other, "--session", "s1")
    # What s1 has used stays with its run; its status line shows the run that it is in now.
    wait_for(lambda: alerts(home) == {"s1": (90.0, 900), **others}, "the moved session's file")
    home.ok("run", "attach", "--run", run, "--session", "s3")
    wait_for(lambda: "s3" in alerts(home), "the third session's file")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: alerts(home) == {"s1": (90.0, 900), **others}, "only the ended run's files to go")
    home.ok("run", "cancel", "--run", other)
    wait_for(lambda: alerts(home) == stranger, "all but the stranger's file to go")


def test_session_that_its_rows_bring_along_gets_an_interband_file(
    home: Home, interstat: Interstat, program: Program
) -> None:
    """A row that names the run's bead attaches its session, whose status line then shows the warned run."""
    home.start()
    run = started(home, session="s1", scope="b1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810)}, "the file")
    interstat.insert("s2", input_tokens=20, output_tokens=0, bead_id="b1")
    assert home.spend(run).spent == 830
    wait_for(lambda: set(alerts(home)) == {"s1", "s2"}, "the file of the session that has come along")


def test_interband_below_the_marks_is_removed_and_above_half_rewritten(
    home: Home, interstat: Interstat, program: Program
) -> None:
    home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: alerts(home) == {"s1": (90.0, 900)}, "the file")
    changed(home, messages.RunSet(run=run, token_budget=1500, wait_ms=30_000))
    wait_for(lambda: alerts(home) == {"s1": (60.0, 900)}, "the file of what holds now")
    changed(home, messages.RunSet(run=run, token_budget="none", wait_ms=30_000))
    wait_for(lambda: alerts(home) == {}, "the file of an unlimited run to go")


def test_interband_does_not_show_a_run_that_ended_while_it_was_off(
    home: Home, interstat: Interstat, program: Program
) -> None:
    """Its reader never looks at a file's age: what was written before has to go, at the latest when it is on again."""
    home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: alerts(home) == {"s1": (90.0, 900)}, "the file")
    configure(home, "[channels.interband]\nenabled = false\n")
    assert channels(home)["interband"].state == "off"
    home.ok("run", "finish", "--run", run)
    configure(home)
    assert channels(home)["interband"].state == "ok"
    started(home, session="s2", token_budget=1000)
    require_quiet(home)
    assert alerts(home) == {}


def test_interband_moves_with_its_configuration(home: Home, interstat: Interstat, program: Program) -> None:
    """Nothing is left where it was: nobody would ever take it away there."""
    old, new = home.root / "old", home.root / "new"

    def sessions_in(root: Path) -> set[str]:
        return {path.stem for path in (root / "interstat" / "budget").glob("*.json")}

    configure(home, f'[channels.interband]\nroot = "{old}"\n')
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: sessions_in(old) == {"s1"}, "the file")
    configure(home, f'[channels.interband]\nroot = "{new}"\n')
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: (sessions_in(old), sessions_in(new)) == (set(), {"s1"}), "the file to be in the new place alone")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: not sessions_in(new), "the file to go")


def test_interband_is_removed_when_a_request_finds_it_switched_off(
    home: Home, interstat: Interstat, program: Program
) -> None:
    """Any request that reads the configuration is enough: no SIGHUP, and no new usage."""
    configure(home)
    home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: alerts(home) == {"s1": (90.0, 900)}, "the file")
    configure(home, "[channels.interband]\nenabled = false\n")
    home.ctl("doctor")
    wait_for(lambda: not alerts(home), "the file to go")


def test_interband_file_that_cannot_be_written_stops_no_other(
    home: Home, interstat: Interstat, program: Program
) -> None:
    """Neither those of its own run nor those of others, which are warned of later; and it is tried again."""
    home.start()
    blocked = home.root / ".interband" / "interstat" / "budget" / "s1.json"
    (blocked / "in-the-way").mkdir(parents=True)
    run = started(home, session="s1", token_budget=1000)
    home.ok("run", "attach", "--run", run, "--session", "s2")
    others = [f"o{number}" for number in range(5)]
    for name in others:
        started(home, session=name, scope=f"b-{name}", token_budget=1000)

    def written() -> set[str]:
        return {path.stem for path in blocked.parent.glob("*.json") if path.is_file()}

    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: written() == {"s2"}, "the other session's file")
    wait_for(lambda: channels(home)["interband"].state == "failing", "interband to fail")
    assert "s1.json cannot be written" in channels(home)["interband"].detail
    for name in others:
        interstat.insert(name, input_tokens=950, output_tokens=0)
    wait_for(lambda: written() == {"s2", *others}, "the other runs' files")
    for name in others:
        # It comes along with its row: no event says so.
        interstat.insert(f"{name}-late", input_tokens=1, output_tokens=0, bead_id=f"b-{name}")
    others += [f"{name}-late" for name in others]
    wait_for(lambda: written() == {"s2", *others}, "the files of their new sessions")
    (blocked / "in-the-way").rmdir()
    blocked.rmdir()
    expected = {**dict.fromkeys(["s1", "s2"], (90.0, 900)), **dict.fromkeys(others, (95.1, 951))}
    wait_for(lambda: alerts(home) == expected, "all of them")
    require_quiet(home)


def test_interband_file_that_is_true_is_never_too_old(home: Home, interstat: Interstat, program: Program) -> None:
    """Nobody has used anything for more than a week, and the run is still above its mark."""
    home.start()
    for name in ("1", "2"):
        started(home, id=f"r{name}", session=f"s{name}", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: set(alerts(home)) == {"s1"}, "the first run's file")
    require_quiet(home)
    directory = home.root / ".interband" / "interstat" / "budget"
    (directory / "forgotten.json").write_text('{"payload": {"pct_consumed": 1, "total_tokens": 2}}')
    long_ago = time.time() - 8 * 24 * 3600
    for name in ("s1.json", "forgotten.json"):
        os.utime(directory / name, (long_ago, long_ago))
    interstat.insert("s2", input_tokens=900, output_tokens=0)
    wait_for(lambda: "s2" in alerts(home), "the second run's file")
    wait_for(lambda: "forgotten" not in alerts(home), "what is old to go")
    require_quiet(home)
    assert set(alerts(home)) == {"s1", "s2"}


# Which thresholds a channel wants.


def test_channels_have_thresholds_of_their_own(home: Home, interstat: Interstat, program: Program) -> None:
    """90 is told by the command alone, though `warnings` does not have it; the log has those of `warnings`."""
    configure(
        home,
        "[warnings]\nthresholds = [30]\n[channels.hook]\nthresholds = [100]\n[channels.interband]\nthresholds = [70]\n",
        argv=program.argv,
        command="thresholds = [90]",
    )
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=650, output_tokens=0)
        stream.until("budget.threshold", 30)
        require_quiet(home)
        assert alerts(home) == {}
        interstat.insert("s1", input_tokens=180, output_tokens=0)
        stream.until("budget.warning")
        wait_for(lambda: alerts(home) == {"s1": (83.0, 830)}, "the file")
        assert hooked(home, "s1") == ""
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        stream.until("budget.threshold", 90)
        wait_for(lambda: program.told == [Told("budget.threshold", 90)], "the command")
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        stream.until("budget.exceeded")
    require_quiet(home)
    assert "the budget is used up" in hooked(home, "s1")
    daemon.stop()
    assert program.told == [Told("budget.threshold", 90)]
    assert logged(daemon) == [Told("budget.threshold", 30)]


def test_channel_that_was_off_does_not_tell_old_events(home: Home, interstat: Interstat, program: Program) -> None:
    configure(
        home,
        "[channels.log]\nenabled = false\n[channels.interband]\nenabled = false\n",
        argv=program.argv,
        command="enabled = false",
    )
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        require_quiet(home)
        assert {name for name, one in channels(home).items() if one.state != "off"} == {"state files"}
        configure(home, argv=program.argv)
        require_quiet(home)
        assert {name for name, one in channels(home).items() if one.state == "off"} == {"desktop"}
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        stream.until("budget.exceeded")
    wait_for(lambda: alerts(home) == {"s1": (100.0, 1010)}, "interband's file")
    require_quiet(home)
    assert home.spend(run).spent == 1010
    daemon.stop()
    assert program.told == [EXCEEDED]
    assert logged(daemon) == [NEARLY, EXCEEDED]


# Channels that do not work.


def doctor(home: Home) -> tuple[int, str]:
    result = home.ctl("doctor")
    return result.returncode, result.stdout + result.stderr


BROKEN = [
    pytest.param(["sleep", "1000"], "sleep was killed after 0.2 s", id="hangs"),
    pytest.param(["sh", "-c", "echo 'no paper' >&2; exit 3"], "sh ended with exit code 3: no paper", id="fails"),
    pytest.param(["sh", "-c", "yes 'too much' >&2"], "sh was killed after 0.2 s", id="floods"),
    pytest.param(["/nowhere/tell-me"], "/nowhere/tell-me cannot be started: No such file or directory", id="missing"),
]


@pytest.mark.parametrize("told", ["by SIGHUP", "by the next look"])
@pytest.mark.parametrize(("argv", "complaint"), BROKEN)
def test_broken_channel_costs_nobody_else_anything(
    home: Home, interstat: Interstat, program: Program, argv: list[str], complaint: str, told: str
) -> None:
    """The others are told, answers are right, doctor names it; once it is mended it is told what it has missed."""
    configure(home, argv=argv, command="timeout = 0.2")
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        wait_for(lambda: channels(home)["command"].state == "failing", "the command to fail")
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        assert home.ok("remaining", "--run", run) == "0"
        assert home.spend(run).spent == 1010
        stream.until("budget.exceeded")
        wait_for(lambda: alerts(home) == {"s1": (100.0, 1010)}, "interband's file")
        wait_for(lambda: logged(daemon) == [HALF, WARNING, NEARLY, EXCEEDED], "the log")
        assert "the budget is used up" in hooked(home, "s1")
    code, said = doctor(home)
    assert code == 1
    assert f"channel command: {complaint}" in said
    one = channels(home)["command"]
    assert (one.state, one.detail) == ("failing", complaint)
    assert one.hint
    # Behind it are the exceeded budget and what came with it.
    assert one.waiting > 0

    configure(home, argv=program.argv)
    if told == "by SIGHUP":
        daemon.signal(signal.SIGHUP)
        wait_for(lambda: program.told == [WARNING, EXCEEDED], "what was missed")
    require_quiet(home)
    assert program.told == [WARNING, EXCEEDED]
    assert doctor(home)[0] == 0


def test_stop_while_a_command_hangs(home: Home, interstat: Interstat, program: Program) -> None:
    """Exit 0, no child left behind; and what it was not done with is told again."""
    pids = home.root / "pids"
    hanging = ["sh", "-c", 'sleep 1000 & echo $! $$ > "$1.new"; mv "$1.new" "$1"; wait', "sh", str(pids)]
    configure(home, argv=hanging, command="timeout = 60")
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Stream(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        wait_for(pids.exists, "the command to hang")
        # While it hangs: everybody else has been told, and numbers are right.
        interstat.insert("s1", input_tokens=150, output_tokens=0)
        assert home.spend(run).spent == 960
        stream.until("budget.threshold", 95)
        wait_for(lambda: alerts(home) == {"s1": (96.0, 960)}, "interband's file")
        wait_for(lambda: logged(daemon) == [HALF, WARNING, NEARLY], "the log")
        assert "80 %" in hooked(home, "s1")
        wait_for(lambda: state_file(home, "runs", run), "the state file")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    for pid in pids.read_text().split():
        wait_for(partial(_is_dead, pid), f"process {pid} to end")
    configure(home, argv=program.argv)
    home.start()
    wait_for(lambda: program.told == [WARNING], "what was not done")


def test_command_that_is_about_to_end_is_let_do_so(home: Home, interstat: Interstat, program: Program) -> None:
    """SIGTERM while it does what it was told: it is not told the same again."""
    told = home.root / "told.jsonl"
    configure(home, argv=["sh", "-c", 'cat >> "$1"; sleep 0.3', "sh", str(told)])
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: program.told == [WARNING], "the command to have read what it is told")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    home.start()
    require_quiet(home)
    assert program.told == [WARNING]


@pytest.mark.parametrize("when", ["while the daemon runs", "at its end"])
def test_place_that_cannot_be_saved_is_saved_later(
    home: Home, interstat: Interstat, program: Program, when: str
) -> None:
    """Somebody holds the ledger just when the command was told: it is told once all the same."""
    go = home.root / "go"
    waiting = 'cat >> "$1"; while [ ! -e "$2" ]; do sleep 0.01; done'
    configure(home, argv=["sh", "-c", waiting, "sh", str(program.path), str(go)], command="timeout = 30")
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: program.told == [WARNING], "the command")
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        go.touch()
        wait_for(lambda: "locked" in channels(home)["command"].detail, "the ledger to be missed")
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: channels(home)["command"].state == "ok", "the command to be well again")
        wait_for(lambda: saved_place(home, "command") >= program.events[0]["seq"], "its place to be on disk")
    assert daemon.stop() == 0
    assert saved_place(home, "command") >= program.events[0]["seq"]
    home.start()
    require_quiet(home)
    assert program.told == [WARNING]


def saved_place(home: Home, channel: str) -> int:
    """Return the number of the last event that the ledger says a channel is done with."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        return int(connection.execute("SELECT seq FROM channels WHERE name = ?", (channel,)).fetchone()[0])


def _is_dead(pid: str) -> bool:
    """Tell whether a process has ended, though nobody has waited for it yet."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_state_file_that_cannot_be_written_is_a_finding(home: Home, interstat: Interstat, program: Program) -> None:
    home.start()
    run = started(home, session="s1", token_budget=1000)
    wait_for(lambda: state_file(home, "runs", run), "the state file")
    path = home.socket.parent / "state" / "runs" / run
    path.unlink()
    (path / "in-the-way").mkdir(parents=True)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    code, said = doctor(home)
    assert (code, "channel state files: " in said, run in said) == (1, True, True)
    wait_for(lambda: program.told == [WARNING], "the command all the same")
    (path / "in-the-way").rmdir()
    path.rmdir()
    wait_for(lambda: doctor(home)[0] == 0, "the daemon to try again")
    found = state_file(home, "runs", run)
    assert found is not None
    assert found["spent"] == "810"


def test_interband_that_cannot_be_written_is_a_finding(home: Home, interstat: Interstat, program: Program) -> None:
    home.start()
    (home.root / ".interband").write_text("a file in the directory's place")
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: channels(home)["interband"].state == "failing", "interband to fail")
    code, said = doctor(home)
    assert (code, "channel interband: " in said) == (1, True)
    wait_for(lambda: program.told == [WARNING], "the command all the same")
    (home.root / ".interband").unlink()
    wait_for(lambda: alerts(home) == {"s1": (81.0, 810)}, "the file, once it is tried again")
    require_quiet(home)


class _Slow:
    """A channel whose first delivery hangs, and then fails."""

    name = "command"
    latest_only = False
    enabled = True
    is_incomplete = False

    def __init__(self) -> None:
        self.began, self.let, self.delivered = anyio.Event(), anyio.Event(), anyio.Event()

    def wants(self, event: Event) -> bool:
        return True

    def is_outdated(self, account: RunAccount) -> bool:
        return False

    async def reconcile(self) -> None:
        pass

    async def deliver(self, event: Event) -> None:
        if self.began.is_set():
            self.delivered.set()
            return
        self.began.set()
        await self.let.wait()
        raise ChannelError("it was killed", "mend it")


@asynccontextmanager
async def _served(directory: Path, channel: "_Slow") -> AsyncIterator[tuple[Delivery, Ledger]]:
    """Deliver to a channel, with a ledger of its own."""
    newest = NewestEvents()
    ledger, _ = await open_ledger(str(directory), newest.add)
    try:
        events, writer = EventLog(newest, ledger.events), LedgerWriter()
        await events.load()
        delivery = Delivery(channel, events, ledger.deliveries, writer, now_micros, lambda: True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.serve)
            tasks.start_soon(delivery.serve)
            yield delivery, ledger
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ledger.close()


async def _save_event(ledger: Ledger) -> None:
    await ledger.events.add([(now_micros(), None, ("source.degraded", {"source": "interstat"}))])


@pytest.mark.parametrize("when", ["before it has failed", "afterwards"])
def test_failed_channel_is_tried_again_as_soon_as_something_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A command hangs for a minute, and is mended meanwhile or afterwards: that is not noticed only minutes later."""
    monkeypatch.setattr(delivery_module, "_SHORTEST_PAUSE_SECONDS", 3600.0)

    async def body() -> None:
        channel = _Slow()
        async with _served(tmp_path, channel) as (delivery, ledger):
            await _save_event(ledger)
            await channel.began.wait()
            if when == "before it has failed":
                delivery.retry_now()
            channel.let.set()
            if when == "afterwards":
                with anyio.fail_after(10):
                    while delivery.state != "failing":  # noqa: ASYNC110  it is seen from outside
                        await anyio.sleep(0.005)
                delivery.retry_now()
            with anyio.move_on_after(10):
                await channel.delivered.wait()
        assert channel.delivered.is_set()

    anyio.run(body)


class _Failing(_Slow):
    """A channel that fails until it is let; it notes when it was tried."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[float] = []

    async def deliver(self, event: Event) -> None:
        self.tries.append(anyio.current_time())
        if not self.let.is_set():
            raise ChannelError("it is down", "mend it")
        self.delivered.set()


async def _tried(channel: _Failing, times: int) -> None:
    with anyio.fail_after(30):
        while len(channel.tries) < times:  # noqa: ASYNC110  it is seen from outside
            await anyio.sleep(0.001)


def test_pauses_grow_while_a_channel_fails_and_are_short_again_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause is never shorter than twice the one before; who has worked in between is tried again soon."""
    shortest = 0.005
    monkeypatch.setattr(delivery_module, "_SHORTEST_PAUSE_SECONDS", shortest)
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE_SECONDS", 3600.0)

    async def body() -> None:
        channel = _Failing()
        async with _served(tmp_path, channel) as (delivery, ledger):
            await _save_event(ledger)
            await _tried(channel, 7)
            pauses = [later - earlier for earlier, later in pairwise(channel.tries)]
            assert all(pause >= shortest * 2**number for number, pause in enumerate(pauses)), pauses
            while len(channel.tries) < 30:  # at once, whatever pause it is in
                delivery.retry_now()
                await _tried(channel, len(channel.tries) + 1)
            channel.let.set()
            delivery.retry_now()
            with anyio.fail_after(30):
                await channel.delivered.wait()
            channel.let = anyio.Event()
            before = len(channel.tries)
            await _save_event(ledger)
            await _tried(channel, before + 3)

    anyio.run(body)


# Subscribers.


def refused(home: Home, run: str, times: int) -> None:
    """Make so many events: refusals of a run whose budget is used up; wait until they are committed."""
    before = len(committed(home))
    with Wire(home.socket) as wire:
        for _ in range(times):
            answer = wire.ask(messages.Check(run=run, wait_ms=0))
            assert isinstance(answer, messages.CheckAnswer), answer
            assert answer.refusal is not None
    wait_for(lambda: len(committed(home)) >= before + times, "the events")


@pytest.fixture
def served(home: Home, interstat: Interstat) -> Daemon:
    """Start a daemon without a command."""
    configure(home)
    return home.start()


@pytest.fixture
def exceeded(home: Home, interstat: Interstat, served: Daemon) -> str:
    """Start a run and use its budget up."""
    run = started(home, id="full", session="s1", token_budget=10)
    with Stream(home, since=0) as stream:
        interstat.insert("s1", input_tokens=10, output_tokens=0)
        stream.until("budget.exceeded")
    return run


def numbers(home: Home) -> list[int]:
    return [seq for seq, _, _ in committed(home)]


def test_subscriber_begins_where_it_says(home: Home, exceeded: str) -> None:
    """Behind a number, or with what comes; a number that is not there yet means another ledger: from the beginning."""
    last = numbers(home)[-1]
    cases = ((0, 0), (3, 3), (last, last), (None, last), (last + 1, 0), (10**12, 0), (-5, 0))
    streams = []
    for since, begins in cases:
        stream = Stream(home, since=since)
        assert (stream.began.since, stream.began.last) == (begins, last), since
        streams.append((stream, begins))
    refused(home, exceeded, 3)
    everything = numbers(home)
    for stream, begins in streams:
        assert stream.up_to(everything[-1]) == [seq for seq in everything if seq > begins]
        stream.close()


def test_subscriber_begins_near_the_oldest_event_in_memory(home: Home, exceeded: str) -> None:
    """The latest 512 are in memory, older ones only in the ledger: wherever it begins, none is missing, none twice."""
    refused(home, exceeded, 700)
    everything = numbers(home)
    for since in range(everything[-1] - 516, everything[-1] - 508):
        with Stream(home, since=since) as stream:
            assert stream.up_to(everything[-1]) == list(range(since + 1, everything[-1] + 1))


def test_subscriber_gets_what_is_in_the_ledger(home: Home, exceeded: str) -> None:
    with Stream(home, since=0) as stream:
        stream.up_to(numbers(home)[-1])
        assert [(one.seq, one.kind, one.run or "") for one in stream.events] == committed(home)
        assert stream.events[0].at < stream.events[-1].at


def test_subscriber_of_one_run(home: Home, exceeded: str) -> None:
    """Only that run's events; heartbeats tell how far the stream is, so that it can go on there."""
    other = started(home, id="other", token_budget=1000)
    with Stream(home, since=0, run=other, heartbeat_ms=100) as stream, Stream(home, run=exceeded) as present:
        assert isinstance(stream.next(), messages.EventAnswer)
        refused(home, exceeded, 4)
        changed(home, messages.RunSet(run=other, token_budget=7, wait_ms=30_000))
        last = numbers(home)[-1]

        def caught_up() -> bool:
            answer = stream.next()
            return isinstance(answer, messages.HeartbeatAnswer) and answer.seq == last

        wait_for(caught_up, "a heartbeat that says that everything was told")
        assert [(one.kind, one.run) for one in stream.events] == [("run.started", other), ("run.changed", other)]
        present.up_to(last - 1)
        assert [(one.kind, one.run) for one in present.events] == 4 * [("phase.blocked", exceeded)]


def test_subscriber_of_one_run_gets_heartbeats_while_others_are_busy(home: Home, exceeded: str) -> None:
    """What happens to others is no sign of life for it; and each heartbeat says how far it is."""
    started(home, id="quiet", token_budget=1000)
    enough = threading.Event()

    def be_busy() -> None:
        with Wire(home.socket) as wire:
            while not enough.is_set():
                wire.ask(messages.Check(run=exceeded, wait_ms=0))

    busy = threading.Thread(target=be_busy)
    with Stream(home, run="quiet", heartbeat_ms=500) as stream:
        busy.start()
        places: list[int] = []
        try:
            while len(set(places)) < 3:
                answer = stream.next()
                if isinstance(answer, messages.HeartbeatAnswer):
                    places.append(answer.seq)
        finally:
            enough.set()
            busy.join()
        assert stream.events == []
        assert places == sorted(places)


def test_subscriber_of_a_run_that_there_is_not(home: Home, exceeded: str) -> None:
    with Wire(home.socket) as wire:
        answer = wire.ask(messages.Subscribe(run="nobody"))
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "no_run"
        with pytest.raises(EOFError):
            wire.receive()


def test_heartbeats(home: Home, exceeded: str) -> None:
    """They come while nothing happens, at most every 100 ms, and never change what is told."""
    with Stream(home, heartbeat_ms=1) as stream:
        last = numbers(home)[-1]
        beats = [stream.next() for _ in range(3)]
        assert all(isinstance(one, messages.HeartbeatAnswer) and one.seq == last for one in beats)
        times = [one.at for one in beats if isinstance(one, messages.HeartbeatAnswer)]
        assert all(before < after for before, after in pairwise(times))
        refused(home, exceeded, 1)
        assert stream.up_to(last + 1) == [last + 1]
        after = stream.next()
        assert isinstance(after, messages.HeartbeatAnswer)
        assert after.seq == last + 1


def test_slow_reader_is_told_that_it_lags_and_misses_nothing(home: Home, exceeded: str) -> None:
    """5 200 events happen while it does not read; nobody else notices, and who reads along never lags."""
    first = numbers(home)[-1]
    with Stream(home) as slow, Stream(home) as attentive:
        lagged = []
        for _ in range(26):
            refused(home, exceeded, 200)
            last = numbers(home)[-1]
            while not attentive.events or attentive.events[-1].seq < last:
                assert isinstance(attentive.next(), messages.EventAnswer)
            assert home.spend(exceeded).spent == 10
        assert attentive.seqs == list(range(first + 1, last + 1))
        while not slow.events or slow.events[-1].seq < last:
            answer = slow.next()
            if isinstance(answer, messages.LaggedAnswer):
                assert answer.seq == slow.events[-1].seq
                assert answer.behind == last - answer.seq
                lagged.append(answer)
        assert slow.seqs == attentive.seqs
        assert len(lagged) == 1
        # It has caught up: what comes now comes as to everybody.
        refused(home, exceeded, 1)
        slow.up_to(last + 1)
        assert slow.seqs[-2:] == [last, last + 1]


def test_many_subscribers_of_whom_some_vanish(home: Home, exceeded: str) -> None:
    """Each gets every event; those who go without a word are forgotten."""
    first = numbers(home)[-1]

    def connections() -> int:
        answer = home.ask(messages.Doctor(wait_ms=30_000))
        assert isinstance(answer, messages.DoctorAnswer)
        return answer.connections

    streams = [Stream(home) for _ in range(50)]
    refused(home, exceeded, 20)
    for stream in streams:
        assert stream.up_to(first + 20) == list(range(first + 1, first + 21))
    for stream in streams[::2]:
        stream.close()
    wait_for(lambda: connections() == 1 + 25, "those who have gone to be forgotten")
    refused(home, exceeded, 20)
    for stream in streams[1::2]:
        assert stream.up_to(first + 40) == list(range(first + 1, first + 41))
        stream.close()
    wait_for(lambda: connections() == 1, "all to be forgotten")


def test_vanishing_in_the_middle_of_a_flood(home: Home, exceeded: str) -> None:
    """A reader that goes while the daemon waits for it to read is forgotten, too."""
    readers = [Stream(home) for _ in range(5)]
    refused(home, exceeded, 1500)
    for reader in readers:
        reader.close()

    def connections() -> int:
        answer = home.ask(messages.Doctor(wait_ms=30_000))
        assert isinstance(answer, messages.DoctorAnswer)
        return answer.connections

    wait_for(lambda: connections() == 1, "the readers to be forgotten")


def test_end_of_the_daemon_ends_the_streams(home: Home, served: Daemon, exceeded: str) -> None:
    """At a frame's end for who reads; one that does not read does not keep the daemon from ending."""
    last = numbers(home)[-1]
    with Stream(home) as stream, Stream(home, heartbeat_ms=100) as beating, Stream(home) as stuck:
        refused(home, exceeded, 2000)
        stream.up_to(last + 2000)
        beating.up_to(last + 2000)
        served.signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0
        assert all(isinstance(answer, messages.HeartbeatAnswer) for answer in beating.rest())
        assert stream.rest() == []
        assert (stream.wire.unfinished, beating.wire.unfinished) == (0, 0)
        stuck.rest()
        assert stuck.seqs == list(range(last + 1, last + 1 + len(stuck.seqs)))
        assert 0 < len(stuck.seqs) < 2000
    home.start()
    with Stream(home, since=stuck.seqs[-1]) as resumed:
        assert resumed.up_to(last + 2000) == list(range(stuck.seqs[-1] + 1, last + 2001))


# State files.


def state_files(home: Home) -> set[str]:
    """Return what is in the state directory, but for the lock."""
    root = home.socket.parent / "state"
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()} - {
        "alive"
    }


def is_held(home: Home) -> bool:
    """Tell whether a daemon says that it lives, as a reader of state files finds out."""
    try:
        fd = os.open(home.socket.parent / "state" / "alive", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def test_state_files_follow_their_runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    wait_for(lambda: is_held(home), "the lock")
    run = started(home, id="r1", session="s1", scope="b1", token_budget=1000)
    wait_for(lambda: state_files(home) == {"runs/r1", "sessions/s1", "scopes/b1"}, "the run's files")

    def shows(**expected: str) -> None:
        def does() -> bool:
            found = state_file(home, "runs", "r1") or {}
            return {name: found.get(name) for name in expected} == expected

        wait_for(does, f"the state file to say {expected}")

    shows(run="r1", phase="brainstorm", state="ok", budget="1000", spent="0", remaining="1000", pct="0.0", reserved="0")
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    shows(state="warning", spent="810", remaining="190", pct="81.0", stale="0")
    assert state_file(home, "sessions", "s1") == state_file(home, "scopes", "b1") == state_file(home, "runs", "r1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    wait_for(lambda: "sessions/s2" in state_files(home), "the new session's link")
    home.ok("run", "detach", "--session", "s2")
    wait_for(lambda: "sessions/s2" not in state_files(home), "the link to go")
    home.ok("advance", "--run", run, "--from", "brainstorm")
    shows(phase="brainstorm-reviewed")
    home.ok("run", "set", "--run", run, "--budget", "500000")
    shows(budget="500000", state="ok", remaining="499190")
    given = {"session_id": "s1", "hook_event_name": "PreToolUse", "cwd": "/x", "tool_name": "Agent"}
    asked = messages.Hook(
        input=json.dumps({**given, "tool_input": {"subagent_type": "fd-quality"}}).encode(), wait_ms=30_000
    )
    assert home.ask(asked) == messages.HookAnswer()
    reserved = home.spend(run).reserved
    assert reserved > 0
    shows(reserved=str(reserved), remaining=str(499_190 - reserved))
    other = started(home, id="r2", session="o1", token_budget=7)
    home.ok("run", "attach", "--run", other, "--session", "s1")
    wait_for(lambda: (state_file(home, "sessions", "s1") or {}).get("run") == "r2", "the moved session's link")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: state_files(home) == {"runs/r2", "sessions/o1", "sessions/s1"}, "the ended run's files to go")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    assert state_files(home) == set()
    assert not (home.socket.parent / "state" / "alive").exists()


def test_state_files_after_a_kill_and_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """They are left, and nobody holds the lock; the next daemon removes what is no more, and shows what is."""
    run = started(home, id="r1", session="s1", token_budget=1000)
    gone = started(home, id="r2", session="s2", scope="b2", token_budget=1000)
    everything = {"runs/r1", "sessions/s1", "runs/r2", "sessions/s2", "scopes/b2"}
    wait_for(lambda: state_files(home) == everything, "the files")
    daemon.kill()
    assert state_files(home) == everything
    assert not is_held(home)
    assert (home.socket.parent / "state" / "alive").exists()
    for name in ("runs/ghost", "sessions/ghost", ".fluxbudget-left"):
        (home.socket.parent / "state" / name).write_text("run=ghost\n")
    second = home.start()
    wait_for(lambda: is_held(home), "the lock")
    wait_for(lambda: state_files(home) == everything, "the same files, and no ghosts")
    home.ok("run", "cancel", "--run", gone)
    second.kill()
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    home.start()

    def is_right() -> bool:
        return (
            state_files(home) == {"runs/r1", "sessions/s1"} and (state_file(home, "runs", run) or {})["spent"] == "810"
        )

    wait_for(is_right, "what holds now")


def test_state_files_of_hostile_names_stay_inside(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """`.` and `..` are runs' ids like any other; sessions and scopes may be called anything."""
    names = {".": "s/../../1", "..": "../../../evil", "...": ".hidden", "a:b": "/etc/passwd", "x": "new\nline"}
    for name, foreign in names.items():
        started(home, id=name, session=foreign, scope=f"{foreign}/..", token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 15, "a file and two links for each")
    assert {path for path in state_files(home) if path.startswith("runs/")} == {
        "runs/%2E", "runs/%2E.", "runs/%2E..", "runs/a:b", "runs/x",
    }  # fmt: skip
    state = home.socket.parent / "state"
    for path in (state / "sessions", state / "scopes"):
        for link in path.iterdir():
            found = state_file(home, path.name, link.name)
            assert found is not None
            assert found["run"] in names
            assert Path(os.path.realpath(link)).parent == state / "runs"
    inside = {entry.name for entry in state.iterdir()}
    assert inside == {"alive", "runs", "sessions", "scopes"}
    assert {entry.name for entry in home.socket.parent.iterdir()} == {
        "fluxbudgetd.sock",
        "fluxbudgetd.sock.lock",
        "state",
    }
    assert {entry.name for entry in (home.root / "run").iterdir()} == {"fluxbudget"}
    for name in names:
        home.ok("run", "finish", "--run", name)
    wait_for(lambda: state_files(home) == set(), "all of them to go")


def test_state_files_that_could_not_be_removed_are_removed_later(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """While one run's file cannot be written, another run ends and a session leaves: once all is well so are they."""
    blocked = started(home, id="blocked", session="s1", token_budget=1000)
    ending = started(home, id="ending", session="s2", scope="b2", token_budget=1000)
    staying = started(home, id="staying", session="s3", token_budget=1000)
    home.ok("run", "attach", "--run", staying, "--session", "s4")
    wait_for(lambda: len(state_files(home)) == 8, "the files")
    path = home.socket.parent / "state" / "runs" / blocked
    path.unlink()
    path.mkdir()
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    home.ok("run", "finish", "--run", ending)
    home.ok("run", "detach", "--session", "s4")
    wait_for(lambda: "sessions/s4" not in state_files(home), "the session's link to go, by the next try")
    path.rmdir()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    assert state_files(home) == {"runs/blocked", "sessions/s1", "runs/staying", "sessions/s3"}


def test_state_files_that_a_failing_round_has_made_go_with_their_runs(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """While one run's file cannot be written, another run begins and a session comes; both are gone soon after."""
    blocked = started(home, id="blocked", session="s1", token_budget=1000)
    staying = started(home, id="staying", session="s2", token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 4, "the files")
    path = home.socket.parent / "state" / "runs" / blocked
    path.unlink()
    path.mkdir()
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    home.ok("run", "attach", "--run", staying, "--session", "s9")
    brief = started(home, id="brief", session="s8", scope="b8", token_budget=1000)
    wait_for(lambda: {"sessions/s9", "scopes/b8", "runs/brief"} <= state_files(home), "what can be made to be made")
    home.ok("run", "detach", "--session", "s9")
    home.ok("run", "finish", "--run", brief)
    path.rmdir()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    expected = {"runs/blocked", "sessions/s1", "runs/staying", "sessions/s2"}
    wait_for(lambda: state_files(home) == expected, "what has gone to be gone")


def test_state_files_that_could_not_be_begun_are_begun_later(home: Home, interstat: Interstat) -> None:
    """Though no run is there that would have one."""
    home.socket.parent.mkdir(parents=True)
    in_the_way = home.socket.parent / "state"
    in_the_way.write_text("a file in the directory's place")
    home.start()
    assert channels(home)["state files"].state == "failing"
    in_the_way.unlink()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    assert is_held(home)


def test_daemon_that_is_ready_holds_the_lock(home: Home, interstat: Interstat) -> None:
    """Who was told that it is ready believes the state files."""
    for _ in range(3):
        daemon = home.start()
        assert is_held(home)
        daemon.stop()
        assert not is_held(home)


def test_scope_that_goes_on_in_another_run_keeps_its_state_file(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """A run ends and the next of its scope begins, at once."""
    scopes = [f"b{number}" for number in range(20)]
    for scope in scopes:
        started(home, id=f"old-{scope}", scope=scope, token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 40, "the files")
    with Wire(home.socket) as wire:
        for scope in scopes:
            wire.ask(messages.RunFinish(run=f"old-{scope}", wait_ms=30_000))
            wire.ask(
                messages.RunStart(id=f"new-{scope}", scope=scope, project_dir="/p", token_budget=7, wait_ms=30_000)
            )
    expected = {scope: f"new-{scope}" for scope in scopes}

    def shown() -> dict[str, str]:
        return {scope: (state_file(home, "scopes", scope) or {}).get("run", "") for scope in scopes}

    wait_for(lambda: shown() == expected, "each scope's state file to be the new run's")
    wait_for(lambda: not any("/old" in name for name in state_files(home)), "the old runs' files to go")
