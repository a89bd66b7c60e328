"""Whoever sends a little now and then, or reads nothing, does not keep a client: its deadline is one for everything.

(The limits of the subprocesses are far above; a client that does not end by itself is what they are for.)
"""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fluxbudgetd.wire.framing import MAX_FRAME
from harness.daemon import CTL, Home
from harness.false_daemon import answering, frame
from harness.native import both_clients
from harness.odd_answers import HOOK, STATUSLINE
from harness.pipes import full_pipe

PATIENCE = 30
#: Between two bytes: less than any deadline here, and with all that is announced, hours.
STEP = 0.02
BRIEF = ("--timeout", "0.5")


@contextmanager
def dripping_daemon(home: Home) -> Iterator[None]:
    """Serve at the home's socket, a byte at a time, a frame as large as any, until the client hangs up."""
    home.socket.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()
        ended = threading.Event()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(MAX_FRAME.to_bytes(4, "big"))
                while not ended.wait(STEP):
                    peer.sendall(b"\xc0")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "env", "check", "ping", "hook", "statusline"])
def test_answer_that_drips_is_left_at_the_deadline(home: Home, verb: str) -> None:
    with dripping_daemon(home):
        result = subprocess.run(
            [*CTL, verb, *BRIEF], env=home.environ, input=b"{}", capture_output=True, timeout=PATIENCE, check=False
        )
    assert (result.returncode, result.stdout) == (0 if verb == "hook" else 75, b""), result
    assert verb != "hook" or result.stderr == b""


@both_clients
@pytest.mark.parametrize(("verb", "code"), [("hook", 0), ("statusline", 75)])
def test_input_that_drips_is_left_at_the_deadline(home: Home, verb: str, code: int) -> None:
    ended = threading.Event()
    with answering(home, frame(HOOK if verb == "hook" else STATUSLINE)) as asked:
        process = subprocess.Popen(
            [*CTL, verb, *BRIEF],
            env=home.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert process.stdin is not None
        given = process.stdin

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(STEP):
                    given.write(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert process.wait(PATIENCE) == code
        finally:
            process.kill()
            ended.set()
            thread.join()
            output, _ = process.communicate()
    assert (output, asked) == (b"", [])


@both_clients
@pytest.mark.parametrize(("verb", "code"), [("hook", 0), ("statusline", 69)])
def test_what_nobody_reads_on_stderr_is_left_at_the_deadline(home: Home, verb: str, code: int) -> None:
    with full_pipe() as pipe:
        result = subprocess.run(
            [*CTL, verb, *BRIEF],
            env={**home.environ, "FLUXBUDGET_DEBUG": "1"},
            input=b"{}",
            stdout=subprocess.PIPE,
            stderr=pipe.writing,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stdout) == (code, b"")


@both_clients
def test_answer_is_printed_though_nobody_reads_what_is_said_about_it(home: Home) -> None:
    """What is said comes first, and takes all the time that there is; there is room for the line."""
    with answering(home, frame({**STATUSLINE, "stale_why": "w" * 9_000})), full_pipe(os.sysconf("SC_PAGESIZE")) as pipe:
        result = subprocess.run(
            [*CTL, "statusline", "--timeout", "2"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=pipe.writing,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stdout.decode()) == (0, f"{STATUSLINE['line']}\n")
