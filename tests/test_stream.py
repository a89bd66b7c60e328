"""`watch` with a daemon that disconnects, goes away, does not answer, repeats itself, or has a new ledger."""

import json
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import CTL, Home, wait_for
from harness.scripted_daemon import AT, ScriptedDaemon, error, event
from harness.watch import Watch


@pytest.fixture
def served(home: Home) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(home.socket) as daemon:
        yield daemon


def some(first: int, last: int) -> list[messages.EventAnswer]:
    return [event(number) for number in range(first, last + 1)]


def test_event_is_one_line_of_ascii_with_these_keys(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.happen(event(7, "phase.blocked", "r\u20ac", reason="ü\n", spent=3, budget=None, pct=1.5))
        wait_for(lambda: watch.out.endswith(b"\n"), "a line")
        assert watch.out.isascii()
        (line,) = watch.printed()
        assert list(line) == ["seq", "at", "run", "kind", "data", "by"]
        assert line == {
            "seq": 7, "at": AT, "run": "r\u20ac", "kind": "phase.blocked",
            "data": {"reason": "ü\n", "spent": 3, "budget": None, "pct": 1.5}, "by": None,
        }  # fmt: skip
        assert watch.end(signal.SIGINT) == 130
        assert watch.err == b""


def test_subscription_request(home: Home, served: ScriptedDaemon) -> None:
    """Without --since, it starts now. Daemon heartbeats come at least every 15 s and divide the given interval."""
    served.events = some(1, 5)
    cases = {
        (): (None, None, 15_000),
        ("--heartbeat", "0"): (None, None, 15_000),
        ("--heartbeat", "20", "--run", "r2"): (None, "r2", 10_000),
        ("--heartbeat", "0.1", "--since", "0"): (0, None, 100),
        ("--heartbeat", "3600", "--since", "9223372036854775807"): (2**63 - 1, None, 15_000),
    }
    for arguments, (since, run, heartbeat_ms) in cases.items():
        with Watch(home, *arguments):
            wait_for(served.subscriptions, "the request")
        (found,) = served.subscriptions()
        served.asked.clear()
        assert (found.since, found.run, found.heartbeat_ms) == (since, run, heartbeat_ms)


@pytest.mark.parametrize("how", ["cut", "vanish"])
def test_no_event_is_missed_or_repeated(home: Home, served: ScriptedDaemon, how: str) -> None:
    """Events during a disconnection are printed afterwards; each disconnection and reconnection is reported once."""
    served.events = some(1, 3)
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(range(1, 4))
        for round_ in range(3):
            first = 4 + 2 * round_
            if how == "cut":
                served.events += some(first, first)
                served.cut()
            else:
                served.close()
                watch.wait_for_stderr("connection lost", round_ + 1)
                served.events += some(first, first)
                served.open()
            watch.wait_for_numbers(range(1, first + 1))
            served.wait_for_subscriber()
            served.happen(event(first + 1))
            watch.wait_for_numbers(range(1, first + 2))
        assert watch.end(signal.SIGTERM) == 143
        assert (
            watch.err.decode().splitlines()
            == [
                "fluxbudgetctl: connection lost (the daemon closed the connection), waiting for the daemon",
                "fluxbudgetctl: connected again",
            ]
            * 3
        )


def test_loss_before_the_first_event_misses_nothing(home: Home, served: ScriptedDaemon) -> None:
    """Without --since, the stream starts at the moment of the first answer, even after a reconnection."""
    served.events = some(1, 3)
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.close()
        served.events += some(4, 5)
        served.open()
        watch.wait_for_numbers([4, 5])
    assert [request.since for request in served.subscriptions()] == [None, 3]


def test_repeated_events_are_dropped(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home, "--since", "0") as watch:
        served.wait_for_subscriber()
        served.send(*some(1, 3), *some(2, 4))
        served.send(event(4), event(5))
        watch.wait_for_numbers([1, 2, 3, 4, 5])


def test_heartbeats_advance_the_position(home: Home, served: ScriptedDaemon) -> None:
    """The daemon does not have to search events again that it has already skipped for this run."""
    with Watch(home, "--run", "r2", "--since", "0") as watch:
        served.wait_for_subscriber()
        served.send(messages.HeartbeatAnswer(at=AT, seq=40))
        served.send(messages.LaggedAnswer(at=AT, seq=41, behind=9))
        wait_for(watch.printed, "lagged")
        served.events = some(1, 41)
        served.cut()
        watch.wait_for_stderr("connected again")
    assert [(request.since, request.run) for request in served.subscriptions()] == [(0, "r2"), (41, "r2")]


def test_heartbeats_are_printed_as_often_as_asked(home: Home, served: ScriptedDaemon) -> None:
    """Here every second heartbeat of the daemon is printed; an event restarts the interval."""
    beat = messages.HeartbeatAnswer(at=AT, seq=0)
    with Watch(home, "--heartbeat", "30") as watch, Watch(home, "--heartbeat", "0") as silent:
        served.wait_for_subscriber(2)
        served.send(beat, beat, beat)
        served.happen(event(1))
        served.send(beat, messages.LaggedAnswer(at=AT, seq=1, behind=5), beat, beat, beat)
        served.happen(event(2))
        watch.wait_for_numbers([1, 2])
        assert [line["kind"] for line in watch.printed()] == [
            "heartbeat", "run.changed", "lagged", "heartbeat", "run.changed",
        ]  # fmt: skip
        assert watch.printed()[0] == {"kind": "heartbeat", "at": AT, "seq": 0}
        assert watch.printed()[2] == {"kind": "lagged", "at": AT, "seq": 1, "behind": 5}
        silent.wait_for_numbers([1, 2])
        assert "heartbeat" not in {line["kind"] for line in silent.printed()}


def test_silent_daemon_counts_as_lost_until_it_answers_again(home: Home, served: ScriptedDaemon) -> None:
    """It counts as lost after three missing heartbeats, even though the connection is open."""
    with Watch(home, "--heartbeat", "0.1", "--timeout", "60") as watch:
        served.wait_for_subscriber()
        served.mute.set()
        watch.wait_for_stderr("connection lost (nothing arrived for 2 s), waiting for the daemon")
        served.events = some(1, 2)
        served.speak()
        watch.wait_for_numbers([1, 2])
        watch.wait_for_stderr("connected again")


def test_new_ledger_is_reported_and_followed(home: Home, served: ScriptedDaemon) -> None:
    served.events = some(1, 50)
    with Watch(home, "--since", "48") as watch:
        watch.wait_for_numbers([49, 50])
        served.close()
        served.events = some(1, 2)
        served.open()
        watch.wait_for_stderr("the daemon has a new ledger; continuing after event 2")
        served.wait_for_subscriber()
        served.happen(event(3))
        watch.wait_for_numbers([49, 50, 3])


def test_first_attempt_that_fails_is_a_failure(home: Home) -> None:
    result = home.ctl("watch")
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr.startswith("fluxbudgetctl: no daemon at ")
    with ScriptedDaemon(home.socket) as daemon:
        daemon.mute.set()
        result = home.ctl("watch", "--timeout", "0.2")
        assert (result.returncode, result.stdout) == (75, "")
        assert "within 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("code", "exit_code"), [("no_run", 3), ("bad_input", 65), ("busy", 69), ("timeout", 75), ("unknown_op", 70)]
)
def test_error_answers_end_watch(home: Home, served: ScriptedDaemon, code: str, exit_code: int) -> None:
    served.refusal = error(code)
    result = home.ctl("watch", "--run", "x", "--timeout", "20")
    assert (result.returncode, result.stdout, result.stderr) == (exit_code, "", "fluxbudgetctl: m\nhint: h\n")


