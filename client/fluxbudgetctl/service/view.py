"""Everything that is to be seen of the service, looked at once: files, manager, daemon, login."""

import os
import pwd
import re

import msgspec

from fluxbudgetctl import environment, verbs
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import holders, manager, quoting, sources, units
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire import messages

_PING_SECONDS = 1.0
# Of a row of /proc/net/unix.
_FLAGS, _PATH = 3, 7
_LISTENING = 0x10000
# What another environment of the same version writes otherwise: its program, and where that is seen in /tmp.
_OF_THE_PROGRAM = re.compile(r"^(ExecStart|BindReadOnlyPaths)=.*\n", re.MULTILINE)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is there."""

    directory: str
    """Where the units belong."""
    files: dict[str, units.File]
    manager: dict[str, Unit]
    outdated: bool
    """Both units, or one, are ours, but are not what this version writes."""
    program: str | None
    """The program that the service starts."""
    listen: str | None
    """Where the socket listens, or would."""
    is_heard: bool
    """Somebody listens there."""
    held_by: int | None
    """The pid of a daemon that is not the service's, and has what the service needs: its socket, or its ledger."""
    drop_ins: tuple[str, ...]
    """Directories of settings that a person has added to the units."""
    lingering: bool | None
    """The manager goes on after the last logout; None: there is no way to tell."""

    @property
    def service(self) -> Unit:
        """The service, as the manager has it."""
        return self.manager[SERVICE]

    @property
    def socket(self) -> Unit:
        """The socket, as the manager has it."""
        return self.manager[SOCKET]

    def is_there(self, name: str) -> bool:
        """Tell whether a unit's file is where `install` writes it, whoever wrote it."""
        return self.files[name].state in (State.OURS, State.EDITED, State.FOREIGN)

    def is_known(self, name: str) -> bool:
        """Tell whether there is such a unit, wherever it comes from."""
        return self.is_there(name) or self.manager[name].load not in ("not-found", "masked", "")

    @property
    def is_installed(self) -> bool:
        """There are both."""
        return all(map(self.is_known, UNITS))

    @property
    def starts_at_login(self) -> bool:
        """The manager starts the daemon, or listens for it, when the user logs in."""
        return self.socket.file_state.startswith("enabled")

    def outside(self, answer: object) -> int | None:
        """Return the pid of a daemon that runs, but not as the service. `answer`: what a ping brought."""
        if isinstance(answer, messages.PingAnswer) and self.is_outside(answer.pid):
            return answer.pid
        return self.held_by

    def is_outside(self, pid: int) -> bool:
        """Tell whether the daemon that answers is not the service's. (One that has just ended is nobody's.)"""
        return pid != self.service.pid and holders.is_outside(pid)


def directory() -> str:
    """Return where the units belong; raises no `Failure` where no manager can be asked."""
    if manager.can_be_asked():
        try:
            return manager.unit_directory()
        except Failure:
            pass
    return manager.usual_unit_directory(os.environ)


def files(directory: str) -> dict[str, units.File]:
    """Return what lies where the units belong."""
    runtime = manager.runtime_directory()
    masks = [] if runtime is None else [os.path.join(runtime, "systemd", "user")]
    return {name: units.read(directory, name, *masks) for name in UNITS}


def wanted(carried: dict[str, str]) -> dict[str, str]:
    """Return the units' texts that this version writes; raises `Failure`."""
    templates = {name: sources.template(name) for name in UNITS}
    return units.render(templates, sources.program(), carried, sources.code(), verbs.client_version())


def look(seconds: float = 10.0) -> View:
    """Return everything; raises `Failure` when the manager does not answer within so many seconds."""
    place = manager.unit_directory(seconds)
    found = files(place)
    told = manager.look(seconds)
    listen = told[SOCKET].listen or units.listens_at(found[SOCKET], manager.runtime_directory() or "")
    program = _program(found[SERVICE], told[SERVICE].start)
    return View(
        directory=place,
        files=found,
        manager=told,
        outdated=_is_outdated(found, program),
        program=program,
        listen=listen,
        is_heard=listen is not None and _is_heard(listen),
        held_by=holders.outside(_locks(found[SERVICE], listen)),
        drop_ins=_drop_ins(place),
        lingering=lingering(os.geteuid()),
    )


def lingering(uid: int, root: str = "/") -> bool | None:
    """Tell whether the user's manager goes on after the last logout; None where no logind knows the user."""
    if not os.path.exists(os.path.join(root, f"run/systemd/users/{uid}")):
        return None
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
    return os.path.exists(os.path.join(root, "var/lib/systemd/linger", name))


def look_and_ask() -> tuple[View, messages.PingAnswer | Failure | None]:
    """Return everything, and what the daemon answers; None when asking would start it. Raises `Failure` as `look`."""
    view = look()
    path = environment.socket()
    if not view.service.pid and view.socket.is_up and view.listen in (None, path):
        return view, None
    try:
        return view, verbs.call(messages.Ping(), messages.PingAnswer, _PING_SECONDS, path)
    except Failure as failure:
        return view, failure


def _drop_ins(directory: str) -> tuple[str, ...]:
    places = (os.path.join(directory, f"{name}.d") for name in UNITS)
    return tuple(place for place in places if os.path.isdir(place) and os.listdir(place))


def _locks(service: units.File, listen: str | None) -> list[str]:
    """Return the locks that the service needs: as it is installed, and as it would be from this environment."""
    here = units.carried_over(os.environ, os.geteuid())
    home = os.path.expanduser("~")
    states = (
        units.state_directory(carried, home)
        for carried in ({**units.kept(service, os.environ), **here}, units.carried_in(service))
    )
    sockets = (environment.socket(), listen) if listen else (environment.socket(),)
    return [*map(holders.socket_lock, dict.fromkeys(sockets)), *map(holders.state_lock, dict.fromkeys(states))]


def _program(service: units.File, started: str) -> str | None:
    """Return the program behind the one that the manager says it starts, which may be a shell of ours around it."""
    command = service.value("ExecStart")
    if command is None or (started and quoting.words(command)[:1] != [started]):
        return started or None
    return quoting.program_of(command)


def _is_heard(path: str) -> bool:
    """Tell whether a process listens at a path; without asking it, which would start the daemon.

    A list that does not have the manager's own socket is that of another network, and says nothing.
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
    """Compare the units that are ours with what this version writes for what they have carried over.

    Another environment of the same version, as long as its program is there, has installed what this one would.
    """
    try:
        now = wanted(units.carried_in(found[SERVICE]))
    except Failure:
        return False  # what this version would write cannot be said
    ours = [(one, now[name]) for name, one in found.items() if one.state is State.OURS]
    if all(one.text == text for one, text in ours):
        return False
    return not (
        program is not None
        and os.access(program, os.X_OK)
        and all(one.version == verbs.client_version() for one, _ in ours)
        and all(_OF_THE_PROGRAM.sub("", one.body) == _OF_THE_PROGRAM.sub("", _body(text)) for one, text in ours)
    )


def _body(text: str) -> str:
    return text.partition("\n")[2]
