"""The daemon's state files, for when its socket cannot be opened: in a sandbox, or when the socket was deleted.

A file says what was true at its `as_of`. It is used only while the daemon, which keeps it up to date, is alive. Files
that other users could have created or changed are never used, because the socket may be in a directory that everyone
can write to.
"""

from __future__ import annotations

import fcntl
import os
import stat

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure, print_stderr
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.short import short
from fluxbudgetd.wire.state_names import ALIVE, file_name, state_directory
from fluxbudgetd.wire.text import one_line

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetd.wire.packed import Value

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: the path may lead to a FIFO.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST = 64 * 1024
_MOST = 2**63 - 1
_MOST_DIGITS = 19
# The same as in the daemon's line.
_COLOURS = {"ok": "32", "warning": "33", "exceeded": "1;31", "unlimited": "36"}


class State:
    """The contents of a state file."""

    def __init__(self, fields: dict[str, str]) -> None:
        """Check a file's fields; raises `KeyError` or `ValueError` if they are not a state."""
        self.run, self.phase, self.state, self.as_of = (fields[key] for key in ("run", "phase", "state", "as_of"))
        self.budget = _number(fields["budget"]) if fields["budget"] else None
        self.remaining = _number(fields["remaining"]) if fields["remaining"] else None
        self.pct = _percentage(fields["pct"]) if fields["pct"] else None
        self.spent = _number(fields["spent"])
        self.reserved = _number(fields["reserved"])
        self.stale = {"0": False, "1": True}[fields["stale"]]
        unlimited = self.state == "unlimited"
        limits = (self.budget, self.remaining, self.pct)
        if not self.run or not self.as_of or self.state not in _COLOURS:
            raise ValueError("a state without its run, its time, or its name")
        if any((limit is None) != unlimited for limit in limits):
            raise ValueError("a budget without its remainder")

    def answer(self) -> dict[str, Value]:
        """Return the answer the daemon would give to `remaining`."""
        spend: dict[str, Value] = {
            "budget": self.budget,
            "spent": self.spent,
            "measured": None,
            "provisional": None,
            "reserved": self.reserved,
            "remaining": self.remaining,
            "pct": self.pct,
            "state": self.state,
            "stale": self.stale,
            "stale_why": "the state file says so ('fluxbudgetctl doctor' has the reason)" if self.stale else None,
        }
        return {"run": self.run, "phase": self.phase, "spend": spend}


def read_state(naming: dict[str, Value | bytes], failure: Failure, session: str | None = None) -> State:
    """Return the state of the run that is meant, and report on stderr that it is from a file; raises `Failure`.

    `naming` holds the fields of a request that say which run is meant. `failure` says why the socket cannot be used; it
    is raised again if the files do not help. `session` is the one named on stdin, if any.
    """
    try:
        # All later steps use this descriptor, even if the directory is replaced meanwhile.
        directory = os.open(state_directory(environment.socket()), _DIRECTORY)
    except OSError:
        raise failure from None
    try:
        if not _is_private(directory):
            raise failure
        places = _places(naming, session)
        found = next((state for place in places if (state := _read(directory, *place)) is not None), None)
        alive = _is_alive(directory)
    finally:
        os.close(directory)
    if found is None and not alive:
        raise failure
    if found is None:
        is_named = any(field in naming for field in ("run", "scope", "session"))
        hint = failure.hint if is_named else "name the run: --run ID"
        raise Failure(f"{failure.message}; no state file describes the run", hint, codes.UNREACHABLE)
    if not alive:
        message = f"{failure.message}; the daemon is gone; its last state of run {found.run} is from {found.as_of}"
        raise Failure(message, "start it with 'fluxbudgetd'", codes.UNREACHABLE)
    print_stderr(f"fluxbudgetctl: from the state file, as of {one_line(found.as_of)}: {one_line(failure.message)}")
    return found


def line(state: State, width: int | None, *, colour: bool) -> str:
    """Return a status line of at most `width` cells: `PHASE SPENT/BUDGET PCT%`.

    If that is too long, the tokens are left out, then the phase. Colours take no cells.
    """
    # Phases are ASCII. Replacing anything else makes sure that the line's length is its width.
    phase = "".join(c if c.isascii() and c.isprintable() else "?" for c in state.phase)
    mark = " (stale)" if state.stale else ""
    if state.budget is None:
        share, befores = short(state.spent), [f"{phase} ", ""]
    else:
        share = f"{int(state.pct or 0)}%"
        befores = [f"{phase} {short(state.spent)}/{short(state.budget)} ", f"{phase} ", ""]
    limit = _LARGEST if width is None else width
    before = next((text for text in befores if len(text + share + mark) <= limit), "")
    if len(share + mark) > limit:
        mark, share = "", share[:limit]
    painted = f"\x1b[{_COLOURS[state.state]}m{share}\x1b[0m" if colour else share
    return f"{before}{painted}{mark}"


def _places(naming: dict[str, Value | bytes], session: str | None) -> list[tuple[str, str]]:
    """Return the directories and names of the files to try, in the daemon's order."""
    kinds = (("run", "runs"), ("scope", "scopes"), ("session", "sessions"))
    for field, kind in kinds:
        if isinstance(name := naming.get(field), str):
            return [(kind, name)]
    hints = naming["hints"]
    if not isinstance(hints, dict):
        return []
    if isinstance(run := hints.get("run"), str):
        return [("runs", run)]
    sessions = hints["sessions"] if isinstance(hints["sessions"], list) else []
    names = [("scopes", hints.get("scope")), *(("sessions", name) for name in (session, *sessions))]
    return [(kind, name) for kind, name in names if isinstance(name, str)]


def _is_trusted(status: os.stat_result) -> bool:
    """Return True if the file belongs to this user or to root."""
    return status.st_uid in (0, os.geteuid())


def _is_private(directory: int) -> bool:
    """Return True if only this user and root can create files in the directory."""
    status = os.fstat(directory)
    return _is_trusted(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(directory: int, kind: str, name: str) -> State | None:
    """Return the contents of a state file; None if there is no valid one."""
    filename = file_name(name)
    if filename is None:
        return None
    try:
        file = os.open(f"{kind}/{filename}", _FILE, dir_fd=directory)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or not _is_trusted(status):
                return None
            data = os.read(file, _LARGEST + 1)
        finally:
            os.close(file)
        if len(data) > _LARGEST:
            return None
        fields = dict(entry.split("=", 1) for entry in data.decode().split("\n") if "=" in entry)
        return State(fields)
    except (OSError, KeyError, ValueError):
        return None


def _is_alive(directory: int) -> bool:
    """Return True if a daemon holds its lock. (A daemon that meets a reader's momentary lock tries again.)"""
    try:
        file = os.open(ALIVE, _FILE, dir_fd=directory)
    except OSError:
        return False
    try:
        if _is_trusted(os.fstat(file)):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS) or int(text) > _MOST:
        raise ValueError(f"{text} is not a count")
    return int(text)


def _percentage(text: str) -> float:
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError(f"{text} is not a percentage")
    return float(text)
