"""The pipe: send a command line to the daemon, and return what it answers.

Shell hooks call these verbs all the time, so this module imports nothing that takes milliseconds (argparse, msgspec or
the socket module would each take longer than the answer). The native client, `client/native`, is the same pipe in C.
The rules for both:

* The client interprets only the verb and `--timeout`. If the daemon does not handle the command line (`--help`, unusual
  spellings, mistakes), it says so, and `commands.piped` takes over.
* The client connects before it reads stdin, and forwards stdin while it waits. After the answer, it reads no more.
* One deadline covers connecting, reading stdin, sending and receiving. For `hook` and `statusline`, which Claude Code
  waits for, it also covers writing to stdout and stderr. The other verbs wait until their output is read.
* An answer is checked completely before any of it is used.
"""

import posix
import sys
import time

from fluxbudgetctl.connection import Refused, TooLarge, Unanswered, connect, seconds_until
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame
from fluxbudgetd.wire.packed import PackedError, Value, pack, unpack

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from fluxbudgetctl.failure import Failure
    from fluxbudgetctl.stdio import Stdin

#: The verbs, with their time limits in seconds.
VERBS = {
    "remaining": 0.2,
    "env": 1.0,
    "check": 1.0,
    "advance": 1.0,
    "ping": 1.0,
    "hook": 0.2,
    "statusline": 0.2,
    "numbers": 1.0,
    "tokens": 1.0,
    "defaults": 1.0,
}
#: Claude Code calls these: they get its JSON on stdin, and never wait beyond their deadline.
CLAUDES = ("hook", "statusline")
MAX_SECONDS = 3600.0

_VERSION = 1  # `wire.codes.VERSION`, without the import
_VARIABLES = (
    b"FLUXBUDGET_RUN",
    b"CLAVAIN_BEAD_ID",
    b"CLAUDE_CODE_SESSION_ID",
    b"CLAUDE_SESSION_ID",
    b"CLAUDE_CODE_ENTRYPOINT",
    b"CLAUDE_CODE_SESSION_ATTENDED",
    b"CLAVAIN_SKIP_BUDGET",
    b"COLUMNS",
    b"NO_COLOR",
    b"TERM",
)
_CHUNK = 65536
_HIGHEST_EXIT_CODE = 255
_ENCODING = sys.getfilesystemencoding()


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

    def __init__(self, words: "Sequence[str]", seconds: float, started_ns: int, stdin: "Stdin | None" = None) -> None:
        """`words` begin with the verb; `started_ns` is monotonic; `stdin` is that of an earlier attempt."""
        self.words = words
        self.verb = words[0]
        self.seconds = seconds
        self.started_ns = started_ns
        self.deadline = started_ns / 1e9 + seconds
        self.is_claudes = self.verb in CLAUDES
        self.stdin = stdin
        if stdin is None and self.is_claudes:
            from fluxbudgetctl.stdio import Stdin  # noqa: PLC0415  most verbs read no stdin

            self.stdin = Stdin()


def time_limit(words: "Sequence[str]") -> float | None:
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


def run(call: Call) -> "Answer | Failure | None":
    """Send a command line to the daemon and return its answer; None if the daemon leaves it to the client.

    A failure is returned, not raised, so that its class is only imported if there is one.
    """
    path = ""
    try:
        path = _socket_path()
        return _ask(call, path)
    except (OSError, EOFError, ValueError, Unanswered) as exc:
        from fluxbudgetctl.unanswered import failure_from  # noqa: PLC0415  only for failures

        return failure_from(exc, path, call.seconds)


def is_silent(call: Call, failure: "Failure") -> bool:
    """Return True for a hook that ends silently after this failure, because a budget never breaks a session.

    False if an older daemon may answer another request, if there are other flags, such as `--help`, or if the daemon
    has left the marker of an exhausted hard limit.
    """
    flags = 3 if call.words[1:2] == ["--timeout"] else 2 if call.words[-1].startswith("--timeout=") else 1
    return (
        call.verb == "hook"
        and len(call.words) == flags
        and failure.code != "unknown_op"
        and posix.environ.get(b"FLUXBUDGET_FAIL_CLOSED") != b"1"
        and not posix.environ.get(b"FLUXBUDGET_DEBUG")
        and not _has_marker()
    )


def _has_marker() -> bool:
    from fluxbudgetctl.markers import marked_sockets  # noqa: PLC0415  only for failures

    return bool(marked_sockets())


def _socket_path() -> str:
    """Return the path of the daemon's socket. For the usual environments, `os.path` is not imported."""
    chosen = posix.environ.get(b"FLUXBUDGET_SOCKET", b"").decode(_ENCODING, "surrogateescape")
    runtime = posix.environ.get(b"XDG_RUNTIME_DIR", b"").decode(_ENCODING, "surrogateescape")
    plain = chosen or (f"{runtime}/fluxbudget/fluxbudgetd.sock" if runtime else "")
    if plain.startswith("/") and "//" not in plain and "/." not in plain and not plain.endswith("/"):
        return plain
    import os  # noqa: PLC0415  see above

    from fluxbudgetd.wire.paths import NoHomeError, socket_path  # noqa: PLC0415  imports os

    try:
        return socket_path(os.environ, os.geteuid())
    except NoHomeError as exc:
        raise Unanswered({"code": "bad_config", "message": str(exc), "hint": exc.hint}) from exc


