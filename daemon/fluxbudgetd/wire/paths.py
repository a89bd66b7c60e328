"""The path of the socket, for the daemon and the client."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME = "fluxbudgetd.sock"


def socket_path(environ: Mapping[str, str], uid: int) -> str:
    """Return the socket's path for a user.

    `$FLUXBUDGET_SOCKET`, else `$XDG_RUNTIME_DIR/fluxbudget/fluxbudgetd.sock`; without XDG_RUNTIME_DIR,
    `/run/user/UID` if that directory exists, else `~/.local/state/fluxbudget/run`: never /tmp. (The daemon refuses a
    directory that others can write to.)
    """
    if chosen := environ.get("FLUXBUDGET_SOCKET"):
        try:
            return os.path.abspath(chosen)
        except FileNotFoundError:  # the working directory was deleted, so the path leads nowhere
            return chosen
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    is_usable = runtime.startswith("/")  # the XDG specification says to ignore relative paths
    if not is_usable:
        runtime = f"/run/user/{uid}"
        is_usable = os.path.isdir(runtime)
    if is_usable:
        return os.path.join(runtime, "fluxbudget", SOCKET_NAME)
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".local", "state", "fluxbudget", "run", SOCKET_NAME)
