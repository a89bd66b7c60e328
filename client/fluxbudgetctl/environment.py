"""What the environment says: where the socket is, and which run is meant when the command line names none."""

import os
import stat

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.paths import NoHomeError, socket_path
from fluxbudgetd.wire.text import fold

_SESSIONS = ("CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID")
_MOST_DIGITS = 5
_MOST_DIGITS_OF_TOKENS = 18  # so that the protocol can carry it
_LARGEST_LOCK = 16 * 1024


def socket() -> str:
    """Return the path of the daemon's socket; raises `Failure` if the home directory is needed and unknown."""
    try:
        return socket_path(os.environ, os.geteuid())
    except NoHomeError as exc:
        raise Failure(str(exc), exc.hint, codes.BAD_CONFIG) from exc


def recorded_socket(path: str) -> str | None:
    """Return the socket that the default socket's lock file names; None if it names no other one."""
    if os.environ.get("FLUXBUDGET_SOCKET") or path != socket():
        return None
    try:
        # O_NONBLOCK: the path may lead to a FIFO.
        file = os.open(f"{path}.lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return None
            lines = os.read(file, _LARGEST_LOCK).split(b"\n")
        finally:
            os.close(file)
    except OSError:
        return None
    says_where = len(lines) > 1 and lines[1].startswith(b"socket /")
    other = os.fsdecode(lines[1].removeprefix(b"socket ")) if says_where else path
    return None if other == path else other


def text(value: str) -> str:
    """Return an argument or an environment value as the protocol's text; any bytes are allowed."""
    return value if value.isascii() else fold(os.fsencode(value))


def working_directory() -> str | None:
    """Return the working directory with its symlinks resolved; None if it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def override() -> str | None:
    """Return the environment's reason to continue although the budget is exceeded, or None."""
    return _text_of("CLAVAIN_SKIP_BUDGET")


def sprint_remaining() -> int | None:
    """Return what the sprint has left according to `$FLUX_BUDGET_REMAINING`; None if that is 0 or not a number."""
    value = os.environ.get("FLUX_BUDGET_REMAINING", "")
    number = int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS_OF_TOKENS else 0
    return number or None


def cells(value: str) -> int:
    """Return a width in cells; raises `ValueError` unless it is a whole number above 0 of at most five digits."""
    number = int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else 0
    if number < 1:
        raise ValueError(f"{value} is not a number of cells above 0")
    return number


def columns() -> int | None:
    """Return the width in `$COLUMNS`; None if it is unset or not a width."""
    try:
        return cells(os.environ.get("COLUMNS", ""))
    except ValueError:
        return None


class Hints:
    """What may identify the run when the command line does not name one: the `hints` of a request."""

    def __init__(self) -> None:
        here = working_directory()
        self.cwd = None if here is None else text(here)
        self.run = _text_of("FLUXBUDGET_RUN")
        self.scope = _text_of("CLAVAIN_BEAD_ID")
        self.sessions = [session for name in _SESSIONS if (session := _text_of(name)) is not None]


def _text_of(name: str) -> str | None:
    value = os.environ.get(name)
    return text(value) if value else None