def _ask(call: Call, path: str) -> Answer | None:
    """Return the daemon's answer; None if it leaves the command line to the client.

    Raises what `unanswered.failure_from` takes.
    """
    peer = connect(path, call.deadline)
    try:
        return _read(_exchange(peer, call) if call.stdin is None else _converse(peer, call, call.stdin))
    finally:
        peer.close()


def _exchange(peer: "_socket.socket", call: Call) -> bytes:
    """Send the command, and return the body of its answer."""
    decoder = FrameDecoder()
    try:  # noqa: SIM105  contextlib is not imported for this
        peer.sendall(_frame(_command(call)))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon refused the request before reading it; its answer says why
    while True:
        peer.settimeout(seconds_until(call.deadline))
        if (body := _next(decoder, peer.recv(_CHUNK))) is not None:
            return body


def _converse(peer: "_socket.socket", call: Call, stdin: "Stdin") -> bytes:
    """Send the command, and stdin as it arrives, until the answer arrives; return its body."""
    from fluxbudgetctl.stdio import wait_for  # noqa: PLC0415  loaded already

    decoder = FrameDecoder()
    peer.setblocking(False)
    stdin.read_available()
    pending = _frame(_command(call))
    sent, more = len(stdin.data), not stdin.has_ended
    while True:
        pending = _send(peer, pending)
        is_reading = more and not pending
        ready = wait_for(peer.fileno(), call.deadline, is_sending=bool(pending), is_reading=is_reading)
        if is_reading and ready.get(0):  # without stdin, the connection may be descriptor 0
            stdin.read()
            if stdin.has_ended or len(stdin.data) > sent:
                pending = _frame({"v": _VERSION, "op": "stdin", **_piece(stdin, sent)})
                sent, more = len(stdin.data), not stdin.has_ended
        if ready.get(peer.fileno()):
            try:
                data = peer.recv(_CHUNK)
            except BlockingIOError:  # only writable
                continue
            if (body := _next(decoder, data)) is not None:
                return body


def _next(decoder: FrameDecoder, data: bytes) -> bytes | None:
    """Add what has arrived; return the answer's body if it is complete. Raises `EOFError` if the daemon has closed."""
    if not data:
        raise EOFError
    decoder.feed(data)
    return decoder.next()


def _command(call: Call) -> dict[str, Value]:
    try:
        cwd = posix.getcwdb()
    except OSError:  # it has been deleted
        cwd = None
    environ = posix.environ
    return {
        "v": _VERSION,
        "op": "command",
        "wait_ms": max(int((call.deadline - time.monotonic()) * 1000), 0),
        "started_ns": call.started_ns,
        "words": [word.encode(_ENCODING, "surrogateescape") for word in call.words],
        "cwd": cwd,
        "env": {name.decode(): environ[name] for name in _VARIABLES if name in environ},
        **_piece(call.stdin, 0),
    }


def _piece(stdin: "Stdin | None", sent: int) -> dict[str, Value]:
    """Return the fields for what stdin holds after this many bytes."""
    if stdin is None:
        return {"stdin": b"", "more": False, "cut": False}
    return {"stdin": bytes(stdin.data[sent:]), "more": not stdin.has_ended, "cut": stdin.is_cut}


def _frame(message: dict[str, Value]) -> bytes:
    try:
        return encode_frame(pack(message))
    except FrameError as exc:
        raise TooLarge(exc) from None


def _send(peer: "_socket.socket", pending: bytes) -> bytes:
    """Send as much as there is room for; return the rest."""
    try:
        return pending[peer.send(pending) :] if pending else b""
    except BlockingIOError:
        return pending
    except (BrokenPipeError, ConnectionResetError):
        return b""  # the daemon refused the request before reading it; its answer says why


def _read(body: bytes) -> Answer | None:
    """Return a complete, correct answer; None if the daemon leaves the command line to the client.

    Raises `ValueError`, and `Refused` for an error answer.
    """
    answer = unpack(body)
    if not isinstance(answer, dict):
        raise PackedError("it is not a map")
    if answer.get("ok") is not True:
        raise Refused(answer.get("error"))
    mine, exit_code = answer.get("mine"), answer.get("exit")
    out, err, exports = (answer.get(name) for name in ("out", "err", "exports"))
    if answer.get("op") != "command" or not isinstance(mine, bool):
        raise PackedError("it is not a command's answer")
    if not mine:
        return None
    if type(exit_code) is not int or not 0 <= exit_code <= _HIGHEST_EXIT_CODE:
        raise PackedError("it has no exit code")
    if not (isinstance(out, bytes) and isinstance(err, bytes) and isinstance(exports, bytes)):
        raise PackedError("its output is incomplete")
    return Answer(exit_code, out, err, exports)
