"""The drop-in that lets the service reach sprints: intercore's databases and the beads of projects.

`service install --sprints DIR…` writes it. It opens the sandbox for each project's `.clavain` and `.beads`, and for
nothing else in the projects. A sandbox can only open what exists when it is set up, so each `service install` searches
the directories again.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import quoting, units
from fluxbudgetctl.service.units import SERVICE
from fluxbudgetd.wire import codes

#: Sorts before systemd's `override.conf`, so that settings from `systemctl --user edit` win.
NAME = "fluxbudget-sprints.conf"
DIRECTORY = f"{SERVICE}.d"
#: The directories in a project that the daemon writes to.
CLAVAIN, BEADS = ".clavain", ".beads"
#: Programs that the daemon starts, and programs that these start. A user manager's PATH often lacks them.
_PROGRAMS = ("bd", "dolt", "git")
#: Projects are searched for at most this many levels below a named directory.
_LEVELS = 4
_MOST_SEARCHED = 20_000
_SKIPPED = ("node_modules", "__pycache__")


class Found(msgspec.Struct, frozen=True):
    """The `.clavain` and `.beads` directories below the named ones; `is_all`: the search was not cut short."""

    places: tuple[str, ...]
    is_all: bool = True


def checked(directories: Sequence[str]) -> list[str]:
    """Return the directories with absolute paths; raises `Failure` for one that is not a directory."""
    found = [os.path.realpath(os.path.expanduser(one)) for one in directories]
    for named, path in zip(directories, found, strict=True):
        if not os.path.isdir(path):
            raise Failure(
                f"{named} is not a directory; nothing was written",
                "name a project, or a directory of projects",
                codes.BAD_INPUT,
            )
    return found


def find(directories: Sequence[str], uid: int) -> Found:
    """Return the `.clavain` and `.beads` directories below these directories.

    Symlinks, other users' directories, and paths that a unit file cannot contain are left out.
    """
    places: dict[str, None] = {}
    budget = _MOST_SEARCHED
    pending = [(one, 0) for one in directories]
    while pending:
        place, level = pending.pop(0)
        if budget == 0:
            return Found(tuple(places), is_all=False)
        budget -= 1
        for entry in _directories(place):
            if entry.name in (CLAVAIN, BEADS):
                if _is_owned(entry, uid) and quoting.is_possible(entry.path):
                    places[entry.path] = None
            elif level < _LEVELS and not entry.name.startswith(".") and entry.name not in _SKIPPED:
                pending.append((entry.path, level + 1))
    return Found(tuple(places))


def render(directories: Sequence[str], found: Found, path: Sequence[str], version: str) -> str:
    """Return the drop-in's text; raises `Failure` for a path that a unit file cannot contain.

    `path` has the entries of the daemon's PATH; if it is empty, the daemon gets the user manager's.
    """
    # The named directories may get their `.clavain` or `.beads` later: it is open after the daemon's next start.
    named = (os.path.join(one, name) for one in directories for name in (CLAVAIN, BEADS))
    lines = [_setting(place) for place in dict.fromkeys((*found.places, *named))]
    if path:
        lines.append(f"Environment={quoting.word('PATH=' + ':'.join(path))}")
    if any(os.path.basename(place) == BEADS for place in found.places):
        # For bd's server mode, which uses TCP on this machine.
        lines += ["RestrictAddressFamilies=AF_INET", "IPAddressAllow=localhost"]
    head = ("[X-Fluxbudget]", *(f"Directory={quoting.word(one)}" for one in directories), "", "[Service]")
    return units.marked(SERVICE, "\n".join((*head, *lines)) + "\n", version)


def read(directory: str) -> units.File:
    """Return what is at the drop-in's path. `directory` is the directory of the units."""
    return units.read(os.path.join(directory, DIRECTORY), NAME)


def directories_in(file: units.File) -> list[str]:
    """Return the directories that an installed drop-in was written for."""
    return [found for value in file.values("Directory") for found in quoting.words(value)]


def opened_in(file: units.File) -> list[str]:
    """Return the paths that an installed drop-in opens."""
    values = (*file.values("ReadWritePaths"), *file.values("BindPaths"))
    return [found.removeprefix("-") for value in values for found in quoting.words(value)]


def search_path(environ: Mapping[str, str], managers: str) -> list[str]:
    """Return the entries of a PATH with which the daemon finds `bd`; none if the shell does not find it.

    They are the directories in which the shell finds the programs, then the user manager's PATH.
    """
    programs = [shutil.which(name, path=environ.get("PATH")) for name in _PROGRAMS]
    if programs[0] is None:
        return []
    places = [os.path.dirname(os.path.abspath(program)) for program in programs if program is not None]
    return list(dict.fromkeys((*places, *filter(None, managers.split(":")))))


def _directories(place: str) -> Iterator["os.DirEntry[str]"]:
    """Yield the subdirectories of a directory, sorted by name; none if the directory cannot be read."""
    try:
        with os.scandir(place) as entries:
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    yield from sorted(found, key=lambda entry: entry.name)


def _is_owned(entry: "os.DirEntry[str]", uid: int) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == uid
    except OSError:
        return False


def _setting(place: str) -> str:
    """Return the setting that opens a path if the path exists. The service has its own /tmp."""
    key = "BindPaths" if units.is_hidden(place) else "ReadWritePaths"
    return f"{key}={units.bound(place) if key == 'BindPaths' else quoting.word('-' + place)}"
