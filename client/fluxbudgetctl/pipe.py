"""The pipe: a command line goes to the daemon, and its output comes back.

Shell hooks call these verbs all the time, so this module and what it imports cost no milliseconds (argparse, msgspec or
the socket module would each take longer than the answer). The native client, `client/native`, is the same pipe in C.
The rules for both:

* The client understands only `--timeout`. The daemon understands the command line; if it does not (`--help`, unusual
  spellings, mistakes), it says so, and `commands.piped` takes over.
* It connects before it reads stdin, and forwards stdin while it waits. Once the answer is there, stdin is left alone.
* One deadline covers connecting, reading stdin, sending and receiving; for `hook` and `statusline`, which Claude Code
  waits for, also stdout and stderr. The other verbs wait until their output is read.
* An answer is checked completely before any of it is used.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time

from fluxbudgetctl import environment, stdio
from fluxbudgetctl.connection import connect, hung_up, no_answer, not_understood, request_frame, unreachable
from fluxbudgetctl.failure import Failure, failure_of, limit_stderr, print_stderr, write_stderr
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.framing import FrameDecoder, FrameError
from fluxbudgetd.wire.packed import PackedError, Value, pack, unpack
from fluxbudgetd.wire.text import one_line

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from fluxbudgetd.wire.replies import Reply

#: The verbs, with their time limits in seconds.
VERBS = {"remaining": 0.2, "env": 1.0, "check": 1.0, "advance": 1.0, "ping": 1.0, "hook": 0.2, "statusline": 0.2}
#: Claude Code calls these: they get its JSON on stdin, and nothing makes them wait longer than their deadline.
CLAUDES = ("hook", "statusline")
MAX_SECONDS = 3600.0

_VARIABLES = (
    "FLUXBUDGET_RUN",
    "CLAVAIN_BEAD_ID",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_SESSION_ID",
    "CLAVAIN_SKIP_BUDGET",
    "COLUMNS",
    "NO_COLOR",
    "TERM",
)
_CHUNK = 65536
_HIGHEST_EXIT_CODE = 255


class Answer:
    """What to print: complete lines, as bytes. (`wire.replies` makes the same kind of answer.)"""

    def __init__(self, exit_code: int, out: bytes, err: bytes, exports: bytes) -> None:
        self.exit_code = exit_code
        self.out = out
        self.err = err
        self.exports = exports
        """Lines for the file that `$CLAUDE_ENV_FILE` names."""


class Call:
    """A command line, its time limit, and what has been read of its stdin."""

    def __init__(self, words: Sequence[str], seconds: float, started_ns: int, stdin: stdio.Stdin | None = None) -> None:
        """`words` begin with the verb; `started_ns` is monotonic; `stdin` is that of an earlier attempt."""
        self.words = words
        self.verb = words[0]
        self.seconds = seconds
        self.started_ns = started_ns
        self.deadline = started_ns / 1e9 + seconds
        self.is_claudes = self.verb in CLAUDES
        self.stdin = stdin or stdio.Stdin(is_read=self.is_claudes)
        limit_stderr(self.deadline if self.is_claudes else None)


def time_limit(words: Sequence[str]) -> float | None:
    """Return a command line's time limit in seconds; None unless `--timeout` is given plainly, and at most once."""
    limit = None
    rest = iter(words[1:])
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--timeout":
            continue
        value = value if equals else next(rest, "")
        digits = value.replace(".", "", 1)
        if limit is not None or not (digits.isascii() and digits.isdigit()) or not 0 < float(value) <= MAX_SECONDS:
            return None
        limit = float(value)
    return limit or VERBS[words[0]]


def run(call: Call) -> int | None:
    """Carry out a command line and return its exit code; None if the daemon leaves it to the client.

    Raises `Failure`, and `OSError` if the output cannot be written.
    """
    path = environment.socket()
    peer = None
    try:
        peer = connect(path, call.deadline)
        answer = _read(_converse(peer, call, path))
    except TimeoutError:
        raise no_answer(path, call.seconds) from None
    except OSError as exc:
        raise unreachable(path, exc.strerror or str(exc)) from None
    finally:
        if peer is not None:
            peer.close()
    return None if answer is None else deliver(answer, call)


def deliver(answer: Answer | Reply, call: Call) -> int:
    """Write what an answer says and return its exit code; raises `Failure` and `OSError`."""
    is_hook = call.verb == "hook"
    if answer.exports:
        try:
            _export(answer.exports)
        except OSError as exc:
            debug(f"the file named by $CLAUDE_ENV_FILE cannot be written: {exc.strerror}")
    write_stderr(answer.err)
    try:
        stdio.write(answer.out, sys.stdout, call.deadline if call.is_claudes else None)
    except OSError as exc:
        if is_hook:
            debug(f"the output cannot be written: {exc.strerror}")
        elif isinstance(exc, TimeoutError):
            hint = "make sure that stdout is read"
            raise Failure(f"the line cannot be written: {exc.strerror}", hint, codes.NO_ANSWER) from None
        elif not isinstance(exc, BrokenPipeError):  # a closed pipe does not turn a refusal into something else
            raise
    return answer.exit_code


def debug(message: str) -> None:
    """Say what a hook does not report, if `$FLUXBUDGET_DEBUG` is set."""
    if os.environ.get("FLUXBUDGET_DEBUG"):
        print_stderr(f"fluxbudgetctl hook: {one_line(message)}")


