"""What a client can see of a daemon that does not answer: the socket's directory, the socket, the lock."""

import os
import socket
import stat
from collections.abc import Iterator

from fluxbudgetd.wire.messages import Finding

_PROBE_SECONDS = 0.5


def look_around(path: str) -> Iterator[Finding]:
    """Yield what is wrong with the socket and the files beside it."""
    directory = os.path.dirname(path)
    try:
        mode = os.stat(directory).st_mode
    except OSError as exc:
        yield Finding(
            what=f"the socket's directory {directory}: {exc.strerror}", hint="start 'fluxbudgetd': it makes it"
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
        yield Finding(what=f"{path} is a socket that no fluxbudgetd serves", hint="start 'fluxbudgetd': it replaces it")


def is_dead(path: str) -> bool:
    """Tell whether nobody listens. (Never by trying the daemon's lock: one that starts just now would lose it.)"""
    try:
        with socket.socket(socket.AF_UNIX) as probe:  # which a sandbox may forbid
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
