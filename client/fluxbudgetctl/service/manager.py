"""The systemd user manager, through `systemctl --user`: with time limits, and reading only machine-readable output."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service.units import UNITS
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line

#: Seconds. Longer than the daemon's own limits for starting and stopping.
LONG_SECONDS = 120.0
_QUICK_SECONDS = 10.0
# Commands like `systemctl edit` may write to the user's unit directory with `.control` appended.
_CONTROL = re.compile(r" (/\S+/systemd/user)\.control(?= )")
_STARTS = re.compile(r"\{ path=(.*?) ; argv\[\]=", re.DOTALL)
_LISTENS = re.compile(r"(/.*) \(Stream\)")

_FIELDS = {
    "LoadState": "load",
    "ActiveState": "active",
    "SubState": "sub",
    "UnitFileState": "file_state",
    "FragmentPath": "fragment",
    "Listen": "listen",
    "ExecStart": "start",
    "NeedDaemonReload": "needs_reload",
    "MainPID": "pid",
    "StatusText": "status",
    "NRestarts": "restarts",
    "Result": "result",
    "ExecMainCode": "exit_kind",
    "ExecMainStatus": "exit_status",
}


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What the manager says about a unit; see org.freedesktop.systemd1(5). Empty or 0 if it does not say."""

    load: str = ""
    """`loaded`, `not-found`, `masked`, `bad-setting`, `error`."""
    active: str = ""
    """`active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`."""
    sub: str = ""
    file_state: str = ""
    """`enabled`, `disabled`, …"""
    fragment: str = ""
    """The unit's file."""
    listen: str = ""
    """The path at which a socket listens."""
    start: str = ""
    """The path of the program that a service starts."""
    needs_reload: str = ""
    """`yes` if its file has changed since the manager read it."""
    pid: int = 0
    status: str = ""
    """What the daemon says about itself; empty if it does not run."""
    restarts: int = 0
    result: str = ""
    """`success`, or how the unit failed."""
    exit_kind: int = 0
    """1 if it exited; 2 or 3 if a signal ended it."""
    exit_status: int = 0
    """The exit code, or the signal."""

    @property
    def is_up(self) -> bool:
        """True if the unit runs or listens."""
        return self.active in ("active", "reloading")

    @property
    def has_failed(self) -> bool:
        """True if the unit does not run because it failed; systemd may restart it."""
        return self.active == "failed" or self.sub == "auto-restart" or (not self.is_up and self.went_wrong)

    @property
    def went_wrong(self) -> bool:
        """True if its last start or its last run ended in a failure."""
        return self.result not in ("", "success")


def runtime_directory() -> str | None:
    """Return the user's runtime directory, which contains the manager's sockets; None if it does not exist.

    That is `$XDG_RUNTIME_DIR`, or without it (for example after `su`) the usual one.
    """
    chosen = os.environ.get("XDG_RUNTIME_DIR", "")
    directory = chosen if chosen.startswith("/") else f"/run/user/{os.geteuid()}"
    return directory if os.path.isdir(directory) else None


def is_available() -> bool:
    """Return True if there seems to be a user manager; it is not contacted."""
    runtime = runtime_directory()
    if runtime is None or shutil.which("systemctl") is None:
        return False
    return os.path.exists(os.path.join(runtime, "systemd", "private"))


def unit_directory(seconds: float = _QUICK_SECONDS) -> str:
    """Return the directory from which the manager reads the user's units; raises `Failure`.

    That is `${XDG_CONFIG_HOME:-~/.config}/systemd/user`, with the manager's variable, not the shell's.
    """
    result = systemctl("show", "--property=UnitPath", seconds=seconds)
    if result.returncode != 0:
        error = one_line(result.stderr.strip().partition("\n")[0]) or f"exit code {result.returncode}"
        raise Failure(
            f"no systemd user manager can be reached: {error}",
            "log in directly or by ssh, or 'loginctl enable-linger', or 'machinectl shell USER@'; "
            "in a container, start 'fluxbudgetd' yourself",
            codes.UNREACHABLE,
        )
    places = f" {result.stdout.strip().partition('=')[2]} "
    for known in (usual_unit_directory(os.environ), usual_unit_directory({})):  # also finds paths with spaces
        if f" {known}.control " in places:
            return known
    runtime = f"{runtime_directory()}/"
    others = (found[1] for found in _CONTROL.finditer(places))
    found = next((place for place in others if not place.startswith(runtime)), None)
    if found is None:
        raise Failure(
            f"the systemd user manager reads no units in {usual_unit_directory({})}",
            "see 'systemctl --user show --property=UnitPath'",
            codes.UNREACHABLE,
        )
    return found


