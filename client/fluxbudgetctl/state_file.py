"""The daemon's state files, for when its socket cannot be opened: in a sandbox, or when the socket was deleted.

A file says what has been true since its `as_of`. It is used only while the daemon, which keeps it up to date, is alive.
(Only `hard_stop` uses the last state of a daemon that is gone.) Files that other users could have created or changed
are never used, because the socket may be in a directory that everyone can write to.
"""

import fcntl
import os
import stat
import time

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure, print_stderr
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.short import short
from fluxbudgetd.wire.state_names import ALIVE, RUNS, SCOPES, SESSIONS, file_name, state_directory
from fluxbudgetd.wire.text import one_line

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: the path may lead to a FIFO.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST = 64 * 1024
_MOST = 2**63 - 1
_MOST_DIGITS = 19
_TIME = "%Y-%m-%dT%H:%M:%S"
_STATES = ("ok", "warning", "exceeded", "unlimited")
_STALE = "the state file says so ('fluxbudgetctl doctor' has the reason)"


class Spend:
    """The numbers of a state file, like a `Spend` of the protocol."""

    measured = provisional = None

    def __init__(self, fields: dict[str, str]) -> None:
        """Read a file's fields; raises `KeyError` or `ValueError` if they are not a state's."""
        self.state = fields["state"]
        self.budget = _number(fields["budget"]) if fields["budget"] else None
        self.remaining = _number(fields["remaining"]) if fields["remaining"] else None
        self.pct = _percentage(fields["pct"]) if fields["pct"] else None
        self.spent = _number(fields["spent"])
        self.reserved = _number(fields["reserved"])
        self.stale = {"0": False, "1": True}[fields["stale"]]
        self.stale_why = _STALE if self.stale else None
        if self.state not in _STATES:
            raise ValueError(f"{self.state} is not a state")
        if any((limit is None) != (self.state == "unlimited") for limit in (self.budget, self.remaining, self.pct)):
            raise ValueError("a budget without its remainder")


class State:
    """The contents of a state file, like an answer to `remaining` and, after `check`, to `check`."""

    def __init__(self, fields: dict[str, str]) -> None:
        """Read a file's fields; raises `KeyError` or `ValueError` if they are not a state's."""
        self.run, self.phase, self.as_of = (fields[key] for key in ("run", "phase", "as_of"))
        if not self.run or not self.as_of:
            raise ValueError("a state without its run or its time")
        self.spend = Spend(fields)
        self.stale_why = self.spend.stale_why
        self.cost_basis = fields.get("cost_basis", "")
        # What an allowance adds to the budget: as many tokens, or any number of them until a time.
        self.allowed_to = _number(fields.get("allowed_to") or "0")
        self.allowed_until = fields.get("allowed_until", "")
        self.line = one_line(fields.get("line", "").strip("'"))  # quoted for shells
        self._fields = fields
        self.allowed = True
        self.refusal: str | None = None
        self.overridden: str | None = None
        self.note = ""
        self.tied = ()

    @property
    def is_exhausted(self) -> bool:
        """Return True if the run has spent all that it may, allowances included."""
        is_allowed = self.spend.spent < self.allowed_to or time.strftime(_TIME, time.gmtime()) < self.allowed_until
        return self.spend.state == "exceeded" and not is_allowed

    @property
    def is_stopped(self) -> bool:
        """Return True if a hard limit stops the run."""
        return self._fields.get("enforcement") == "hard" and self.is_exhausted

    def check(self, override: str | None) -> None:
        """Decide as the daemon does whether the run may go on. (The daemon does not learn of an override.)"""
        spend = self.spend
        if not self.is_exhausted:
            return
        if override and not override.isspace() and self._fields.get("enforcement") == "soft":
            self.overridden = override
            return
        self.allowed = False
        amounts = f"{spend.spent}/{spend.budget} {self.cost_basis} tokens".replace("  ", " ")
        self.refusal = f"budget_exceeded|{self.phase}|{amounts}"
        if override:
            self.note = "overrides are not accepted without the daemon, or with hard enforcement"

    def shorten(self, width: int | None) -> None:
        """Make `line` fit into this many cells: leave out what follows the percentage, then the tokens, then the phase.

        If the file has no `line` because an older daemon wrote it, make one.
        """
        spend = self.spend
        # Phases are ASCII. Replacing anything else makes sure that the line's length is its width.
        phase = "".join(c if c.isascii() and c.isprintable() else "?" for c in self.phase)
        mark = " (stale)" if spend.stale else ""
        if spend.budget is None:
            share, tokens = short(spend.spent), ""
        else:
            share, tokens = f"{int(spend.pct or 0)}%", f" {short(spend.spent)}/{short(spend.budget)}"
        lines = [f"{phase}{tokens} {share}{mark}", f"{phase} {share}{mark}", f"{share}{mark}"]
        limit = _LARGEST if width is None else width
        if self.line:
            lines.insert(0, self.line)
        self.line = next((line for line in lines if len(line) <= limit), share[:limit])


