"""A jail with a real `systemd --user`: `python jail.py COMMAND …` runs a command there, as an unprivileged user.

The jail has its own mounts, processes, control group and journal. Its user, flux, has an empty home directory, empty
directories for temporary files, a service manager and a session bus. (The uid is an ordinary one, because a sandbox
shows unknown users as 65534.) It needs root and a cgroup2 mount. It leaves nothing when it ends, even if the process
that started it is killed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import fluxbudgetctl
import fluxbudgetd

_INNER = Path(__file__).parent / "jail-inner"
_TOOLS = ("setpriv", "unshare", "systemctl", "systemd-run", "journalctl", "dbus-daemon")
_NAMESPACES = ("unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc")
_MANAGER = Path("/lib/systemd/systemd")
_BUS_UNIT = Path("/usr/lib/systemd/user/dbus.socket")
#: Directories that are empty in the jail, except for what is `needed`.
HIDDEN = ("/root", "/home", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  nothing is created there
# Waits until the pipe's other end is closed, kills the processes left in the control group, and removes the group.
_REMOVER = """
read -r _
echo 1 >"$0/cgroup.kill"
until find "$0" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.05; done
"""


@cache
def why_not() -> str:
    """Return why no jail is possible here, or an empty string."""
    if os.geteuid() != 0:
        return "only root can make a jail"
    groups = _control_groups()
    if groups is None or not os.access(groups, os.W_OK):
        return "no cgroup2 is mounted for writing"
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if missing or not _MANAGER.exists():
        return f"{' '.join(missing) or _MANAGER} not installed (Debian: apt-get install systemd util-linux)"
    if not _BUS_UNIT.exists():
        return "no session bus (Debian: apt-get install dbus-user-session)"
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def needed() -> tuple[str, ...]:
    """Return the directories that this interpreter needs to run this code."""
    places = [sys.base_prefix, sys.prefix, *map(_root_of, (fluxbudgetd, fluxbudgetctl))]
    places += [os.path.dirname(os.path.realpath(sys.executable)), sysconfig.get_path("purelib")]
    places += [str(Path(__file__).parents[2])]
    return tuple(sorted(set(map(os.path.abspath, places))))


def hidden(places: Sequence[str], below: Sequence[str] = HIDDEN) -> list[str]:
    """Return the places below one of these directories, except those below another such place."""
    found: list[str] = []
    for place in sorted(places):
        if any(place.startswith(f"{above}/") for above in below) and not any(
            place.startswith(f"{above}/") for above in found
        ):
            found.append(place)
    return found


def run(
    *command: str, environ: Mapping[str, str] | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a new jail, in the current directory; return its output, including stderr."""
    with _control_group() as group:
        return subprocess.run(
            _entry(group, command, environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )


def _entry(group: Path, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    joins = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    exposed = ":".join(hidden(needed()))
    settings = [f"{name}={value}" for name, value in environ.items()]
    dies_with_us = ["setpriv", "--pdeathsig", "KILL"]
    inner = [str(_INNER), exposed, "env", *settings, *command]
    return [*dies_with_us, "sh", "-c", joins, str(group), *_NAMESPACES, "bash", *inner]


def control_group(pid: int) -> Path:
    """Return the control group of the jail that this process makes."""
    above = _control_groups()
    assert above is not None, why_not()
    return Path(above, f"fluxbudget-jail-{pid}")


@contextmanager
def _control_group() -> Iterator[Path]:
    group = control_group(os.getpid())
    group.mkdir()
    # In a session of its own, so that it survives a terminal's signals.
    with subprocess.Popen(
        ["sh", "-c", _REMOVER, group], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ):
        yield group


@cache
def _control_groups() -> str | None:
    mounts = (line.split(" ") for line in Path("/proc/mounts").read_text().splitlines())
    return next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)


def _root_of(package: object) -> str:
    return str(Path(str(getattr(package, "__file__", ""))).parents[1])


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"no jail: {reason}")
    ended = run(*sys.argv[1:])
    sys.stdout.write(ended.stdout)
    sys.exit(ended.returncode)
