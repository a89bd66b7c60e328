"""A connection to the daemon's socket.

The hot path imports this, so it imports nothing that costs milliseconds: `socket` (selectors, enum) takes longer than
an answer, and so does `os` where `site` has not imported it (`bare`).
"""

import _socket
import errno
import posix
import sys
import time

_RETRY_SECONDS = 0.002
_CREDENTIAL_BYTES = 12
_NOT_THERE = (errno.ENOENT, errno.ECONNREFUSED)


class NotConnected(OSError):  # noqa: N818  named like `ConnectionRefusedError` and its kin
    """There is no connection: no daemon listens, or the system forbids the socket."""


class Unanswered(Exception):  # noqa: N818  not an error of the program
    """There is no answer, for a reason without a built-in exception. `unanswered.failure_from` makes the message."""


class NotOurs(Unanswered):
    """The socket is served by another user, whose uid is the argument."""


class TooLarge(Unanswered):
    """The request does not fit into a frame. The argument says why."""


class Refused(Unanswered):
    """The daemon has answered with an error, which is the argument."""


def connect(path: str, deadline: float) -> _socket.socket:
    """Return a connection to the daemon's socket; sending on it times out at the deadline (monotonic seconds).

    If there is no daemon at the default path, its lock file may say where it listens. Raises `NotConnected`, `NotOurs`,
    and `TimeoutError` after the deadline.
    """
    try:
        return _connect(path, deadline)
    except TimeoutError:
        raise
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            from fluxbudgetctl import environment  # noqa: PLC0415  only needed without a daemon

            if (other := environment.recorded_socket(path)) is not None:
                try:
                    return _connect(other, deadline)
                except OSError:
                    pass  # the lock file may be old, so the default path is the one to report
        raise NotConnected(exc.errno, exc.strerror or str(exc)) from None


def seconds_until(deadline: float) -> float:
    """Return the seconds until the deadline; raises `TimeoutError` after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(path: str, deadline: float) -> _socket.socket:
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        _keep_trying(peer, path, deadline)
        _require_owner(peer)
        peer.settimeout(seconds_until(deadline))
    except BaseException:
        peer.close()
        raise
    return peer


def _require_owner(peer: _socket.socket) -> None:
    credentials = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIAL_BYTES)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (0, posix.geteuid()):
        raise NotOurs(uid)


def _keep_trying(peer: _socket.socket, path: str, deadline: float) -> None:
    while True:
        peer.settimeout(seconds_until(deadline))
        try:
            peer.connect(path)
        except BlockingIOError as exc:
            # The daemon's backlog is full. A non-blocking connect to a Unix socket then fails at once, so try again.
            if exc.errno != errno.EAGAIN:
                raise
            time.sleep(min(_RETRY_SECONDS, seconds_until(deadline)))
        else:
            return
