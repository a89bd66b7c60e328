"""The daemon's state files, for who cannot open its socket: a sandbox, or a socket that somebody has deleted.

A file says what was true at its `as_of`. It is believed while the daemon lives, which keeps it true; a file that a
killed daemon has left behind is not. Nor is anything in a directory that somebody else could have made or changed: the
socket may be meant to lie where everybody may write.
"""

from __future__ import annotations

import fcntl
import os
import stat

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure, one_line, say
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.short import short
from fluxbudgetd.wire.state_names import ALIVE, file_name, state_directory

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetctl.hot import Options
    from fluxbudgetd.wire.packed import Value

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: something else than a file may stand there.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST = 64 * 1024
_MOST = 2**63 - 1
_MOST_DIGITS = 19
# As in the daemon's own line.
_COLOURS = {"ok": "32", "warning": "33", "exceeded": "1;31", "unlimited": "36"}


class State:
    """What a state file says."""

    def __init__(self, fields: dict[str, str]) -> None:
        """Take a file's fields; raises `KeyError` and `ValueError` when they are not a state."""
        self.run, self.phase, self.state, self.as_of = (fields[key] for key in ("run", "phase", "state", "as_of"))
        self.budget = _number(fields["budget"]) if fields["budget"] else None
        self.remaining = _number(fields["remaining"]) if fields["remaining"] else None
        self.pct = _share(fields["pct"]) if fields["pct"] else None
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
        """Return what the daemon would have answered to `remaining`."""
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


def look(options: Options, failure: Failure, session: str | None = None) -> State:
    """Return the state of the run that is meant, and say on stderr that it is from a file; raises `Failure`.

    `failure` is what the socket said, and is raised again when there is nothing better to say. `session` is the one
    that stdin names, if any.
    """
    try:
        # The same directory for all that follows, whatever is put into its place meanwhile.
        directory = os.open(state_directory(environment.socket()), _DIRECTORY)
    except OSError:
        raise failure from None
    try:
        if not _is_private(directory):
            raise failure
        places = _places(options, session)
        found = next((state for place in places if (state := _read(directory, *place)) is not None), None)
        alive = _is_alive(directory)
    finally:
        os.close(directory)
    if found is None and not alive:
        raise failure
    if found is None:
        hint = "name the run: --run ID" if options.names_none() else failure.hint
        raise Failure(f"{failure.message}; no state file is about the run that is meant", hint, codes.UNREACHABLE)
    if not alive:
        words = f"{failure.message}; the daemon is gone, and its last state of run {found.run} is of {found.as_of}"
        raise Failure(words, "start it with 'fluxbudgetd'", codes.UNREACHABLE)
    say(f"fluxbudgetctl: from the state file, as of {one_line(found.as_of)}: {one_line(failure.message)}")
    return found


def line(state: State, width: int | None, *, colour: bool) -> str:
    """Return a status line of at most `width` cells: `PHASE SPENT/BUDGET PCT%`.

    When it is too long, the tokens go, then the phase; colours take no cell.
    """
    # Phases are ASCII by rule; by this the line's length is its width whatever the file says.
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


def _places(options: Options, session: str | None) -> list[tuple[str, str]]:
    """Return the directories and names to look for, in the order that the daemon would take them in."""
    kinds = (("run", "runs"), ("scope", "scopes"), ("session", "sessions"))
    named = options.naming()
    for field, kind in kinds:
        if isinstance(name := named.get(field), str):
            return [(kind, name)]
    hints = environment.hints()
    if isinstance(run := hints.get("run"), str):
        return [("runs", run)]
    sessions = hints["sessions"] if isinstance(hints["sessions"], list) else []
    names = [("scopes", hints.get("scope")), *(("sessions", name) for name in (session, *sessions))]
    return [(kind, name) for kind, name in names if isinstance(name, str)]


def _is_own(about: os.stat_result) -> bool:
    return about.st_uid in (0, os.geteuid())


def _is_private(directory: int) -> bool:
    """Tell whether only root and this user could have put anything there."""
    about = os.fstat(directory)
    return _is_own(about) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(directory: int, kind: str, name: str) -> State | None:
    """Return what the file says; None when there is none, or it is no state file."""
    called = file_name(name)
    if called is None:
        return None
    try:
        file = os.open(f"{kind}/{called}", _FILE, dir_fd=directory)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode) or not _is_own(about):
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
    """Tell whether a daemon holds its lock. (It tries again when it meets a reader that holds it for a moment.)"""
    try:
        file = os.open(ALIVE, _FILE, dir_fd=directory)
    except OSError:
        return False
    try:
        if _is_own(os.fstat(file)):
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
        raise ValueError(f"{text} is no count")
    return int(text)


def _share(text: str) -> float:
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError(f"{text} is no percentage")
    return float(text)
