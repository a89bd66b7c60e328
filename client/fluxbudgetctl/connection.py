"""One request, one answer, one deadline for connecting, writing and reading."""

# The `socket` module costs 5 ms to import (selectors, enum), on every call of every hook; this is what it wraps.
import _socket
import errno
import os
import sys
import time

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

_RETRY_SECONDS = 0.002
_CREDENTIAL_BYTES = 12
_CHUNK = 65536

#: The code of a failure to get as far as the daemon: none is there, or the system forbids the socket. (State files may
#: still say something; behind any other failure there is, or was, a daemon that is to be believed.)
NO_SOCKET = "no_socket"
#: (The last two are what a filter says that would rather not be noticed.)
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS)
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


def exchange(path: str, body: bytes, seconds: float) -> bytes:
    """Send a request to the daemon's socket and return the answer's body; raises `Failure`."""
    deadline = time.monotonic() + seconds
    try:
        frame = encode_frame(body)
    except FrameError as exc:
        raise Failure(f"the request is too large: {exc}", "shorten its arguments", codes.BAD_INPUT) from None
    peer = None
    try:
        peer = dial(path, deadline)
        try:  # noqa: SIM105  contextlib is not imported for this
            peer.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read: the answer says why
        return _receive(peer, deadline, path)
    except TimeoutError:
        raise no_answer(path, seconds) from None
    except OSError as exc:
        raise away(path, exc.strerror or str(exc)) from None
    finally:
        if peer is not None:
            peer.close()


def dial(path: str, deadline: float) -> _socket.socket:
    """Return a connection to the daemon's socket; what is sent has until the deadline (monotonic seconds).

    Raises `Failure` when nobody or another user serves it, `OSError`, and `TimeoutError` behind the deadline.
    """
    try:
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except OSError as exc:
        raise _not_reached(path, exc) from None
    try:
        _connect(peer, path, deadline)
        _require_owner(peer, path)
        peer.settimeout(_left(deadline))
    except BaseException:
        peer.close()
        raise
    return peer


def _connect(peer: _socket.socket, path: str, deadline: float) -> None:
    while True:
        peer.settimeout(_left(deadline))
        try:
            peer.connect(path)
        except BlockingIOError as exc:
            # The daemon's queue of new connections is full; a Unix socket says so instead of waiting.
            if exc.errno != errno.EAGAIN:
                raise
            time.sleep(min(_RETRY_SECONDS, _left(deadline)))
        except TimeoutError:
            raise
        except OSError as exc:
            raise _not_reached(path, exc) from None
        else:
            return


def _require_owner(peer: _socket.socket, path: str) -> None:
    credentials = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIAL_BYTES)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (0, os.geteuid()):
        raise away(path, f"it is served by uid {uid}, not by you")


def _receive(peer: _socket.socket, deadline: float, path: str) -> bytes:
    decoder = FrameDecoder()
    while True:
        peer.settimeout(_left(deadline))
        data = peer.recv(_CHUNK)
        if not data:
            raise away(path, "the daemon closed the connection without an answer")
        decoder.feed(data)
        try:
            body = decoder.next()
        except FrameError as exc:
            raise not_understood(str(exc)) from None
        if body is not None:
            return body


def not_understood(reason: str) -> Failure:
    """Return the failure for an answer that is not one."""
    return Failure(
        f"the daemon's answer is not understood: {reason}",
        "are daemon and client of one version?",
        codes.INTERNAL,
        "not_understood",
    )


def no_answer(path: str, seconds: float) -> Failure:
    """Return the failure for a daemon that is there and says nothing."""
    return Failure(
        f"no answer from {path} within {seconds:g} s",
        "see 'fluxbudgetctl doctor', or give more --timeout",
        codes.NO_ANSWER,
        "no_answer",
    )


def away(path: str, reason: str) -> Failure:
    """Return the failure for a daemon that is not there."""
    return Failure(f"no daemon at {path}: {reason}", "start it with 'fluxbudgetd'", codes.UNREACHABLE, "unreachable")


def _not_reached(path: str, exc: OSError) -> Failure:
    failure = away(path, exc.strerror or str(exc))
    if exc.errno in _FORBIDDEN:
        failure.hint = "a sandbox may forbid sockets: run it outside; else look at the socket's permissions"
    if exc.errno in (*_FORBIDDEN, *_NOBODY):
        failure.code = NO_SOCKET
    return failure


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
