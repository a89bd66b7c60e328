"""What the units are made from: the templates that come with this client, and the daemon that came with it."""

import importlib.metadata
import os
import sys

import fluxbudgetctl
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes

_PACKAGE = os.path.dirname(os.path.abspath(fluxbudgetctl.__file__))
#: In a wheel; in a source tree, which an editable install uses, too.
_PLACES = (os.path.join(_PACKAGE, "systemd"), os.path.join(_PACKAGE, "..", "..", "systemd"))
_DAEMON = "fluxbudgetd"


def template(name: str) -> str:
    """Return the text of the unit's template; raises `Failure` when it is not there."""
    for place in _PLACES:
        try:
            with open(os.path.join(place, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise Failure(f"{exc.filename}: {exc.strerror}", "install fluxbudget again", codes.INTERNAL) from None
    raise Failure(f"the template of {name} is missing", "install fluxbudget again", codes.INTERNAL)


def program() -> tuple[str, ...]:
    """Return how the daemon is started that was installed together with this client: an absolute path, arguments.

    The distribution's record says where its scripts are, whoever has installed it; without one (or when the script is
    gone) it is this very Python that runs the daemon.
    """
    try:
        files = importlib.metadata.files("fluxbudget") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        found = os.path.normpath(file.locate())
        if file.name == _DAEMON and file.suffix == "" and os.path.isfile(found) and os.access(found, os.X_OK):
            return (os.path.abspath(found),)
    return (os.path.abspath(sys.executable), "-m", _DAEMON)


def code() -> tuple[str, ...]:
    """Return the directories that the daemon's program is made of: its environment, the interpreter, the packages."""
    daemon = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(codes.__file__))))
    places = (sys.prefix, sys.base_prefix, os.path.dirname(_PACKAGE), daemon)
    return tuple(dict.fromkeys(os.path.abspath(place) for place in places))


def passing(path: str, home: str, cache: str | None) -> str | None:
    """Return why a program at this path will not be there for long; None when it may be."""
    temporary = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108  nothing is made there
    if any(path.startswith(f"{above}/") for above in temporary):
        return "lies in a directory that is emptied when the machine starts"
    above = cache or os.path.join(home, ".cache")
    if path.startswith(f"{above}/") or "/.cache/" in path:
        return "lies in a cache, which is emptied now and then ('uvx' and 'pipx run' install nothing)"
    return None
