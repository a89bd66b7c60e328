"""Everything that is to be seen of the service, looked at once: files, manager, daemon, login."""

import os
import pwd

import msgspec

from fluxbudgetctl import environment, verbs
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import manager, quoting, sources, units
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire import messages

_PING_SECONDS = 1.0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is there."""

    files: dict[str, units.File]
    manager: dict[str, Unit]
    outdated: bool
    """Both units, or one, are ours, but are not what this version writes."""
    program: str | None
    """The program that the installed service starts."""
    listen: str | None
    """Where the installed socket listens."""
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

    @property
    def is_installed(self) -> bool:
        """Both are there."""
        return all(map(self.is_there, UNITS))

    @property
    def starts_at_login(self) -> bool:
        """The manager starts the daemon, or listens for it, when the user logs in."""
        return self.socket.file_state.startswith("enabled")


def directory() -> str:
    """Return where the units belong: `${XDG_CONFIG_HOME:-~/.config}/systemd/user`."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    config = given if given.startswith("/") else os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "systemd", "user")


def files() -> dict[str, units.File]:
    """Return what lies where the units belong."""
    runtime = manager.runtime_directory()
    masks = [] if runtime is None else [os.path.join(runtime, "systemd", "user")]
    return {name: units.read(directory(), name, *masks) for name in UNITS}


def wanted(carried: dict[str, str]) -> dict[str, str]:
    """Return the units' texts that this version writes; raises `Failure`."""
    templates = {name: sources.template(name) for name in UNITS}
    return units.render(templates, sources.program(), carried, sources.code(), verbs.client_version())


def look(seconds: float = 10.0) -> View:
    """Return everything; raises `Failure` when the manager does not answer within so many seconds."""
    found = files()
    service = found[SERVICE]
    start = service.value("ExecStart")
    return View(
        files=found,
        manager=manager.look(seconds),
        outdated=_is_outdated(found),
        program=None if start is None else quoting.program_of(start),
        listen=units.listens_at(found[SOCKET], manager.runtime_directory() or ""),
        drop_ins=drop_ins(),
        lingering=lingering(os.geteuid()),
    )


def drop_ins() -> tuple[str, ...]:
    """Return the directories of a person's own settings for the units."""
    places = (os.path.join(directory(), f"{name}.d") for name in UNITS)
    return tuple(place for place in places if os.path.isdir(place) and os.listdir(place))


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
    answer = _ping(view)
    if isinstance(answer, messages.PingAnswer) and answer.pid != view.service.pid:
        view = look()  # it may have been started in between
    return view, answer


def _ping(view: View) -> messages.PingAnswer | Failure | None:
    path = environment.socket()
    if not view.service.pid and view.socket.is_up and view.listen in (None, path):
        return None
    try:
        return who_serves(path)
    except Failure as failure:
        return failure


def who_serves(path: str) -> messages.PingAnswer:
    """Ask whoever serves this path; raises `Failure`."""
    return verbs.call(messages.Ping(), messages.PingAnswer, _PING_SECONDS, path)


def is_outside(view: View, pid: int) -> bool:
    """Tell whether the daemon that answers is not the service's. (One that has just ended is nobody's.)"""
    return pid != view.service.pid and os.path.exists(f"/proc/{pid}")


def _is_outdated(found: dict[str, units.File]) -> bool:
    """Compare the units that are ours with what this version writes for what they have carried over."""
    try:
        now = wanted(units.carried_in(found[SERVICE]))
    except Failure:
        return False  # what this version would write cannot be said
    return any(one.state is State.OURS and one.text != now[name] for name, one in found.items())
