"""What `doctor` reports about the service, on systems with a user manager."""

import os
import shlex
from collections.abc import Iterator, Mapping

import msgspec

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import describe, locks, manager
from fluxbudgetctl.service.status import ServiceStatus, read_status
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire.messages import DoctorAnswer, Finding
from fluxbudgetd.wire.paths import socket_path

INSTALL = "fluxbudgetctl service install"
INSTALL_NOW = f"{INSTALL} --now"
# `doctor` must answer soon even if the manager hangs.
_SECONDS = 0.8
_GRAPHICAL = ("x11", "wayland", "mir")


class Report(msgspec.Struct, frozen=True):
    """What `doctor` reports about the service."""

    findings: tuple[Finding, ...] = ()
    fields: dict[str, object] | None = None
    """For `--json`; None if no user manager answers."""
    line: str = ""
    """For people."""
    is_daemon_of_service: bool = False
    """True if the daemon that answered is the service's."""


def read_before_request() -> ServiceStatus | Failure | None:
    """Return the status before a request starts the daemon; None where there is no user manager."""
    if not manager.is_available():
        return None
    try:
        return read_status(_SECONDS)
    except Failure as failure:
        return failure


def examine(status: ServiceStatus | Failure | None, answer: DoctorAnswer | None) -> Report:
    """Return the report. `status` is from before the request, and `answer` is what the daemon answered, if it did."""
    if isinstance(status, ServiceStatus) and answer is not None and answer.pid != status.service.pid:
        status = read_before_request()  # the request has started it
    if status is None:
        return Report()
    if isinstance(status, Failure):
        return Report((Finding(what=status.message, hint=status.hint),))
    runs = 0 if answer is None else answer.active_runs
    outside = answer.pid if answer is not None and status.is_outside(answer.pid) else status.held_by
    return Report(
        tuple(findings(status, outside=outside, runs=runs, environ=os.environ)),
        describe.as_json(status, outside),
        describe.installed_units(status)
        if outside is None
        else f"{describe.installed_units(status)}; fluxbudgetd (pid {outside}) runs without it",
        is_daemon_of_service=answer is not None and not status.is_outside(answer.pid),
    )


def removed_socket(path: str) -> Iterator[Finding]:
    """Yield a finding if a daemon serves this path, but the socket's file is gone."""
    pid = None if os.path.lexists(path) else locks.holder(locks.socket_lock(path))
    if pid is not None:
        yield Finding(
            what=f"fluxbudgetd (pid {pid}) is running, but its socket {path} was removed",
            hint=f"it binds the socket again within seconds; if it is systemd's: systemctl --user restart {SOCKET}",
        )


def findings(status: ServiceStatus, *, outside: int | None, runs: int, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong.

    `outside` is the pid of a daemon outside the service, if any; `runs` is the number of active runs.
    """
    if outside is not None and not any(map(status.is_known, UNITS)) and not _masked(status):
        return  # the user has chosen not to use the service
    yield from _files(status)
    if not any(map(status.is_known, UNITS)):
        return
    yield from _units(status)
    if status.is_known(SOCKET) and outside is None:
        yield from _listening(status)
    if outside is not None:
        what = f"fluxbudgetd (pid {outside}) runs outside systemd, although the units are installed"
        yield Finding(what=what, hint=f"stop it (kill {outside}), then {INSTALL_NOW}")
    expected = socket_path(environ, os.geteuid())
    if status.listen and os.path.realpath(expected) != os.path.realpath(status.listen):
        if environ.get("FLUXBUDGET_SOCKET"):
            what = f"the service listens at {status.listen}, but your FLUXBUDGET_SOCKET is {expected}"
            yield Finding(what=what, hint=f"unset it, or run '{INSTALL_NOW}' with it set")
        else:
            what = f"the service listens at {status.listen}, but your shell looks at {expected}"
            yield Finding(what=what, hint=f"export FLUXBUDGET_SOCKET={shlex.quote(status.listen)}")
    if status.lingering is False and runs and not _is_graphical(environ):
        what = "systemd stops fluxbudgetd at your last logout, while a run is active (a session in tmux continues)"
        yield Finding(what=what, hint="loginctl enable-linger")


def _files(status: ServiceStatus) -> Iterator[Finding]:
    missing = [name for name in UNITS if status.files[name].state is State.MISSING and not status.is_known(name)]
    if len(missing) == len(UNITS):
        yield Finding(what="fluxbudgetd is not installed as a systemd user service", hint=INSTALL_NOW)
    else:
        yield from (Finding(what=f"{name} is not installed", hint=INSTALL_NOW) for name in missing)
    for name, path in _masked(status).items():
        yield Finding(what=f"{name} is masked ({path})", hint=unmask_command(name, path, status.directory))
    program = status.program
    if program is not None and status.has_file(SERVICE) and not _is_program(program):
        hint = INSTALL if status.files[SERVICE].state is State.OURS else f"repair {status.files[SERVICE].path}"
        yield Finding(what=f"{SERVICE} starts {program}, which is not executable", hint=hint)
    elif status.outdated:
        yield Finding(what="the installed units differ from what this version writes", hint=INSTALL)


def _units(status: ServiceStatus) -> Iterator[Finding]:
    for name, unit in status.manager.items():
        if unit.load not in ("loaded", "masked", "not-found", ""):
            what = f"systemd cannot read {name} ({unit.load})"
            yield Finding(what=what, hint=f"systemd-analyze --user verify {status.files[name].path}")
        elif unit.needs_reload == "yes":
            what = f"systemd has not read {name} since it was changed"
            # If it is ours, an install was interrupted; installing again stops what must be stopped before the reload.
            ours = status.files[name].state is State.OURS
            yield Finding(what=what, hint=INSTALL if ours else "systemctl --user daemon-reload")
    if status.is_known(SOCKET) and not status.starts_at_login:
        yield Finding(what=f"{SOCKET} is not enabled: it will not listen after the next login", hint=INSTALL_NOW)
    if status.service.has_failed:
        what = f"{SERVICE} has failed: {describe.failure(status.service) or status.service.active}"
        yield Finding(what=what, hint=f"see {describe.JOURNAL}; the next call starts it again")


def _listening(status: ServiceStatus) -> Iterator[Finding]:
    if not status.socket.is_up:
        why = describe.failure(status.socket)
        what = f"{SOCKET} does not listen ({status.socket.active}{f': {why}' if why else ''})"
        yield Finding(what=what, hint=f"systemctl --user start {SOCKET}")
    elif not status.is_listening:
        what = f"{SOCKET} is {status.socket.active}, but no process listens at {status.listen}"
        yield Finding(what=what, hint=f"systemctl --user restart {SOCKET}")


def unmask_command(name: str, path: str, directory: str) -> str:
    """Return the command that unmasks a unit. `path` is the mask's, `directory` is where the units belong."""
    runtime = "" if path.startswith(f"{directory}/") else "--runtime "
    return f"systemctl --user unmask {runtime}{name}"


def _masked(status: ServiceStatus) -> dict[str, str]:
    """Return the masked units, each with the path of its mask."""
    masked = {name: file.path for name, file in status.files.items() if file.state is State.MASKED}
    return masked | {
        name: unit.fragment for name, unit in status.manager.items() if unit.load == "masked" and name not in masked
    }


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_graphical(environ: Mapping[str, str]) -> bool:
    return not environ.get("SSH_CONNECTION") and environ.get("XDG_SESSION_TYPE") in _GRAPHICAL
