"""The service's status: its files, what the manager says, its daemon, and what happens at login and logout."""

import os
import pwd
import re

import msgspec

from fluxbudgetctl import environment
from fluxbudgetctl.calls import call
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import locks, manager, package, quoting, sprints, units
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetctl.versions import client_version
from fluxbudgetd.wire import messages

_PING_SECONDS = 1.0
# Columns of /proc/net/unix.
_FLAGS, _PATH = 3, 7
_LISTENING = 0x10000
# The settings that depend on where fluxbudget is installed.
_PROGRAM_SETTINGS = re.compile(r"^(ExecStart|BindReadOnlyPaths)=.*\n", re.MULTILINE)


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The service, as it was found at one moment."""

    directory: str
    """Where the units belong."""
    files: dict[str, units.File]
    manager: dict[str, Unit]
    outdated: bool
    """True if a unit is ours, but differs from what this version writes."""
    program: str | None
    """The program that the service starts."""
    listen: str | None
    """The path at which the socket listens, or would listen."""
    is_listening: bool
    """True if a process listens there."""
    held_by: int | None
    """The pid of a daemon outside the service that holds the socket or the ledger that the service needs."""
    drop_ins: tuple[str, ...]
    """Directories with settings that the user has added to the units."""
    sprints: units.File
    """The drop-in that opens the sandbox for sprints."""
    lingering: bool | None
    """True if the manager continues after the last logout; None if that is unknown."""

    @property
    def service(self) -> Unit:
        """What the manager says about the service."""
        return self.manager[SERVICE]

    @property
    def socket(self) -> Unit:
        """What the manager says about the socket."""
        return self.manager[SOCKET]

    def has_file(self, name: str) -> bool:
        """Return True if there is a file where `install` writes the unit, whatever wrote it."""
        return self.files[name].state in (State.OURS, State.EDITED, State.FOREIGN)

    def is_known(self, name: str) -> bool:
        """Return True if the unit exists, wherever it comes from."""
        return self.has_file(name) or self.manager[name].load not in ("not-found", "masked", "")

    @property
    def is_installed(self) -> bool:
        """True if both units exist."""
        return all(map(self.is_known, UNITS))

    @property
    def starts_at_login(self) -> bool:
        """True if the manager starts the daemon, or listens for it, when the user logs in."""
        return self.socket.file_state.startswith("enabled")

    def find_outside(self, answer: object) -> int | None:
        """Return the pid of a daemon that runs outside the service, if any. `answer` is the answer to a ping."""
        if isinstance(answer, messages.PingAnswer) and self.is_outside(answer.pid):
            return answer.pid
        return self.held_by

    def is_outside(self, pid: int) -> bool:
        """Return True if the daemon with this pid runs outside the service. (False if it has just ended.)"""
        return pid != self.service.pid and locks.is_outside(pid)


def unit_directory() -> str:
    """Return where the units belong; the usual place if the manager cannot be asked."""
    if manager.is_available():
        try:
            return manager.unit_directory()
        except Failure:
            pass
    return manager.usual_unit_directory(os.environ)


def read_files(directory: str) -> dict[str, units.File]:
    """Return what is at each unit's path."""
    runtime = manager.runtime_directory()
    masks = [] if runtime is None else [os.path.join(runtime, "systemd", "user")]
    return {name: units.read(directory, name, *masks) for name in UNITS}


def wanted_units(carried: dict[str, str]) -> dict[str, str]:
    """Return the texts of the units as this version writes them; raises `Failure`."""
    templates = {name: package.template(name) for name in UNITS}
    return units.render(templates, package.daemon_command(), carried, package.code_directories(), client_version())


