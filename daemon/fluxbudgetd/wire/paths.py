"""The path of the socket, for the daemon and the client."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME = "fluxbudgetd.sock"


class NoHomeError(LookupError):
    """The user's home directory is unknown."""

    hint = "set HOME to an absolute path"

    def __init__(self, uid: int) -> None:
        super().__init__(f"no home directory: HOME is not set, and the password database has no entry for uid {uid}")


def home_directory(environ: Mapping[str, str], uid: int) -> str:
    """Return a user's home directory: `$HOME` if it is absolute, else that of the password database.

    Raises `NoHomeError`.
    """
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd  # noqa: PLC0415  rarely needed, and the client imports this module

    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = ""
    if not home.startswith("/"):
        raise NoHomeError(uid)
    return home


def socket_path(environ: Mapping[str, str], uid: int) -> str:
    """Return the socket's path for a user.

    `$FLUXBUDGET_SOCKET`, else `$XDG_RUNTIME_DIR/fluxbudget/fluxbudgetd.sock`; without XDG_RUNTIME_DIR,
    `/run/user/UID` if that directory exists, else `~/.local/state/fluxbudget/run`: never /tmp. (The daemon refuses a
    directory that others can write to.) Raises `NoHomeError`.
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
    return os.path.join(home_directory(environ, uid), ".local", "state", "fluxbudget", "run", SOCKET_NAME)
