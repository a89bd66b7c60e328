"""Finds the markers that the daemon has left: one for each run that a hard limit stops."""

import os
from collections.abc import Iterator
from contextlib import suppress

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire.paths import NoHomeError, socket_path
from fluxbudgetd.wire.state_names import hard_directory


def marked_sockets() -> list[str]:
    """Return those sockets of possible daemons that have a marker beside them.

    These are the chosen socket, the usual one, and the one that the lock file names.
    """
    return [path for path in dict.fromkeys(_sockets()) if _has_marker(path)]


def _sockets() -> Iterator[str]:
    for environ in (os.environ, {**os.environ, "FLUXBUDGET_SOCKET": ""}):
        with suppress(NoHomeError):
            yield socket_path(environ, os.geteuid())
    with suppress(Failure):
        recorded = environment.recorded_socket(environment.socket())
        if recorded is not None:
            yield recorded


def _has_marker(socket: str) -> bool:
    try:
        with os.scandir(hard_directory(socket)) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False
