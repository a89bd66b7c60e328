"""The user's service manager, by `systemctl --user`: with time limits, reading only what is made for machines."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetctl.service.units import UNITS
from fluxbudgetd.wire import codes

#: Seconds. A start or a stop takes as long as the daemon does (its own limits are below this).
PATIENT_SECONDS = 120.0
_QUICK_SECONDS = 10.0
# The manager's own directory of what is set for good lies beside that of the user's units.
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
    """What the manager says of a unit; see org.freedesktop.systemd1(5). Empty or 0: it does not say."""

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
    """Where a socket listens: a path."""
    start: str = ""
    """The program that a service starts: a path."""
    needs_reload: str = ""
    """`yes`: its file has changed since the manager read it."""
    pid: int = 0
    status: str = ""
    """What the daemon says of itself; nothing when there is none."""
    restarts: int = 0
    result: str = ""
    """`success`, or how it failed."""
    exit_kind: int = 0
    """1: exited; 2, 3: killed by a signal."""
    exit_status: int = 0
    """The exit code, or the signal."""

    @property
    def is_up(self) -> bool:
        """The unit runs, or listens."""
        return self.active in ("active", "reloading")

    @property
    def has_failed(self) -> bool:
        """The unit does not run because it failed; it may be tried again by itself."""
        return self.active == "failed" or self.sub == "auto-restart" or (not self.is_up and self.went_wrong)

    @property
    def went_wrong(self) -> bool:
        """Its last run ended, or its last start failed, otherwise than it should have."""
        return self.result not in ("", "success")


def runtime_directory() -> str | None:
    """Return the user's runtime directory, where the manager has its sockets; None: there is none.

    `$XDG_RUNTIME_DIR`; without it (`su`) the one that the system would have given.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    found = given if given.startswith("/") else f"/run/user/{os.geteuid()}"
    return found if os.path.isdir(found) else None


def can_be_asked() -> bool:
    """Tell whether there is a manager that may be asked, without asking it."""
    runtime = runtime_directory()
    if runtime is None or shutil.which("systemctl") is None:
        return False
    return os.path.exists(os.path.join(runtime, "systemd", "private"))


def unit_directory(seconds: float = _QUICK_SECONDS) -> str:
    """Return the directory of the user's units, as the manager has it; raises `Failure` when it cannot be asked.

    That is `${XDG_CONFIG_HOME:-~/.config}/systemd/user` with the manager's variable, which a shell may have otherwise.
    """
    ended = call("show", "--property=UnitPath", seconds=seconds)
    if ended.returncode != 0:
        said = one_line(ended.stderr.strip().partition("\n")[0]) or f"exit code {ended.returncode}"
        raise Failure(
            f"no systemd user manager can be reached: {said}",
            "log in directly or by ssh, or 'loginctl enable-linger', or 'machinectl shell USER@'; "
            "in a container, start 'fluxbudgetd' yourself",
            codes.UNREACHABLE,
        )
    places = f" {ended.stdout.strip().partition('=')[2]} "
    for known in (usual_unit_directory(os.environ), usual_unit_directory({})):  # in which a blank does no harm
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
    """Return where a manager with this environment has the user's units."""
    given = environ.get("XDG_CONFIG_HOME", "")
    config = given if given.startswith("/") else os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "systemd", "user")


def environment() -> dict[str, str]:
    """Return the environment that the manager gives to what it starts; raises `Failure`.

    (But for the variables that it has to write with escapes.)
    """
    ended = call("show-environment", seconds=_QUICK_SECONDS)
    if ended.returncode != 0:
        raise _failed("show-environment", ended)
    found: dict[str, str] = {}
    for line in ended.stdout.splitlines():
        name, _, value = line.partition("=")
        with suppress(ValueError):
            if not value.startswith("$'"):
                found[name] = "".join(shlex.split(value))
    return found


def look(seconds: float = _QUICK_SECONDS) -> dict[str, Unit]:
    """Return what the manager says of both units, by their names; raises `Failure`."""
    ended = call("show", f"--property=Id,{','.join(_FIELDS)}", "--", *UNITS, seconds=seconds)
    if ended.returncode != 0:
        raise _failed("show", ended)
    found: dict[str, Unit] = {}
    for block in ended.stdout.split("\n\n"):
        pairs = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        fields = {field: pairs[name] for name, field in _FIELDS.items() if pairs.get(name)}
        fields["start"] = _first(_STARTS, fields.get("start", ""))
        fields["listen"] = _first(_LISTENS, fields.get("listen", ""))
        if fields.get("pid", "0") == "0":
            fields.pop("status", None)  # it is its predecessor's
        found[pairs.get("Id", "")] = msgspec.convert(fields, Unit, strict=False)
    return {name: found.get(name, Unit()) for name in UNITS}


def do(verb: str, *arguments: str) -> None:
    """Let the manager do something; raises `Failure` when it does not."""
    ended = call(verb, *arguments, seconds=PATIENT_SECONDS)
    if ended.returncode != 0:
        raise _failed(f"{verb} {' '.join(arguments)}".rstrip(), ended)


def call(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `systemctl --user`; raises `Failure` when it is not there or says nothing in time."""
    program = shutil.which("systemctl")
    if program is None:
        raise Failure(
            "there is no systemctl here: this system does not run systemd",
            "start 'fluxbudgetd' from your session's start-up (for instance 'nohup fluxbudgetd &'), or by a supervisor",
            codes.UNREACHABLE,
        )
    environ = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    if runtime := runtime_directory():
        environ["XDG_RUNTIME_DIR"] = runtime
    try:
        return subprocess.run(  # noqa: S603  no shell, and what is called is the system's
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
            "see whether 'systemctl --user status' answers; 'fluxbudgetd' can be started without systemd, too",
            codes.UNREACHABLE,
        ) from None
    except OSError as exc:
        raise Failure(f"{program}: {exc.strerror}", "start 'fluxbudgetd' yourself", codes.UNREACHABLE) from None


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found[1] if found else ""


def _failed(what: str, ended: subprocess.CompletedProcess[str]) -> Failure:
    said = one_line(ended.stderr.strip().partition("\n")[0]) or f"exit code {ended.returncode}"
    return Failure(f"'systemctl --user {what}' failed: {said}", "see 'systemctl --user status'", codes.REFUSED)
