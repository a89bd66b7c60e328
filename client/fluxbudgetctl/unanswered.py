"""Why the daemon has not answered, as failures."""

import errno

from fluxbudgetctl.connection import NotConnected, NotOurs, TooLarge, Unanswered
from fluxbudgetctl.failure import Failure, failure_of
from fluxbudgetd.wire import codes

#: The code of a failure to connect: no daemon listens, or the system forbids the socket. State files may be used only
#: then. After any other failure there is, or was, a daemon, and only its answer counts.
NO_SOCKET = "no_socket"
#: (Some sandboxes use the last two instead of the usual errors.)
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS)
_NOT_THERE = (errno.ENOENT, errno.ECONNREFUSED)


def failure_from(exc: Exception, path: str, seconds: float) -> Failure:
    """Return the failure for an exception from asking the daemon at this socket, with this time limit.

    An `EOFError` means that the daemon closed the connection (a reset means that too, if the request was unread); a
    `ValueError` says how its answer breaks the protocol.
    """
    if isinstance(exc, NotConnected):
        return not_connected(path, exc.errno, exc.strerror or "")
    if isinstance(exc, Unanswered):
        return _failure_of(exc, path)
    if isinstance(exc, TimeoutError):
        return no_answer(path, seconds)
    if isinstance(exc, (EOFError, ConnectionResetError)):
        return hung_up(path)
    if isinstance(exc, OSError):
        return unreachable(path, exc.strerror or str(exc))
    return not_understood(str(exc))


def _failure_of(exc: Unanswered, path: str) -> Failure:
    (detail,) = exc.args
    if isinstance(exc, NotOurs):
        return not_ours(path, detail)
    if isinstance(exc, TooLarge):
        return Failure(f"the request is too large: {detail}", "shorten the arguments", codes.BAD_INPUT)
    return failure_of(detail)


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