def read_status(seconds: float = 10.0) -> ServiceStatus:
    """Return the status; raises `Failure` if the manager does not answer within this time."""
    place = manager.unit_directory(seconds)
    found = read_files(place)
    loaded = manager.read_units(seconds)
    listen = loaded[SOCKET].listen or units.listen_path(found[SOCKET], manager.runtime_directory() or "")
    program = _program(found[SERVICE], loaded[SERVICE].start)
    return ServiceStatus(
        directory=place,
        files=found,
        manager=loaded,
        outdated=_is_outdated(found, program),
        program=program,
        listen=listen,
        is_listening=listen is not None and _is_listening(listen),
        held_by=locks.find_outside(_locks(found[SERVICE], listen)),
        drop_ins=_drop_ins(place),
        sprints=sprints.read(place),
        lingering=is_lingering(os.geteuid()),
    )


def is_lingering(uid: int, root: str = "/") -> bool | None:
    """Return True if the user's manager continues after the last logout; None where logind does not know the user."""
    if not os.path.exists(os.path.join(root, f"run/systemd/users/{uid}")):
        return None
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
    return os.path.exists(os.path.join(root, "var/lib/systemd/linger", name))


def read_status_and_ping() -> tuple[ServiceStatus, messages.PingAnswer | Failure | None]:
    """Return the status, and the daemon's answer to a ping; None if a ping would start it. Raises `Failure`."""
    status = read_status()
    path = environment.socket()
    if not status.service.pid and status.socket.is_up and status.listen in (None, path):
        return status, None
    try:
        return status, call(messages.Ping(), messages.PingAnswer, _PING_SECONDS, path)
    except Failure as failure:
        return status, failure


def _drop_ins(directory: str) -> tuple[str, ...]:
    places = (os.path.join(directory, f"{name}.d") for name in UNITS)
    ours = {sprints.NAME} if sprints.read(directory).state is State.OURS else set()
    return tuple(place for place in places if os.path.isdir(place) and not ours.issuperset(os.listdir(place)))


def _locks(service: units.File, listen: str | None) -> list[str]:
    """Return the locks that the service needs: as it is installed, and as it would be installed now."""
    here = units.carried_over(os.environ, os.geteuid())
    home = os.path.expanduser("~")
    states = (
        units.state_directory(carried, home)
        for carried in ({**units.kept(service, os.environ), **here}, units.carried_in(service))
    )
    sockets = (environment.socket(), listen) if listen else (environment.socket(),)
    return [*map(locks.socket_lock, dict.fromkeys(sockets)), *map(locks.state_lock, dict.fromkeys(states))]


def _program(service: units.File, started: str) -> str | None:
    """Return the daemon's program. The one that the manager reports may be a shell that starts it."""
    command = service.value("ExecStart")
    if command is None or (started and quoting.words(command)[:1] != [started]):
        return started or None
    return quoting.program_of(command)


def _is_listening(path: str) -> bool:
    """Return True if a process listens at a path; connecting would start the daemon.

    A list without the manager's own socket belongs to another network namespace; then the answer is True.
    """
    try:
        with open("/proc/net/unix", "rb") as file:
            rows = [line.rstrip(b"\n").split(maxsplit=_PATH) for line in file][1:]
    except OSError:
        return True
    listening = {row[_PATH] for row in rows if len(row) > _PATH and int(row[_FLAGS], 16) & _LISTENING}
    managers = os.path.join(manager.runtime_directory() or "", "systemd", "private")
    return os.fsencode(path) in listening or os.fsencode(managers) not in listening


def _is_outdated(found: dict[str, units.File], program: str | None) -> bool:
    """Return True if a unit of ours differs from what this version writes with the same variables.

    Units that another environment with the same version has installed are up to date while its program exists.
    """
    try:
        now = wanted_units(units.carried_in(found[SERVICE]))
    except Failure:
        return False  # unknown what this version would write
    ours = [(file, now[name]) for name, file in found.items() if file.state is State.OURS]
    if all(file.text == text for file, text in ours):
        return False
    return not (
        program is not None
        and os.access(program, os.X_OK)
        and all(file.version == client_version() for file, _ in ours)
        and all(_PROGRAM_SETTINGS.sub("", file.body) == _PROGRAM_SETTINGS.sub("", _body(text)) for file, text in ours)
    )


def _body(text: str) -> str:
    return text.partition("\n")[2]
