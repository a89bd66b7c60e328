"""What is installed together with this client: the templates of the units, and the daemon."""

import importlib.metadata
import os
import sys

import fluxbudgetctl
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes

_PACKAGE = os.path.dirname(os.path.abspath(fluxbudgetctl.__file__))
#: In a wheel; in a source tree, also that of an editable install.
_PLACES = (os.path.join(_PACKAGE, "systemd"), os.path.join(_PACKAGE, "..", "..", "systemd"))
_DAEMON = "fluxbudgetd"


def template(name: str) -> str:
    """Return the text of a unit's template; raises `Failure` if it is missing."""
    for place in _PLACES:
        try:
            with open(os.path.join(place, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise Failure(f"{exc.filename}: {exc.strerror}", "install fluxbudget again", codes.INTERNAL) from None
    raise Failure(f"the template of {name} is missing", "install fluxbudget again", codes.INTERNAL)


def daemon_command() -> tuple[str, ...]:
    """Return the command line of the daemon that was installed with this client: an absolute path, then arguments.

    The distribution's record says where the script is. Without a record, or without the script, this Python runs the
    daemon as a module.
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


def code_directories() -> tuple[str, ...]:
    """Return the directories the daemon's program consists of: its environment, the interpreter, the packages."""
    daemon = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(codes.__file__))))
    places = (sys.prefix, sys.base_prefix, os.path.dirname(_PACKAGE), daemon)
    return tuple(dict.fromkeys(os.path.abspath(place) for place in places))


def why_temporary(path: str, home: str, cache: str | None) -> str | None:
    """Return why a program at this path is only temporary; None if it is not."""
    temporary = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108  nothing is created there
    if any(path.startswith(f"{above}/") for above in temporary):
        return "is in a directory that is emptied when the machine starts"
    above = cache or os.path.join(home, ".cache")
    if path.startswith(f"{above}/") or "/.cache/" in path:
        return "is in a cache, which may be emptied at any time ('uvx' and 'pipx run' do not install)"
    return None