def read_state(names: dict[str, str | None], failure: Failure, session: str | None = None) -> State:
    """Return the state of the run that is meant, and report on stderr that it is from a file; raises `Failure`.

    `names` are the run, the scope and the session that the command line names. `failure` says why the socket cannot be
    used; it is raised again if the files give no answer. `session` is the one named on stdin, if any.
    """
    try:
        # All later steps use this descriptor, even if the directory is replaced meanwhile.
        directory = os.open(state_directory(environment.socket()), _DIRECTORY)
    except OSError:
        raise failure from None
    try:
        if not _is_private(directory):
            raise failure
        places = _places(names, session)
        found = next((state for place in places if (state := _read(directory, *place)) is not None), None)
        alive = _is_alive(directory)
    finally:
        os.close(directory)
    if found is None and not alive:
        raise failure
    if found is None:
        hint = failure.hint if any(names.values()) else "name the run: --run ID"
        raise Failure(f"{failure.message}; no state file describes the run", hint, codes.UNREACHABLE)
    if not alive:
        message = f"{failure.message}; the daemon is gone; its last state of run {found.run} is from {found.as_of}"
        raise Failure(message, "start it with 'fluxbudgetd'", codes.UNREACHABLE)
    print_stderr(f"fluxbudgetctl: from the state file, as of {one_line(found.as_of)}: {one_line(failure.message)}")
    return found


def last_known(socket: str, kind: str, name: str) -> tuple[bool, State | None]:
    """Return whether there is a file or link of this name, and the state in it, even if this socket's daemon is gone.

    `kind` is a directory of the state files, `name` what the file is named after. A link without a state leads to a run
    that is not stopped.
    """
    try:
        directory = os.open(state_directory(socket), _DIRECTORY)
    except OSError:
        return False, None
    try:
        if not _is_private(directory):
            return False, None
        return _exists(directory, kind, name), _read(directory, kind, name)
    finally:
        os.close(directory)


def _places(names: dict[str, str | None], session: str | None) -> list[tuple[str, str]]:
    """Return the directories and names of the files to try, in the daemon's order."""
    for field, kind in (("run", RUNS), ("scope", SCOPES), ("session", SESSIONS)):
        if name := names[field]:
            return [(kind, name)]
    hints = environment.Hints()
    if hints.run is not None:
        return [(RUNS, hints.run)]
    scopes = [] if hints.scope is None else [(SCOPES, hints.scope)]
    sessions = hints.sessions if session is None else [session, *hints.sessions]
    return scopes + [(SESSIONS, name) for name in sessions]


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


def _exists(directory: int, kind: str, name: str) -> bool:
    """Return True if there is a state file or a link of this name, even one that leads nowhere."""
    filename = file_name(name)
    try:
        return filename is not None and _is_trusted(os.lstat(f"{kind}/{filename}", dir_fd=directory))
    except OSError:
        return False


def _is_alive(directory: int) -> bool:
    """Return True if a daemon holds the lock. (This takes it for a moment, so a starting daemon may have to retry.)"""
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
