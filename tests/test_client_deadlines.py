"""One deadline covers everything: peers that send slowly or do not read cannot hold up the client.

(The time limits of the subprocesses are much longer. They only catch a client that does not end.)
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
from harness.false_daemon import answering, replied
from harness.native import both_clients
from harness.pipes import full_pipe

PATIENCE = 30
#: Seconds between two bytes: less than any deadline here, but hours for the whole frame.
STEP = 0.02
BRIEF = ("--timeout", "0.5")


@contextmanager
def dripping_daemon(home: Home) -> Iterator[None]:
    """Serve the largest possible frame at the home's socket, byte by byte, until the client disconnects."""
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
@pytest.mark.parametrize("verb", ["remaining", "env", "check", "advance", "ping", "hook", "statusline"])
def test_slow_answer_is_given_up_at_the_deadline(home: Home, verb: str) -> None:
    with dripping_daemon(home):
        result = subprocess.run(
            [*CTL, verb, *BRIEF, *(["--from", "p"] if verb == "advance" else [])],
            env=home.environ,
            input=b"{}",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stdout) == (0 if verb == "hook" else 75, b""), result
    assert verb != "hook" or result.stderr == b""


@both_clients
@pytest.mark.parametrize(("verb", "code"), [("hook", 0), ("statusline", 75)])
def test_slow_input_is_given_up_at_the_deadline(home: Home, verb: str, code: int) -> None:
    ended = threading.Event()
    with answering(home, replied("{}\n")) as asked:
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
def test_unread_stderr_is_given_up_at_the_deadline(home: Home, verb: str, code: int) -> None:
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
def test_answer_is_printed_although_stderr_is_not_read(home: Home) -> None:
    """Writing to stderr comes first and uses up the time limit; the line is written because there is room for it."""
    with answering(home, replied("line\n", "w" * 9_000 + "\n")), full_pipe(os.sysconf("SC_PAGESIZE")) as pipe:
        result = subprocess.run(
            [*CTL, "statusline", "--timeout", "2"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=pipe.writing,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stdout.decode()) == (0, "line\n")
