"""A program that cannot be started, or fails each time: it is tried now and then, and the socket goes on listening."""

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
def running_instead(service: Account, program: str) -> Iterator[None]:
    unit = service.units / SERVICE
    working = unit.read_text()
    other = working.replace(f"\nExecStart={Path(sys.executable).parent}/fluxbudgetd\n", f"\nExecStart={program}\n")
    assert other != working
    unit.write_text(other)
    systemctl("daemon-reload")
    yield
    unit.write_text(working)
    systemctl("daemon-reload")


def test_program_that_is_not_there_for_a_while(service: Account) -> None:
    """As while it is being upgraded: whoever calls meanwhile waits, and is answered when it is back."""
    with running_instead(service, "/nowhere/fluxbudgetd"):
        early = Wire(service.socket)
        wait_for(lambda: service.show("ExecMainStatus") == "203", "a start in vain")
        assert service.ctl("ping", "--timeout", "0.5").returncode == 75
    with early:
        assert isinstance(early.ask(messages.Ping(), 30), messages.PingAnswer)
    assert service.show("ActiveState", SOCKET) == "active"
    assert service.restarts == 0


def test_program_that_fails_is_not_started_all_the_time(service: Account) -> None:
    failing = service.root / "failing"
    failing.write_text(FAILING)
    failing.chmod(0o700)
    starts = service.root / ".interband" / "starts"
    with running_instead(service, str(failing)), Wire(service.socket):
        wait_for(starts.exists, "a start")
        wait_for(lambda: service.show("SubState") == "stop-post", "the brake")
        assert starts.read_text() == "\n"
        wait_for(lambda: starts.read_text() == "\n\n", "the next start")
    assert service.show("ActiveState", SOCKET) == "active"


def test_sandbox_that_cannot_be_made_ends_in_silence(home: Account) -> None:
    """It fails at once, each time: for that alone the socket closes, and callers are told that nobody is there."""
    home.install("BindReadOnlyPaths=/nowhere")
    with Wire(home.socket):
        wait_for(lambda: home.show("Result", SOCKET) == "trigger-limit-hit", "the socket to be closed")
    assert home.show("ExecMainStatus") == "226"
    assert home.ctl("ping").returncode == 69
    home.drop_in("test")
    systemctl("restart", SOCKET)
    assert home.pinged().pid == home.pid