def usual_unit_directory(environ: Mapping[str, str]) -> str:
    """Return the directory of the user's units for a manager with this environment."""
    chosen = environ.get("XDG_CONFIG_HOME", "")
    config = chosen if chosen.startswith("/") else os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "systemd", "user")


def environment() -> dict[str, str]:
    """Return the environment of the services that the manager starts; raises `Failure`.

    Variables that systemctl prints with escapes (`$'…'`) are left out.
    """
    result = systemctl("show-environment", seconds=_QUICK_SECONDS)
    if result.returncode != 0:
        raise _failed("show-environment", result)
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        name, _, value = line.partition("=")
        with suppress(ValueError):
            if not value.startswith("$'"):
                found[name] = "".join(shlex.split(value))
    return found


def read_units(seconds: float = _QUICK_SECONDS) -> dict[str, Unit]:
    """Return what the manager says about both units, by name; raises `Failure`."""
    result = systemctl("show", f"--property=Id,{','.join(_FIELDS)}", "--", *UNITS, seconds=seconds)
    if result.returncode != 0:
        raise _failed("show", result)
    found: dict[str, Unit] = {}
    for block in result.stdout.split("\n\n"):
        pairs = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        fields = {field: pairs[name] for name, field in _FIELDS.items() if pairs.get(name)}
        fields["start"] = _first(_STARTS, fields.get("start", ""))
        fields["listen"] = _first(_LISTENS, fields.get("listen", ""))
        if fields.get("pid", "0") == "0":
            fields.pop("status", None)  # from the process before
        found[pairs.get("Id", "")] = msgspec.convert(fields, Unit, strict=False)
    return {name: found.get(name, Unit()) for name in UNITS}


def run(verb: str, *arguments: str) -> None:
    """Run a systemctl command; raises `Failure` if it fails."""
    result = systemctl(verb, *arguments, seconds=LONG_SECONDS)
    if result.returncode != 0:
        raise _failed(f"{verb} {' '.join(arguments)}".rstrip(), result)


def systemctl(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `systemctl --user` and return the result; raises `Failure` if it is missing or too slow."""
    program = shutil.which("systemctl")
    if program is None:
        raise Failure(
            "there is no systemctl here: this system does not run systemd",
            "start 'fluxbudgetd' when your session starts (for instance 'nohup fluxbudgetd &'), or with a supervisor",
            codes.UNREACHABLE,
        )
    environ = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    if runtime := runtime_directory():
        environ["XDG_RUNTIME_DIR"] = runtime
    try:
        return subprocess.run(  # noqa: S603  no shell, and systemctl is the system's own
            [program, "--user", "--quiet", "--no-ask-password", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(
            f"'systemctl --user {arguments[0]}' did not end within {seconds:g} s",
            "check that 'systemctl --user status' answers; 'fluxbudgetd' can also be started without systemd",
            codes.UNREACHABLE,
        ) from None
    except OSError as exc:
        raise Failure(f"{program}: {exc.strerror}", "start 'fluxbudgetd' yourself", codes.UNREACHABLE) from None


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found[1] if found else ""


def _failed(what: str, result: subprocess.CompletedProcess[str]) -> Failure:
    error = one_line(result.stderr.strip().partition("\n")[0]) or f"exit code {result.returncode}"
    return Failure(f"'systemctl --user {what}' failed: {error}", "see 'systemctl --user status'", codes.REFUSED)
