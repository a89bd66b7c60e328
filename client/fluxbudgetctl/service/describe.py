"""The service's status, in words for people and as JSON."""

import os
import signal

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import sprints
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.status import ServiceStatus
from fluxbudgetctl.service.units import SERVICE, SOCKET, File, State
from fluxbudgetctl.versions import client_version
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import one_line

JOURNAL = "journalctl --user-unit=fluxbudgetd"
_EXITED = 1

#: Exit codes of fluxbudgetd (docs/commands.md) and of systemd itself (systemd.exec(5)).
_EXITS = {
    codes.REFUSED: "it could not start",
    codes.USAGE: "its command line is wrong",
    codes.BAD_INPUT: "its ledger is from a newer version",
    codes.INTERNAL: "internal error",
    codes.BAD_CONFIG: "the configuration is wrong: see 'fluxbudgetd --check-config'",
    203: "its program cannot be started",
    217: "this user may not create user namespaces",
    226: "its sandbox could not be set up",
}
_RESULTS = {
    "protocol": "it ended before it was ready",
    "timeout": "it did not start or stop in time",
    "watchdog": "it hung and was killed",
    "oom-kill": "the system ran out of memory",
    "start-limit-hit": "it was started too often",
    "resources": "the system could not start it",
    "trigger-limit-hit": "it was triggered too often",
    "service-start-limit-hit": "its service was started too often",
}


def failure(unit: Unit) -> str | None:
    """Return how the unit's last run failed; None if it did not."""
    if not unit.went_wrong:
        return None
    if unit.result == "exit-code" and unit.exit_kind == _EXITED:
        meaning = _EXITS.get(unit.exit_status)
        return f"exit code {unit.exit_status}{f', {meaning}' if meaning else ''}"
    if unit.result in ("signal", "core-dump"):
        return f"killed by {_signal(unit.exit_status)}"
    return _RESULTS.get(unit.result, unit.result)


def lines(status: ServiceStatus, answer: messages.PingAnswer | Failure | None) -> list[str]:
    """Return the lines that `service status` prints."""
    found = [
        f"units     {installed_units(status)}",
        f"socket    {_socket(status)}",
        f"daemon    {_daemon(status, answer)}",
    ]
    service = status.service
    if service.status:
        found.append(f"          it says: {service.status}")
    if service.restarts:
        times = "once" if service.restarts == 1 else f"{service.restarts} times"
        found.append(f"          restarted automatically {times}")
    if not service.is_up and (why := failure(service)):
        found.append(f"          last failure: {why} ({JOURNAL})")
    if status.sprints.state is State.OURS:
        found.append(f"sprints   {_sprints(status.sprints)}")
    if status.drop_ins:
        found.append(f"settings  {', '.join(status.drop_ins)}")
    found.append(f"login     starts at login: {'yes' if status.starts_at_login else 'no'}")
    found.append(f"logout    continues after logout (lingering): {_yes_or_no(status.lingering)}")
    return [one_line(line) for line in found]


def as_json(status: ServiceStatus, outside: int | None) -> dict[str, object]:
    """Return what `service status --json` prints, and `doctor --json` as `service`.

    `outside` is the pid that `ServiceStatus.find_outside` returns.
    """
    service = status.service
    return {
        "installed": status.is_installed,
        "outdated": status.outdated,
        "units": {
            name: {"path": file.path, "state": file.state, "version": file.version or None}
            for name, file in status.files.items()
        },
        "drop_ins": status.drop_ins,
        "sprints": _sprints_as_json(status.sprints),
        "program": status.program,
        "socket": {"state": status.socket.active, "path": status.listen},
        "daemon": {
            "state": service.active,
            "pid": service.pid or None,
            "says": service.status or None,
            "restarts": service.restarts,
            "failure": None if service.is_up else failure(service),
            "result": service.result or None,
            "outside": outside,
        },
        "starts_at_login": status.starts_at_login,
        "lingering": status.lingering,
    }


def _sprints(file: File) -> str:
    """Return where the service may reach sprints."""
    count = len([path for path in sprints.opened_in(file) if os.path.isdir(path)])
    what = "1 directory" if count == 1 else f"{count} directories"
    return f"may write to {what} below {', '.join(sprints.directories_in(file))}"


def _sprints_as_json(file: File) -> dict[str, object] | None:
    if file.state is not State.OURS:
        return None
    return {"path": file.path, "directories": sprints.directories_in(file), "writable": sprints.opened_in(file)}


def installed_units(status: ServiceStatus) -> str:
    """Return which units are installed."""
    if all(status.files[name].state is State.OURS for name in (SOCKET, SERVICE)):
        version = status.files[SERVICE].version
        if status.outdated:
            return f"installed by version {version}; outdated: this version ({client_version()}) writes other units"
        return f"installed by version {version}"
    return "; ".join(f"{name} {_state(status, name)}" for name in (SOCKET, SERVICE))


def _state(status: ServiceStatus, name: str) -> str:
    file = status.files[name]
    if file.state is State.MISSING:
        fragment = status.manager[name].fragment
        return f"comes from {fragment}" if fragment else "is not installed"
    if file.state is State.OURS:
        return f"installed by version {file.version}"
    if file.state is State.EDITED:
        return "was edited by hand"
    if file.state is State.FOREIGN:
        return f"was not written by fluxbudgetctl ({file.path})"
    return f"is masked ({file.path})"


def _socket(status: ServiceStatus) -> str:
    unit = status.socket
    if unit.is_up and not status.is_listening:
        return f"active, but no process listens at {status.listen}: 'systemctl --user restart {SOCKET}'"
    if unit.is_up:
        return f"listening at {status.listen}" if status.listen else "listening"
    why = failure(unit)
    return f"not listening ({unit.active or 'unknown'}{f': {why}' if why else ''})"


def _daemon(status: ServiceStatus, answer: messages.PingAnswer | Failure | None) -> str:
    if isinstance(answer, messages.PingAnswer):
        running = f"running since {answer.started_at}, pid {answer.pid}, version {answer.version}"
        return f"{running}, outside systemd" if status.is_outside(answer.pid) else running
    if status.held_by is not None:
        why = f": {answer.message}" if isinstance(answer, Failure) else ""
        return f"fluxbudgetd (pid {status.held_by}) runs outside systemd, but does not answer here{why}"
    if status.service.pid:
        state = "running" if status.service.is_up else status.service.active
        why = f", but: {answer.message}" if isinstance(answer, Failure) else ""
        return f"{state}, pid {status.service.pid}{why}"
    if status.service.has_failed:
        return "failed" + ("; the next call starts it" if status.socket.is_up else "")
    return "not running" + ("; the first call starts it" if status.socket.is_up else "")


def _yes_or_no(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
