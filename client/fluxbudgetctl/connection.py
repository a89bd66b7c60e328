"""One request, one answer, one deadline for connecting, writing and reading."""

# The `socket` module wraps this one, and costs 5 ms to import (selectors, enum) on every call of every hook.
import _socket
import errno
import os
import stat
import sys
import time

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

_RETRY_SECONDS = 0.002
_CREDENTIAL_BYTES = 12
_CHUNK = 65536

#: The code of a failure to connect: no daemon listens, or the system forbids the socket. Only then may the caller use
#: the state files: after any other failure there is, or was, a daemon, and only its answer counts.
NO_SOCKET = "no_socket"
#: (Some sandboxes use the last two instead of the usual errors.)
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS)
_NOT_THERE = (errno.ENOENT, errno.ECONNREFUSED)


def exchange(path: str, body: bytes, seconds: float) -> bytes:
    """Send a request to the daemon's socket and return the answer's body; raises `Failure`."""
    deadline = time.monotonic() + seconds
    frame = request_frame(body)
    peer = None
    try:
        peer = connect(path, deadline)
        try:  # noqa: SIM105  contextlib is not imported for this
            peer.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read; the answer says why
        return _receive(peer, deadline, path)
    except TimeoutError:
        raise no_answer(path, seconds) from None
    except OSError as exc:
        raise unreachable(path, exc.strerror or str(exc)) from None
    finally:
        if peer is not None:
            peer.close()


def request_frame(body: bytes) -> bytes:
    """Return a request's frame; raises `Failure` if it is too large."""
    try:
        return encode_frame(body)
    except FrameError as exc:
        raise Failure(f"the request is too large: {exc}", "shorten the arguments", codes.BAD_INPUT) from None


def connect(path: str, deadline: float) -> _socket.socket:
    """Return a connection to the daemon's socket; sending on it times out at the deadline (monotonic seconds).

    If there is no daemon at the default path, its lock file may say where it listens. Raises `Failure` if the socket
    has no daemon or belongs to another user, `TimeoutError` after the deadline, and `OSError`.
    """
    try:
        return _connect(path, deadline)
    except TimeoutError:
        raise
    except OSError as exc:
        if exc.errno in _NOT_THERE and (other := _moved_to(path)) is not None:
            return connect(other, deadline)
        raise not_connected(path, exc.errno, exc.strerror or str(exc)) from None


def _connect(path: str, deadline: float) -> _socket.socket:
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        _keep_trying(peer, path, deadline)
        _require_owner(peer, path)
        peer.settimeout(_left(deadline))
    except BaseException:
        peer.close()
        raise
    return peer


def _moved_to(path: str) -> str | None:
    """Return where the daemon of the default socket listens according to its lock file; None if it does not say so."""
    if os.environ.get("FLUXBUDGET_SOCKET") or path != environment.socket():
        return None
    try:
        # O_NONBLOCK: the path may lead to a FIFO.
        file = os.open(f"{path}.lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return None
            lines = os.read(file, _CHUNK).split(b"\n")
        finally:
            os.close(file)
    except OSError:
        return None
    says_where = len(lines) > 1 and lines[1].startswith(b"socket /")
    other = os.fsdecode(lines[1].removeprefix(b"socket ")) if says_where else path
    return None if other == path else other


def _keep_trying(peer: _socket.socket, path: str, deadline: float) -> None:
    while True:
        peer.settimeout(_left(deadline))
        try:
            peer.connect(path)
        except BlockingIOError as exc:
            # The daemon's backlog is full: connecting to a Unix socket fails then, where TCP would wait.
            if exc.errno != errno.EAGAIN:
                raise
            time.sleep(min(_RETRY_SECONDS, _left(deadline)))
        else:
            return


def _require_owner(peer: _socket.socket, path: str) -> None:
    credentials = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIAL_BYTES)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (0, os.geteuid()):
        raise not_ours(path, uid)


def _receive(peer: _socket.socket, deadline: float, path: str) -> bytes:
    decoder = FrameDecoder()
    while True:
        peer.settimeout(_left(deadline))
        data = peer.recv(_CHUNK)
        if not data:
            raise hung_up(path)
        decoder.feed(data)
        try:
            body = decoder.next()
        except FrameError as exc:
            raise not_understood(str(exc)) from None
        if body is not None:
            return body


def not_understood(reason: str) -> Failure:
    """Return the failure for an answer that breaks the protocol."""
    return Failure(
        f"the daemon's answer is not understood: {reason}",
        "compare versions with 'fluxbudgetctl version'",
        codes.INTERNAL,
        "not_understood",
    )


def no_answer(path: str, seconds: float) -> Failure:
    """Return the failure for a daemon that accepts the connection but does not answer in time."""
    return Failure(
        f"no answer from {path} within {seconds:g} s",
        "see 'fluxbudgetctl doctor', or use a longer --timeout",
        codes.NO_ANSWER,
        "no_answer",
    )


def unreachable(path: str, reason: str) -> Failure:
    """Return the failure for a daemon that cannot be reached."""
    return Failure(f"no daemon at {path}: {reason}", "start it with 'fluxbudgetd'", codes.UNREACHABLE, "unreachable")


def not_connected(path: str, number: int | None, reason: str) -> Failure:
    """Return the failure for this error (an `errno`) in connecting."""
    failure = unreachable(path, reason)
    if number in _FORBIDDEN:
        failure.hint = "a sandbox may forbid sockets: run it outside, or check the socket's permissions"
    if number in (*_FORBIDDEN, *_NOT_THERE):
        failure.code = NO_SOCKET
    return failure


def hung_up(path: str) -> Failure:
    """Return the failure for a daemon that closes the connection."""
    return unreachable(path, "the daemon closed the connection without an answer")


def not_ours(path: str, uid: int) -> Failure:
    """Return the failure for another user's socket."""
    return unreachable(path, f"it is served by uid {uid}, not by you")


def _left(deadline: float) -> float:
    """Return the seconds until the deadline; raises `TimeoutError` after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
