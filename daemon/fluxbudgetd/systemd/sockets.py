"""Sockets that were passed to this process when it was started (`sd_listen_fds(3)`)."""

import os
from collections.abc import MutableMapping

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed_descriptors(environ: MutableMapping[str, str], pid: int) -> range:
    """Return the file descriptors that were passed to this process, and remove their variables from the environment.

    Variables that name another process were only inherited, and are ignored.
    """
    recipient, count, _names = (environ.pop(name, "") for name in _VARIABLES)
    if recipient != str(pid) or not count.isdecimal():
        return range(0)
    found = range(_FIRST, _FIRST + int(count))
    for descriptor in found:
        os.set_inheritable(descriptor, False)
    return found
