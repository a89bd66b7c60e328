"""Problems with the socket and its directory that the client can find without the daemon."""

import os
import socket
import stat
from collections.abc import Iterator

from fluxbudgetd.wire.messages import Finding

_CONNECT_SECONDS = 0.5


def socket_findings(path: str) -> Iterator[Finding]:
    """Yield what is wrong with the socket at this path and with its directory."""
    directory = os.path.dirname(path)
    try:
        mode = os.stat(directory).st_mode
    except OSError as exc:
        yield Finding(
            what=f"the socket's directory {directory}: {exc.strerror}", hint="start 'fluxbudgetd', which creates it"
        )
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(what=f"{directory} is writable by others", hint=f"chmod 700 {directory}")
    try:
        found = os.lstat(path)
    except OSError:
        found = None
    if found is not None and not stat.S_ISSOCK(found.st_mode):
        yield Finding(what=f"{path} is not a socket", hint="move it away, then start 'fluxbudgetd'")
    elif found is not None and found.st_uid not in (0, os.geteuid()):
        yield Finding(what=f"{path} belongs to uid {found.st_uid}", hint="set FLUXBUDGET_SOCKET to a path of your own")
    elif found is not None and is_dead(path):
        yield Finding(
            what=f"no fluxbudgetd serves the socket {path}", hint="start 'fluxbudgetd', which replaces the socket"
        )


def is_dead(path: str) -> bool:
    """Return True if no process listens at the socket.

    It connects rather than trying the daemon's lock: a daemon that is just starting would fail to get the lock.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:  # a sandbox may forbid this
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