def is_silent(call: Call, failure: Failure) -> bool:
    """Return True for a hook that ends without a word after this failure, because a budget never breaks a session.

    Not if an older daemon may answer another request, and not before unusual flags (`--help`) have been looked at.
    """
    flags = 3 if call.words[1:2] == ["--timeout"] else 2 if call.words[-1].startswith("--timeout=") else 1
    return (
        call.verb == "hook"
        and len(call.words) == flags
        and failure.code != "unknown_op"
        and os.environ.get("FLUXBUDGET_FAIL_CLOSED") != "1"
        and not os.environ.get("FLUXBUDGET_DEBUG")
    )


def _converse(peer: _socket.socket, call: Call, path: str) -> bytes:
    """Send the command, and stdin as it arrives, until the answer is there; return the answer's body.

    Raises `Failure`, `TimeoutError` and other `OSError`s.
    """
    stdin, decoder = call.stdin, FrameDecoder()
    peer.setblocking(False)
    stdin.read_available()
    pending = request_frame(pack(_command(call)))
    sent, more = len(stdin.data), not stdin.has_ended
    while True:
        pending = _send(peer, pending)
        is_reading = more and not pending
        ready = _wait(peer.fileno(), call.deadline, is_sending=bool(pending), is_reading=is_reading)
        if is_reading and ready.get(0):  # without stdin, the connection may be descriptor 0
            stdin.read()
            if stdin.has_ended or len(stdin.data) > sent:
                pending = request_frame(pack(_more(stdin, sent)))
                sent, more = len(stdin.data), not stdin.has_ended
        if ready.get(peer.fileno(), 0) & ~select.POLLOUT:
            decoder.feed(_receive(peer, path))
            try:
                body = decoder.next()
            except FrameError as exc:
                raise not_understood(str(exc)) from None
            if body is not None:
                return body


def _command(call: Call) -> dict[str, Value]:
    environ = os.environ
    try:
        cwd = os.getcwdb()
    except OSError:  # it has been deleted
        cwd = None
    return {
        "v": codes.VERSION,
        "op": "command",
        "wait_ms": max(int((call.deadline - time.monotonic()) * 1000), 0),
        "started_ns": call.started_ns,
        "words": [os.fsencode(word) for word in call.words],
        "cwd": cwd,
        "env": {name: os.fsencode(environ[name]) for name in _VARIABLES if name in environ},
        **_piece(call.stdin, 0),
    }


def _more(stdin: stdio.Stdin, sent: int) -> dict[str, Value]:
    return {"v": codes.VERSION, "op": "stdin", **_piece(stdin, sent)}


def _piece(stdin: stdio.Stdin, sent: int) -> dict[str, Value]:
    """Return what is new in stdin after this many bytes."""
    return {"stdin": bytes(stdin.data[sent:]), "more": not stdin.has_ended, "cut": stdin.is_cut}


def _send(peer: _socket.socket, pending: bytes) -> bytes:
    """Send as much as there is room for; return the rest."""
    try:
        return pending[peer.send(pending) :] if pending else b""
    except BlockingIOError:
        return pending
    except (BrokenPipeError, ConnectionResetError):
        return b""  # refused before it was read; the answer says why


def _receive(peer: _socket.socket, path: str) -> bytes:
    """Return what has arrived, maybe nothing yet; raises `Failure` if the daemon has closed the connection."""
    try:
        data = peer.recv(_CHUNK)
    except BlockingIOError:
        return b""
    if not data:
        raise hung_up(path)
    return data


def _wait(peer: int, deadline: float, *, is_sending: bool, is_reading: bool) -> dict[int, int]:
    """Wait for the peer and, with `is_reading`, for stdin; return the events of each. Raises `TimeoutError`."""
    poll = select.poll()
    poll.register(peer, select.POLLIN | (select.POLLOUT if is_sending else 0))
    if is_reading:
        poll.register(0, select.POLLIN)
    left = deadline - time.monotonic()
    ready = poll.poll(left * 1000) if left > 0 else []
    if not ready:
        raise TimeoutError
    return dict(ready)


def _read(body: bytes) -> Answer | None:
    """Return a complete, correct answer; None if the daemon leaves the command line to the client. Raises `Failure`."""
    try:
        answer = unpack(body)
    except PackedError as exc:
        raise not_understood(str(exc)) from None
    if not isinstance(answer, dict):
        raise not_understood("it is not a map")
    if answer.get("ok") is not True:
        raise failure_of(answer.get("error"))
    mine, exit_code = answer.get("mine"), answer.get("exit")
    out, err, exports = (answer.get(name) for name in ("out", "err", "exports"))
    if answer.get("op") != "command" or not isinstance(mine, bool):
        raise not_understood("it is not a command's answer")
    if not mine:
        return None
    if type(exit_code) is not int or not 0 <= exit_code <= _HIGHEST_EXIT_CODE:
        raise not_understood("it has no exit code")
    if not (isinstance(out, bytes) and isinstance(err, bytes) and isinstance(exports, bytes)):
        raise not_understood("its output is incomplete")
    return Answer(exit_code, out, err, exports)


def _export(lines: bytes) -> None:
    """Append lines to the file that Claude Code reads environment variables from; raises `OSError`."""
    path = os.environ.get("CLAUDE_ENV_FILE")
    if not path:
        return
    # O_NONBLOCK: the path may lead to a FIFO or a device, which would block the hook.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        size = status.st_size
        before = b"" if size == 0 or os.pread(file, 1, size - 1) == b"\n" else b"\n"
        os.write(file, before + lines)
    finally:
        os.close(file)
