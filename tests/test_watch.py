"""`watch` and `top` with a real daemon that is killed, restarted, stopped, and started without its ledger."""

import json
import shutil
import signal
import sqlite3

from harness.daemon import Daemon, Home, wait_for
from harness.interstat import Interstat
from harness.suspend import suspend
from harness.terminal import InTerminal
from harness.watch import Watch


def written(home: Home) -> list[int]:
    """Return the numbers of the events in the ledger, read with SQLite."""
    connection = sqlite3.connect(f"file:{home.state / 'ledger.db'}?mode=ro", uri=True)
    try:
        return [seq for (seq,) in connection.execute("SELECT seq FROM events ORDER BY seq")]
    finally:
        connection.close()


def test_events_are_printed_as_in_the_ledger(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Old events come first, then new ones as they happen, each with its data."""
    home.ok("run", "start", "--id", "r1", "--budget", "1000", "--session", "s1")
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(written(home))
        interstat.insert("s1", input_tokens=850, output_tokens=0)
        home.ok("remaining", "--run", "r1")
        home.ok("advance", "--run", "r1", "--from", "brainstorm")
        home.ok("run", "finish", "--run", "r1")
        watch.wait_for_numbers(written(home))
        lines = watch.printed()
        assert all(list(line) == ["seq", "at", "run", "kind", "data", "by"] for line in lines)
        kinds = [line["kind"] for line in lines]
        assert kinds[0] == "run.started"
        assert kinds[-1] == "run.finished"
        assert "budget.warning" in kinds
        moved = next(line for line in lines if line["kind"] == "phase.advanced")
        assert (moved["run"], moved["data"]["from"]) == ("r1", "brainstorm")
        assert watch.end(signal.SIGINT) == 130
        assert watch.err == b""


def test_events_of_one_run(home: Home, daemon: Daemon) -> None:
    home.ok("run", "start", "--id", "r1")
    home.ok("run", "start", "--id", "r2")
    with Watch(home, "--run", "r2", "--since", "0") as watch:
        home.ok("run", "finish", "--run", "r1")
        home.ok("run", "finish", "--run", "r2")
        wait_for(lambda: [line["kind"] for line in watch.printed()] == ["run.started", "run.finished"], "both events")
        assert {line["run"] for line in watch.printed()} == {"r2"}


def test_unknown_run_is_exit_code_3(home: Home, daemon: Daemon) -> None:
    result = home.ctl("watch", "--run", "no-such")
    assert (result.returncode, result.stdout) == (3, "")


def test_heartbeats_are_printed_when_nothing_happens(home: Home, daemon: Daemon) -> None:
    with Watch(home, "--heartbeat", "0.1") as watch:
        wait_for(lambda: len(watch.printed()) >= 3, "heartbeats")
        assert {line["kind"] for line in watch.printed()} == {"heartbeat"}
        assert list(watch.printed()[0]) == ["kind", "at", "seq"]


def test_daemon_killed_and_restarted(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every event of three daemons is printed once, including those that happen while `watch` is disconnected."""
    current = daemon
    with Watch(home, "--since", "0") as watch, Watch(home, "--heartbeat", "0.1") as later:
        wait_for(later.printed, "a heartbeat: it listens")
        for number in range(3):
            home.ok("run", "start", "--id", f"r{number}")
            watch.wait_for_numbers(written(home))
            current.kill()
            watch.wait_for_stderr("connection lost", number + 1)
            current = home.start()
            home.ok("run", "finish", "--run", f"r{number}")
            watch.wait_for_numbers(written(home))
            watch.wait_for_stderr("connected again\n", number + 1)
        later.wait_for_numbers(written(home))
        assert watch.err.decode().count("connection lost") == 3


def test_stopped_daemon_counts_as_lost(home: Home, daemon: Daemon) -> None:
    with Watch(home, "--heartbeat", "0.2") as watch:
        wait_for(watch.printed, "a heartbeat: it listens")
        home.ok("run", "start", "--id", "r1")
        watch.wait_for_numbers(written(home))
        suspend(daemon.process.pid)
        watch.wait_for_stderr("connection lost (nothing arrived for 2 s)")
        daemon.signal(signal.SIGCONT)
        watch.wait_for_stderr("connected again")
        home.ok("run", "finish", "--run", "r1")
        watch.wait_for_numbers(written(home))


def test_replaced_ledger(home: Home, daemon: Daemon) -> None:
    for number in range(5):
        home.ok("run", "start", "--id", f"r{number}")
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(written(home))
        before = len(watch.numbers())
        daemon.kill()
        shutil.rmtree(home.state)
        home.start()
        watch.wait_for_stderr("the daemon has a new ledger")
        home.ok("run", "start", "--id", "new")
        wait_for(lambda: len(watch.numbers()) > before, "the new ledger's event")
        assert watch.printed()[-1]["run"] == "new"


def test_reader_of_a_damaged_ledger_misses_nothing_of_the_next(home: Home, daemon: Daemon) -> None:
    """The new ledger continues the numbering, even after another restart."""
    for number in range(3):
        home.ok("run", "start", "--id", f"old{number}")
    with Watch(home, "--since", "0") as watch, Watch(home, "--since", "0") as attentive:
        for each in (watch, attentive):
            each.wait_for_numbers(written(home))
        suspend(watch.process.pid)
        daemon.kill()
        (home.state / "ledger.db").write_bytes(b"x" * 10_000)
        for name in ("ledger.db-wal", "ledger.db-shm"):
            (home.state / name).unlink(missing_ok=True)
        second = home.start()
        attentive.wait_for_stderr("connected again")
        for number in range(3):
            home.ok("run", "start", "--id", f"new{number}")
        second.kill()
        home.start()
        for number in range(3, 5):
            home.ok("run", "start", "--id", f"new{number}")
        watch.process.send_signal(signal.SIGCONT)
        for each in (watch, attentive):
            each.wait_for_numbers([1, 2, 3, *written(home)])
            runs = [line["run"] for line in each.printed() if "data" in line]
            assert runs == [*(f"old{n}" for n in range(3)), *(f"new{n}" for n in range(5))]
            assert each.numbers() == sorted(set(each.numbers()))
            assert b"new ledger" not in each.err


def test_slow_reader_gets_everything(home: Home, daemon: Daemon) -> None:
    """A reader that is stopped while many events happen gets all of them in the end."""
    home.ok("run", "start", "--id", "r1")
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(written(home))
        suspend(watch.process.pid)
        for budget in range(1000, 1050):
            home.ok("run", "set", "--run", "r1", "--budget", str(budget))
        watch.process.send_signal(signal.SIGCONT)
        watch.wait_for_numbers(written(home))


def test_top_shows_a_real_run_and_survives_its_daemon(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    home.ok("run", "start", "--id", "r1", "--budget", "250000", "--session", "s1", "--goal", "write the parser")
    with InTerminal(home, "top") as shown:
        shown.wait_for("> r1", "0/250k", "r1: write the parser", "▶ brainstorm", "started with a budget of 250k")
        interstat.insert("s1", "fd-quality", input_tokens=208_000, output_tokens=0)
        shown.wait_for("208k/250k", "83.2%", "fd-quality", "warning: 80 % of the budget spent")
        home.ok("advance", "--run", "r1", "--from", "brainstorm")
        shown.wait_for("✓ brainstorm ", "phase brainstorm → ")
        daemon.kill()
        shown.wait_for("daemon away, waiting", "208k/250k")
        again = home.start()
        shown.wait_until_gone("daemon away")
        home.ok("run", "start", "--id", "r2")
        shown.wait_for("2 active runs", "  r2", "> r1")
        suspend(again.process.pid)
        shown.wait_for("daemon away, waiting")
        again.signal(signal.SIGCONT)
        shown.wait_until_gone("daemon away")
        shown.press("q")
        assert shown.end() == 0


def test_lines_are_ascii_json(home: Home, daemon: Daemon) -> None:
    home.ok("run", "start", "--id", "r1", "--scope", "bead-ü")
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(written(home))
        assert watch.out.isascii()
        assert json.loads(watch.out.splitlines()[0])["data"]["scope"] == "bead-ü"
