"""The user's service manager, by `systemctl --user`: with time limits, reading only what is made for machines."""

import os
import shutil
import subprocess

import msgspec

from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetctl.service.units import UNITS
from fluxbudgetd.wire import codes

#: Seconds. A start or a stop takes as long as the daemon does (its own limits are below this).
PATIENT_SECONDS = 120.0
_QUICK_SECONDS = 10.0

_FIELDS = {
    "LoadState": "load",
    "ActiveState": "active",
    "SubState": "sub",
    "UnitFileState": "file_state",
    "FragmentPath": "fragment",
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
    needs_reload: str = ""
    """`yes`: its file has changed since the manager read it."""
    pid: int = 0
    status: str = ""
    """What the daemon says of itself."""
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


def require(directory: str) -> None:
    """Raise `Failure`, in the words of the situation, unless there is a manager that reads units in this directory."""
    ended = call("show", "--property=UnitPath", seconds=_QUICK_SECONDS)
    if ended.returncode != 0:
        said = one_line(ended.stderr.strip().partition("\n")[0]) or f"exit code {ended.returncode}"
        raise Failure(
            f"no systemd user manager can be reached: {said}",
            "log in directly or by ssh, or 'loginctl enable-linger', or 'machinectl shell USER@'; "
            "in a container, start 'fluxbudgetd' yourself",
            codes.UNREACHABLE,
        )
    places = ended.stdout.strip().partition("=")[2]
    known = {os.path.realpath(place) for place in places.split(" ")}
    if f" {directory} " not in f" {places} " and os.path.realpath(directory) not in known:
        raise Failure(
            f"the systemd user manager reads no units in {directory}: its XDG_CONFIG_HOME is another than yours",
            "run it again with the manager's: 'systemctl --user show-environment' has it",
            codes.UNREACHABLE,
        )


def look(seconds: float = _QUICK_SECONDS) -> dict[str, Unit]:
    """Return what the manager says of both units, by their names; raises `Failure`."""
    ended = call("show", f"--property=Id,{','.join(_FIELDS)}", "--", *UNITS, seconds=seconds)
    if ended.returncode != 0:
        raise _failed("show", ended)
    found: dict[str, Unit] = {}
    for block in ended.stdout.split("\n\n"):
        pairs = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        fields = {field: pairs[name] for name, field in _FIELDS.items() if pairs.get(name)}
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


def _failed(what: str, ended: subprocess.CompletedProcess[str]) -> Failure:
    said = one_line(ended.stderr.strip().partition("\n")[0]) or f"exit code {ended.returncode}"
    return Failure(f"'systemctl --user {what}' failed: {said}", "see 'systemctl --user status'", codes.REFUSED)
