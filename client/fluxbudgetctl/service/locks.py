"""Finds the process that holds fluxbudgetd's locks, and whether it is the service's.

The locks are never taken, not even for a test: a daemon that is just starting would fail to get them.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from fluxbudgetctl.service.units import SERVICE

# Daemons before 0.2.0 write only the first line.
_NAMED = re.compile(rb"fluxbudgetd pid ([1-9][0-9]{0,9})\n(?:socket [^\n]+\n)?")
_MOST_BYTES = 8192


def socket_lock(path: str) -> str:
    """Return the path of the lock that protects the socket at this path."""
    return f"{path}.lock"


def state_lock(directory: str) -> str:
    """Return the path of the lock that protects the ledger in this directory."""
    return os.path.join(directory, "fluxbudgetd.lock")


def holder(lock: str) -> int | None:
    """Return the pid of the daemon that holds a lock, even if it hangs: the file names it, and it has the file open."""
    with suppress(OSError):
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            named = _NAMED.fullmatch(os.read(fd, _MOST_BYTES))
            # The pid may belong to another process by now.
            if named is not None and _has_open(int(named[1]), os.fstat(fd)):
                return int(named[1])
        finally:
            os.close(fd)
    return None


def find_outside(locks: Iterable[str]) -> int | None:
    """Return the pid of the first process that holds one of the locks and is not the service's."""
    pids = (holder(lock) for lock in locks)
    return next((pid for pid in pids if pid is not None and is_outside(pid)), None)


def is_outside(pid: int) -> bool:
    """Return True if the process exists and is not the service's, by its control group.

    The manager's answer would be from another moment: the service may have started in between.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return not any(line.rstrip("\n").endswith(f"/{SERVICE}") for line in file)
    except OSError:
        return False


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with suppress(OSError):  # it has just been closed
            if os.path.samestat(os.stat(f"{directory}/{name}"), wanted):
                return True
    return False
