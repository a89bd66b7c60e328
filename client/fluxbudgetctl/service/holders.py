"""Who holds fluxbudgetd's locks, and whether that is the service.

The locks are read, never tried: a daemon that starts just now would lose one.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from fluxbudgetctl.service.units import SERVICE

_NAMED = re.compile(rb"fluxbudgetd pid ([1-9][0-9]{0,9})\n")


def socket_lock(path: str) -> str:
    """Return the lock of whoever serves the socket at this path."""
    return f"{path}.lock"


def state_lock(directory: str) -> str:
    """Return the lock of whoever has the ledger in this directory."""
    return os.path.join(directory, "fluxbudgetd.lock")


def holder(lock: str) -> int | None:
    """Return the pid of the daemon that a lock's file names, if that has the file open: one that hangs has it, too."""
    with suppress(OSError):
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            named = _NAMED.fullmatch(os.read(fd, 1024))
            # (A number may be another process's by now.)
            if named is not None and _has_open(int(named[1]), os.fstat(fd)):
                return int(named[1])
        finally:
            os.close(fd)
    return None


def outside(locks: Iterable[str]) -> int | None:
    """Return the pid of the first that holds one of the locks, and is not the service's."""
    pids = (holder(lock) for lock in locks)
    return next((pid for pid in pids if pid is not None and is_outside(pid)), None)


def is_outside(pid: int) -> bool:
    """Tell whether a process is there, and is not the service's, by its control group.

    (The manager's word, asked before or after, is of another moment: the service may have been started in between.)
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return not any(line.rstrip("\n").endswith(f"/{SERVICE}") for line in file)
    except OSError:
        return False


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with suppress(OSError):  # it was closed just now
            if os.path.samestat(os.stat(f"{directory}/{name}"), wanted):
                return True
    return False
