"""Recovery from killed, hanging, misconfigured and failing daemons, with the next request."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fluxbudgetd.wire import messages
from harness.daemon import Wire, started, wait_for
from harness.events import committed_events
from harness.interstat import Interstat
from harness.jail_service import PATIENT, SERVICE, SOCKET, Account, systemctl
from harness.watch import Watch


@contextmanager
def started_by_hand(home: Account) -> Iterator[None]:
    command = [sys.executable, "-m", "fluxbudgetd"]
    with subprocess.Popen(command, env=home.environ, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b'"event": "ready"' in process.stderr.readline()
        yield
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0


def test_killed_daemon_loses_nothing(service: Account) -> None:
    """The next request is answered; the run, its totals and all of its events are still there."""
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=600, output_tokens=0)
    run = started(service, id="r1", session="s1", whole=True, token_budget=1000)
    with Watch(service, "--since", "0") as watch:
        # (It reconnects, but not before its first connection.)
        wait_for(watch.numbers, "the first event")
        for _ in range(6):  # more often than systemd's default start limit allows
            assert service.spend(run).spent
            before = service.pid
            os.kill(before, signal.SIGKILL)
            interstat.insert("s1", input_tokens=75, output_tokens=0)
            spent = int(service.ok("remaining", "--run", run, *PATIENT))
            assert service.pid not in (0, before)
        assert spent == 0
        wait_for(lambda: committed_events(service)[-1][1] == "budget.exceeded", "the last event")
        watch.wait_for_numbers([seq for seq, _kind, _run in committed_events(service)])
    thresholds = [
        (line["kind"], line["data"]["threshold"]) for line in watch.printed() if line["kind"].startswith("budget.")
    ]
    assert sorted(thresholds) == [
        ("budget.exceeded", 100),
        *(("budget.threshold", threshold) for threshold in (50, 80, 95, 100)),
        ("budget.warning", 80),
    ]
    assert service.restarts == 6
    interstat.close()


def test_hanging_daemon_is_restarted(home: Account) -> None:
    home.install("WatchdogSec=1s")
    interstat = Interstat(home.interstat)
    interstat.insert("s1", input_tokens=600, output_tokens=0)
    started(home, id="r1", session="s1", whole=True, token_budget=1000)
    hanging = home.pid
    os.kill(hanging, signal.SIGSTOP)
    assert home.ok("remaining", "--run", "r1", *PATIENT) == "400"
    assert home.pid != hanging
    assert home.restarts >= 1
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in home.journal())
    interstat.close()


def test_watchdog_leaves_a_working_daemon_alone(home: Account) -> None:
    home.install("WatchdogSec=1s")
    first = home.ping().pid
    before = int(home.show("WatchdogTimestampMonotonic"))
    wait_for(
        lambda: int(home.show("WatchdogTimestampMonotonic")) > before + 2_000_000, "two seconds of keep-alive messages"
    )
    assert (home.pid, home.restarts) == (first, 0)


def test_invalid_configuration_is_reported_until_it_is_fixed(service: Account) -> None:
    """Until then, requests cause no restart loop, and the socket keeps listening."""
    service.configure("[runs]\nwarnpct = 80\n")
    for _ in range(3):
        result = service.ctl("remaining", "--run", "r1", *PATIENT)
        assert (result.returncode, result.stdout) == (78, "")
        assert "config.toml: runs.warnpct is not a key" in result.stderr
        assert "hint: did you mean runs.warn_pct?" in result.stderr
    for _ in range(30):
        with Wire(service.socket) as wire:
            answer = wire.ask(messages.Ping(), 30)
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "bad_config"
    wait_for(lambda: service.show("ActiveState") == "failed", "the daemon to give up")
    assert (service.show("ExecMainStatus"), service.restarts) == ("78", 0)
    assert service.show("ActiveState", SOCKET) == "active"
    service.configure("[runs]\nwarn_pct = 80\n")
    assert service.ctl("ping", *PATIENT).returncode == 0
    assert service.show("ActiveState") == "active"


def test_service_uses_the_ledger_of_a_daemon_started_by_hand(home: Account) -> None:
    """The reverse holds, too: the state directory is the same with and without systemd."""
    with started_by_hand(home):
        started(home, id="r1", token_budget=1000)
    home.install()
    assert home.ok("remaining", "--run", "r1", *PATIENT) == "1000"
    home.ok("run", "set", "--run", "r1", "--budget", "2000")
    systemctl("stop", SOCKET, SERVICE)
    with started_by_hand(home):
        assert home.ok("remaining", "--run", "r1", *PATIENT) == "2000"


def test_stopped_units_leave_a_hard_limit_in_force(service: Account) -> None:
    """The runtime directory outlives the units, and with it the marker."""
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=1000, output_tokens=0)
    started(service, id="r1", session="s1", whole=True, token_budget=1000, enforcement="hard")
    marker = service.socket.parent / "hard" / "r1"
    assert service.spend("r1").remaining == 0
    wait_for(marker.exists, "the marker")
    systemctl("stop", SOCKET, SERVICE)
    assert marker.exists()
    prompt = json.dumps({"hook_event_name": "UserPromptSubmit", "session_id": "s1", "prompt": "go on"})
    answer = service.ctl("hook", stdin=prompt)
    assert json.loads(answer.stdout)["decision"] == "block"
    systemctl("start", SOCKET)
    service.ok("run", "finish", "--run", "r1")
    wait_for(lambda: not marker.exists(), "the marker to go")
    assert service.ctl("hook", stdin=prompt).stdout == ""
    interstat.close()
