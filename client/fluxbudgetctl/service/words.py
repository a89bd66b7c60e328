"""The service in words for people, and as JSON."""

import signal

from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.units import SERVICE, SOCKET, State
from fluxbudgetctl.service.view import View
from fluxbudgetctl.verbs import client_version
from fluxbudgetd.wire import codes, messages

JOURNAL = "journalctl --user-unit=fluxbudgetd"
_EXITED = 1

#: Exit codes of fluxbudgetd (docs/commands.md) and of systemd itself (systemd.exec(5)).
_EXITS = {
    codes.REFUSED: "it could not start",
    codes.USAGE: "its command line is wrong",
    codes.BAD_INPUT: "its ledger is of a newer version",
    codes.INTERNAL: "a defect",
    codes.BAD_CONFIG: "the configuration is wrong: see 'fluxbudgetd --check-config'",
    203: "its program cannot be started",
    217: "the system gives this user no user namespaces",
    226: "its sandbox could not be made",
}
_RESULTS = {
    "protocol": "it ended before it was ready",
    "timeout": "it was not ready, or not gone, in time",
    "watchdog": "it hung, and was ended",
    "oom-kill": "the system had no memory left",
    "start-limit-hit": "it was started too often",
    "resources": "the system could not start it",
    "trigger-limit-hit": "it was called too often",
    "service-start-limit-hit": "its service was started too often",
}


def failure(unit: Unit) -> str | None:
    """Return in words how the unit's last run failed; None when it did not."""
    if not unit.went_wrong:
        return None
    if unit.result == "exit-code" and unit.exit_kind == _EXITED:
        meaning = _EXITS.get(unit.exit_status)
        return f"exit code {unit.exit_status}{f', {meaning}' if meaning else ''}"
    if unit.result in ("signal", "core-dump"):
        return f"ended by {_signal(unit.exit_status)}"
    return _RESULTS.get(unit.result, unit.result)


def lines(view: View, answer: messages.PingAnswer | Failure | None) -> list[str]:
    """Return what `service status` prints."""
    found = [f"units     {units(view)}", f"socket    {_socket(view)}", f"daemon    {_daemon(view, answer)}"]
    service = view.service
    if service.status:
        found.append(f"          it says: {service.status}")
    if service.restarts:
        times = "once" if service.restarts == 1 else f"{service.restarts} times"
        found.append(f"          restarted {times} by itself")
    if not service.is_up and (why := failure(service)):
        found.append(f"          last failure: {why} ({JOURNAL})")
    if view.drop_ins:
        found.append(f"settings  {', '.join(view.drop_ins)}")
    found.append(f"login     starts at login: {'yes' if view.starts_at_login else 'no'}")
    found.append(f"logout    goes on after logout (lingering): {_yes_or_no(view.lingering)}")
    return [one_line(line) for line in found]


def as_json(view: View, outside: int | None) -> dict[str, object]:
    """Return what `--json` prints, of `service status` and of `doctor`; `outside`: as of `View.outside`."""
    service = view.service
    return {
        "installed": view.is_installed,
        "outdated": view.outdated,
        "units": {
            name: {"path": one.path, "state": one.state, "version": one.version or None}
            for name, one in view.files.items()
        },
        "drop_ins": view.drop_ins,
        "program": view.program,
        "socket": {"state": view.socket.active, "path": view.listen},
        "daemon": {
            "state": service.active,
            "pid": service.pid or None,
            "says": service.status or None,
            "restarts": service.restarts,
            "failure": None if service.is_up else failure(service),
            "result": service.result or None,
            "outside": outside,
        },
        "starts_at_login": view.starts_at_login,
        "lingering": view.lingering,
    }


def units(view: View) -> str:
    """Return in words what is installed."""
    if all(view.files[name].state is State.OURS for name in (SOCKET, SERVICE)):
        version = view.files[SERVICE].version
        if view.outdated:
            return f"installed by version {version}; outdated: this version ({client_version()}) writes them otherwise"
        return f"installed by version {version}"
    return "; ".join(f"{name} {_state(view, name)}" for name in (SOCKET, SERVICE))


def _state(view: View, name: str) -> str:
    one = view.files[name]
    if one.state is State.MISSING:
        fragment = view.manager[name].fragment
        return f"comes from {fragment}" if fragment else "is not installed"
    if one.state is State.OURS:
        return f"installed by version {one.version}"
    if one.state is State.EDITED:
        return "was edited by hand"
    if one.state is State.FOREIGN:
        return f"is somebody else's ({one.path})"
    return f"is masked ({one.path})"


def _socket(view: View) -> str:
    unit = view.socket
    if unit.is_up and not view.is_heard:
        return f"active, but nobody listens at {view.listen}: 'systemctl --user restart {SOCKET}'"
    if unit.is_up:
        return f"listening at {view.listen}" if view.listen else "listening"
    why = failure(unit)
    return f"not listening ({unit.active or 'unknown'}{f': {why}' if why else ''})"


def _daemon(view: View, answer: messages.PingAnswer | Failure | None) -> str:
    if isinstance(answer, messages.PingAnswer):
        running = f"running since {answer.started_at}, pid {answer.pid}, version {answer.version}"
        return f"{running}, outside systemd" if view.is_outside(answer.pid) else running
    if view.held_by is not None:
        why = f": {answer.message}" if isinstance(answer, Failure) else ""
        return f"fluxbudgetd (pid {view.held_by}) runs outside systemd, but does not answer here{why}"
    if view.service.pid:
        state = "running" if view.service.is_up else view.service.active
        why = f", but: {answer.message}" if isinstance(answer, Failure) else ""
        return f"{state}, pid {view.service.pid}{why}"
    if view.service.has_failed:
        return "failed" + ("; the next call starts it" if view.socket.is_up else "")
    return "not running" + ("; the first call starts it" if view.socket.is_up else "")


def _yes_or_no(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
