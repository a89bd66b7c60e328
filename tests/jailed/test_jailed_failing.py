"""A program that cannot be started or always fails: it is retried now and then, while the socket keeps listening."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxbudgetd.wire import messages
from harness.daemon import Wire, wait_for
from harness.jail_service import SERVICE, SOCKET, Account, systemctl

FAILING = """#!/bin/sh
echo >>"$HOME/.interband/starts"
exit 70
"""


@contextmanager
def run_instead(service: Account, program: str) -> Iterator[None]:
    unit = service.units / SERVICE
    working = unit.read_text()
    other = working.replace(f"\nExecStart={Path(sys.executable).parent}/fluxbudgetd\n", f"\nExecStart={program}\n")
    assert other != working
    unit.write_text(other)
    systemctl("daemon-reload")
    yield
    unit.write_text(working)
    systemctl("daemon-reload")


def test_program_that_is_missing_for_a_while(service: Account) -> None:
    """This happens during an upgrade: clients wait, and are answered once the program is back."""
    with run_instead(service, "/nowhere/fluxbudgetd"):
        early = Wire(service.socket)
        wait_for(lambda: service.show("ExecMainStatus") == "203", "a failed start")
        assert service.ctl("ping", "--timeout", "0.5").returncode == 75
    with early:
        assert isinstance(early.ask(messages.Ping(), 30), messages.PingAnswer)
    assert service.show("ActiveState", SOCKET) == "active"
    assert service.restarts == 0


def test_restarts_of_a_failing_program_slow_down(service: Account) -> None:
    failing = service.root / "failing"
    failing.write_text(FAILING)
    failing.chmod(0o700)
    starts = service.root / ".interband" / "starts"
    with run_instead(service, str(failing)), Wire(service.socket):
        wait_for(starts.exists, "a start")
        wait_for(lambda: service.show("SubState") == "stop-post", "the start limit")
        assert starts.read_text() == "\n"
        wait_for(lambda: starts.read_text() == "\n\n", "the next start")
    assert service.show("ActiveState", SOCKET) == "active"


def test_sandbox_that_cannot_be_set_up_closes_the_socket(home: Account) -> None:
    """Every start fails at once. Only in that case does the socket close, so that clients fail fast."""
    home.install("BindReadOnlyPaths=/nowhere")
    with Wire(home.socket):
        wait_for(lambda: home.show("Result", SOCKET) == "trigger-limit-hit", "the socket to be closed")
    assert home.show("ExecMainStatus") == "226"
    assert home.ctl("ping").returncode == 69
    home.drop_in("test")
    systemctl("restart", SOCKET)
    assert home.ping().pid == home.pid
