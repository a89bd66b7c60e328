"""A jail with a real `systemd --user`: `python jail.py COMMAND …` runs a command there, as an unprivileged user.

The jail has mounts, processes and a branch of the control groups of its own, a journal, a user called flux with an
empty home, empty directories for temporary files, and that user's service manager and session bus. (Its uid is an
ordinary one: 65534, nobody's, is what everybody who is unknown is seen as in a sandbox.) It needs root and a cgroup2
mount. Nothing of it is left when it ends, also when whoever started it is killed.
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
#: Directories of which the jail has empty ones of its own, but for what is `needed`.
HIDDEN = ("/root", "/home", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  nothing is made there
# Waits until nobody holds the pipe's other end any more, ends what is left in the control group, and removes that.
_REMOVER = """
read -r _
echo 1 >"$0/cgroup.kill"
until find "$0" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.05; done
"""


@cache
def why_not() -> str:
    """Return why there can be no jail here; empty when there can."""
    if os.geteuid() != 0:
        return "only root can make one"
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
    """Return the directories without which this interpreter cannot run this code."""
    places = [sys.base_prefix, sys.prefix, *map(_root_of, (fluxbudgetd, fluxbudgetctl))]
    places += [os.path.dirname(os.path.realpath(sys.executable)), sysconfig.get_path("purelib")]
    places += [str(Path(__file__).parents[2])]
    return tuple(sorted(set(map(os.path.abspath, places))))


def hidden(places: Sequence[str], below: Sequence[str] = HIDDEN) -> list[str]:
    """Return those of the places that lie below one of these directories, without those that lie below each other."""
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
    """Run a command in a jail of its own, in the present directory; return its output, stderr among it."""
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
    """Return the control group of the jail that a process makes."""
    above = _control_groups()
    assert above is not None, why_not()
    return Path(above, f"fluxbudget-jail-{pid}")


@contextmanager
def _control_group() -> Iterator[Path]:
    group = control_group(os.getpid())
    group.mkdir()
    # A process of its own session, so that it survives a terminal's signals, too.
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
