"""Failing channels of a real daemon: they are retried, reported by doctor, and affect nothing else."""

import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from harness.daemon import Home, started, wait_for
from harness.events import (
    EXCEEDED,
    FIFTY,
    NINETY_FIVE,
    WARNING,
    CommandProgram,
    Subscriber,
    channels,
    configure,
    hook_message,
    interband_files,
    logged_thresholds,
    read_state_file,
    wait_until_delivered,
)
from harness.interstat import Interstat


def doctor(home: Home) -> tuple[int, str]:
    result = home.ctl("doctor")
    return result.returncode, result.stdout + result.stderr


BROKEN = [
    pytest.param(["sleep", "1000"], "sleep was killed after 0.2 s", id="hangs"),
    pytest.param(["sh", "-c", "echo 'no paper' >&2; exit 3"], "sh ended with exit code 3: no paper", id="fails"),
    pytest.param(["sh", "-c", "yes 'too much' >&2"], "sh was killed after 0.2 s", id="floods"),
    pytest.param(
        ["/nowhere/no-such-program"],
        "/nowhere/no-such-program cannot be started: No such file or directory",
        id="missing",
    ),
]


@pytest.mark.parametrize("noticed", ["by SIGHUP", "by the next request"])
@pytest.mark.parametrize(("argv", "complaint"), BROKEN)
def test_broken_channel_affects_no_other(
    home: Home, interstat: Interstat, command: CommandProgram, argv: list[str], complaint: str, noticed: str
) -> None:
    """Other channels deliver, answers are right, doctor names the fault. Once repaired, it catches up."""
    # (On a busy machine, a shell may take 0.2 s to start.)
    configure(home, argv=argv, command=f"timeout = {0.2 if 'after 0.2 s' in complaint else 60}")
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        wait_for(lambda: channels(home)["command"].state == "failing", "the command to fail")
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        assert home.ok("remaining", "--run", run) == "0"
        assert home.spend(run).spent == 1010
        stream.until("budget.exceeded")
        wait_for(lambda: interband_files(home) == {"s1": (100.0, 1010)}, "interband's file")
        wait_for(lambda: logged_thresholds(daemon) == [FIFTY, WARNING, NINETY_FIVE, EXCEEDED], "the log")
        assert "budget exceeded" in hook_message(home, "s1")
    code, output = doctor(home)
    assert code == 1
    assert f"channel command: {complaint}" in output
    one = channels(home)["command"]
    assert (one.state, one.detail) == ("failing", complaint)
    assert one.hint
    # The exceeded budget and the events before it are waiting.
    assert one.waiting > 0

    configure(home, argv=command.argv)
    if noticed == "by SIGHUP":
        daemon.signal(signal.SIGHUP)
        wait_for(lambda: command.thresholds == [WARNING, EXCEEDED], "the missed events")
    wait_until_delivered(home)
    assert command.thresholds == [WARNING, EXCEEDED]
    assert doctor(home)[0] == 0


def test_stop_while_a_command_hangs(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    """The daemon exits with 0, leaves no child, and delivers the event again after the restart."""
    pids = home.root / "pids"
    hanging = ["sh", "-c", 'sleep 1000 & echo $! $$ > "$1.new"; mv "$1.new" "$1"; wait', "sh", str(pids)]
    configure(home, argv=hanging, command="timeout = 60")
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        wait_for(pids.exists, "the command to hang")
        # Meanwhile the other channels deliver, and the numbers are right.
        interstat.insert("s1", input_tokens=150, output_tokens=0)
        assert home.spend(run).spent == 960
        stream.until("budget.threshold", 95)
        wait_for(lambda: interband_files(home) == {"s1": (96.0, 960)}, "interband's file")
        wait_for(lambda: logged_thresholds(daemon) == [FIFTY, WARNING, NINETY_FIVE], "the log")
        assert "80 %" in hook_message(home, "s1")
        wait_for(lambda: read_state_file(home, "runs", run), "the state file")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    for pid in pids.read_text().split():
        wait_for(partial(_is_dead, pid), f"process {pid} to end")
    configure(home, argv=command.argv)
    home.start()
    wait_for(lambda: command.thresholds == [WARNING], "the undelivered event")


def test_stop_waits_for_a_command_that_is_about_to_end(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """Its event is not delivered again after the restart."""
    configure(home, argv=["sh", "-c", 'cat >> "$1"; sleep 0.3', "sh", str(command.path)])
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: command.thresholds == [WARNING], "the command to have read its event")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    home.start()
    wait_until_delivered(home)
    assert command.thresholds == [WARNING]


@pytest.mark.parametrize("when", ["while the daemon runs", "at its end"])
def test_position_is_saved_after_the_ledger_is_unlocked(
    home: Home, interstat: Interstat, command: CommandProgram, when: str
) -> None:
    """Another process locks the ledger right after the delivery. The event is still delivered only once."""
    go = home.root / "go"
    waiting = 'cat >> "$1"; while [ ! -e "$2" ]; do sleep 0.01; done'
    configure(home, argv=["sh", "-c", waiting, "sh", str(command.path), str(go)], command="timeout = 30")
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: command.thresholds == [WARNING], "the command")
    with closing(sqlite3.connect(home.state / "ledger.db", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        go.touch()
        wait_for(lambda: "locked" in channels(home)["command"].detail, "the daemon to report the locked ledger")
        other.execute("ROLLBACK")
    if when == "while the daemon runs":
        wait_for(lambda: channels(home)["command"].state == "ok", "the command to be ok again")
        wait_for(lambda: saved_position(home, "command") >= command.events[0]["seq"], "its position to be on disk")
    assert daemon.stop() == 0
    assert saved_position(home, "command") >= command.events[0]["seq"]
    home.start()
    wait_until_delivered(home)
    assert command.thresholds == [WARNING]


def saved_position(home: Home, channel: str) -> int:
    """Return the position of a channel that is in the ledger."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        return int(connection.execute("SELECT seq FROM channels WHERE name = ?", (channel,)).fetchone()[0])


def _is_dead(pid: str) -> bool:
    """True if a process has ended, even if its parent has not waited for it yet."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_state_file_that_cannot_be_written_is_a_finding(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    home.start()
    run = started(home, session="s1", token_budget=1000)
    wait_for(lambda: read_state_file(home, "runs", run), "the state file")
    path = home.socket.parent / "state" / "runs" / run
    path.unlink()
    (path / "in-the-way").mkdir(parents=True)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    code, output = doctor(home)
    assert (code, "channel state files: " in output, run in output) == (1, True, True)
    wait_for(lambda: command.thresholds == [WARNING], "the command to deliver anyway")
    (path / "in-the-way").rmdir()
    path.rmdir()
    wait_for(lambda: doctor(home)[0] == 0, "the daemon to try again")
    found = read_state_file(home, "runs", run)
    assert found is not None
    assert found["spent"] == "810"


def test_interband_that_cannot_be_written_is_a_finding(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    home.start()
    (home.root / ".interband").write_text("a file in the directory's place")
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: channels(home)["interband"].state == "failing", "interband to fail")
    code, output = doctor(home)
    assert (code, "channel interband: " in output) == (1, True)
    wait_for(lambda: command.thresholds == [WARNING], "the command to deliver anyway")
    (home.root / ".interband").unlink()
    wait_for(lambda: interband_files(home) == {"s1": (81.0, 810)}, "the file, by a retry")
    wait_until_delivered(home)