def test_error_answers_end_watch_after_a_reconnection(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.refusal = error("no_run", "there is no such run")
        served.cut()
        assert watch.end() == 3
        assert watch.err.decode().splitlines()[-2:] == ["fluxbudgetctl: there is no such run", "hint: h"]


def test_busy_daemon_is_retried_after_a_disconnection(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.refusal = error("busy")
        served.events = some(1, 1)
        served.cut()
        wait_for(lambda: len(served.subscriptions()) > 2, "more than one attempt")
        served.refusal = None
        watch.wait_for_numbers([1])


def test_error_in_the_stream_loses_nothing_before_it(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.events = some(1, 3)
        served.send(event(1), event(2), error("busy"))
        watch.wait_for_numbers([1, 2, 3])
        served.send(event(4), error("ledger", "no more"))
        assert watch.end() == 70
        assert watch.numbers() == [1, 2, 3, 4]
        assert "fluxbudgetctl: no more\n" in watch.err.decode()


def test_garbage_after_events_loses_nothing_before_it(home: Home, served: ScriptedDaemon) -> None:
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.send(event(1), messages.PingAnswer(version="1", protocol=1, pid=1, started_at=AT))
        assert watch.end() == 70
        assert watch.numbers() == [1]
        assert "not understood" in watch.err.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["connected", "waiting", "writing"])
def test_signals_end_watch_quietly(
    home: Home, served: ScriptedDaemon, number: signal.Signals, code: int, where: str
) -> None:
    """It may be waiting for events, for the daemon, or for its reader."""
    if where == "writing":
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            [*CTL, "watch"], env=home.environ, cwd=home.project, stdout=write_end, stderr=subprocess.PIPE
        )
        served.wait_for_subscriber()
        served.happen(*(event(number, text="x" * 1000) for number in range(1, 200)))
        wait_for(lambda: not select.select([], [write_end], [], 0)[1], "the pipe to be full")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        os.close(read_end)
        os.close(write_end)
        assert (process.returncode, err) == (code, b"")
        return
    with Watch(home) as watch:
        served.wait_for_subscriber()
        if where == "waiting":
            served.close()
            watch.wait_for_stderr("waiting for the daemon")
        said = watch.err
        assert watch.end(number) == code
        assert watch.err == said


def test_reader_that_goes_away_ends_watch_quietly(home: Home, served: ScriptedDaemon) -> None:
    """It ends at once, not only when the next event happens."""
    command = f"{shlex.join(CTL)} watch --since 0 | head -1; echo ${{PIPESTATUS[0]}}"
    served.events = some(1, 3)
    result = subprocess.run(
        ["bash", "-c", command], env=home.environ, cwd=home.project, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    line, code = result.stdout.splitlines()
    assert json.loads(line)["seq"] == 1
    assert (code, result.stderr) == ("0", "")


def test_output_that_cannot_be_written_is_reported(home: Home, served: ScriptedDaemon) -> None:
    served.events = some(1, 1)
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*CTL, "watch", "--since", "0"], env=home.environ, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert result.returncode == 70
    assert b"the output cannot be written" in result.stderr


def test_waiting_causes_no_wakeups(home: Home, served: ScriptedDaemon) -> None:
    """While nothing happens, the number of voluntary context switches does not change."""
    with Watch(home) as watch:
        served.wait_for_subscriber()
        served.happen(event(1))
        watch.wait_for_numbers([1])

        def status() -> dict[str, str]:
            lines = Path(f"/proc/{watch.process.pid}/status").read_text().splitlines()
            return dict(line.split(":\t", 1) for line in lines)

        def switches_asleep() -> str | None:
            found = status()
            assert found["Threads"] == "1"
            return found["voluntary_ctxt_switches"] if found["State"].startswith("S") else None

        before = wait_for(switches_asleep, "it to become idle")
        for _ in range(3):
            home.ctl("version", "--timeout", "5")  # as long as processes take to come and go
        assert status()["voluntary_ctxt_switches"] == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since", "-1"),
        ("--since", "x"),
        ("--since", str(2**63)),
        ("--heartbeat", "-1"),
        ("--heartbeat", "nan"),
        ("--heartbeat", "0.01"),
        ("--heartbeat", "3601"),
        ("--run", ""),
        ("--tui", "--since", "1"),
        ("--tui", "--heartbeat", "1"),
    ],
)
def test_wrong_command_lines(home: Home, arguments: tuple[str, ...]) -> None:
    result = home.ctl("watch", *arguments)
    assert (result.returncode, result.stdout) == (64, "")
    assert result.stderr.startswith("fluxbudgetctl: ") or "fluxbudgetctl watch" in result.stderr


def test_many_events_in_small_and_large_bursts(home: Home, served: ScriptedDaemon) -> None:
    served.events = some(1, 5000)
    with Watch(home, "--since", "0") as watch:
        watch.wait_for_numbers(range(1, 5001))
        for number in range(5001, 5100):
            served.happen(event(number))
        watch.wait_for_numbers(range(1, 5100))
