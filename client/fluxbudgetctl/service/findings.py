"""What `doctor` finds wrong with the service, where there is a user manager at all."""

import os
import shlex
from collections.abc import Iterator, Mapping

import msgspec

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import manager, view, words
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire.messages import DoctorAnswer, Finding
from fluxbudgetd.wire.paths import socket_path

INSTALL = "fluxbudgetctl service install"
INSTALL_NOW = f"{INSTALL} --now"
# `doctor` answers soon, also when the manager hangs.
_SECONDS = 0.8
_GRAPHICAL = ("x11", "wayland", "mir")


class Seen(msgspec.Struct, frozen=True):
    """What `doctor` tells of the service."""

    findings: tuple[Finding, ...] = ()
    fields: dict[str, object] | None = None
    """For `--json`; None where there is no manager that answers."""
    line: str = ""
    """For people."""
    of_the_service: bool = False
    """The daemon that answered is the service's."""


def before() -> view.View | Failure | None:
    """Look, before the daemon is asked, which starts it; None where there is no user manager."""
    if not manager.can_be_asked():
        return None
    try:
        return view.look(_SECONDS)
    except Failure as failure:
        return failure


def seen(found: view.View | Failure | None, answer: DoctorAnswer | None) -> Seen:
    """Return what there is to tell of what was found before. `answer`: what the daemon said then."""
    if found is not None and not isinstance(found, Failure) and answer is not None and answer.pid != found.service.pid:
        found = before()  # it was started by being asked
    if found is None:
        return Seen()
    if isinstance(found, Failure):
        return Seen((Finding(what=found.message, hint=found.hint),))
    runs = 0 if answer is None else answer.active_runs
    outside = answer.pid if answer is not None and found.is_outside(answer.pid) else found.held_by
    return Seen(
        tuple(findings(found, outside=outside, runs=runs, environ=os.environ)),
        words.as_json(found, outside),
        words.units(found) if outside is None else f"{words.units(found)}; fluxbudgetd (pid {outside}) runs without it",
        of_the_service=answer is not None and not found.is_outside(answer.pid),
    )


def findings(found: view.View, *, outside: int | None, runs: int, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong. `outside`: the pid of a daemon that is not the service's; `runs`: how many are active."""
    if outside is not None and not any(map(found.is_known, UNITS)) and not _masked(found):
        return  # a person's choice
    yield from _files(found)
    if not any(map(found.is_known, UNITS)):
        return
    yield from _units(found)
    if found.is_known(SOCKET) and outside is None:
        yield from _listening(found)
    if outside is not None:
        what = f"fluxbudgetd (pid {outside}) runs outside systemd, beside the units that are installed"
        yield Finding(what=what, hint=f"stop it (kill {outside}), then {INSTALL_NOW}")
    asked = socket_path(environ, os.geteuid())
    if found.listen and os.path.realpath(asked) != os.path.realpath(found.listen):
        if environ.get("FLUXBUDGET_SOCKET"):
            what = f"the service listens at {found.listen}, but your FLUXBUDGET_SOCKET is {asked}"
            yield Finding(what=what, hint=f"unset it, or {INSTALL_NOW} with it")
        else:
            what = f"the service listens at {found.listen}, but your shell looks at {asked}"
            yield Finding(what=what, hint=f"export FLUXBUDGET_SOCKET={shlex.quote(found.listen)}")
    if found.lingering is False and runs and not _is_graphical(environ):
        what = "at your last logout systemd ends fluxbudgetd, while a run is active (a session in tmux goes on)"
        yield Finding(what=what, hint="loginctl enable-linger")


def _files(found: view.View) -> Iterator[Finding]:
    missing = [name for name in UNITS if found.files[name].state is State.MISSING and not found.is_known(name)]
    if len(missing) == len(UNITS):
        yield Finding(what="fluxbudgetd is not installed as a systemd user service", hint=INSTALL_NOW)
    else:
        yield from (Finding(what=f"{name} is not installed", hint=INSTALL_NOW) for name in missing)
    for name, path in _masked(found).items():
        yield Finding(what=f"{name} is masked ({path})", hint=unmask(name, path, found.directory))
    program = found.program
    if program is not None and found.is_there(SERVICE) and not _is_program(program):
        hint = INSTALL if found.files[SERVICE].state is State.OURS else f"mend {found.files[SERVICE].path}"
        yield Finding(what=f"{SERVICE} starts {program}, which is no program (any more)", hint=hint)
    elif found.outdated:
        yield Finding(what="the installed units are not what this version writes", hint=INSTALL)


def _units(found: view.View) -> Iterator[Finding]:
    for name, unit in found.manager.items():
        if unit.load not in ("loaded", "masked", "not-found", ""):
            what = f"systemd cannot read {name} ({unit.load})"
            yield Finding(what=what, hint=f"systemd-analyze --user verify {found.files[name].path}")
        elif unit.needs_reload == "yes":
            what = f"systemd has not read {name} since it was changed"
            # Ours: an install that came no further than that. Another one knows what has to be stopped first.
            ours = found.files[name].state is State.OURS
            yield Finding(what=what, hint=INSTALL if ours else "systemctl --user daemon-reload")
    if found.is_known(SOCKET) and not found.starts_at_login:
        yield Finding(what=f"{SOCKET} is not enabled: it does not listen after the next login", hint=INSTALL_NOW)
    if found.service.has_failed:
        what = f"{SERVICE} has failed: {words.failure(found.service) or found.service.active}"
        yield Finding(what=what, hint=f"see {words.JOURNAL}; the next call starts it again")


def _listening(found: view.View) -> Iterator[Finding]:
    if not found.socket.is_up:
        why = words.failure(found.socket)
        what = f"{SOCKET} does not listen ({found.socket.active}{f': {why}' if why else ''})"
        yield Finding(what=what, hint=f"systemctl --user start {SOCKET}")
    elif not found.is_heard:
        what = f"{SOCKET} is {found.socket.active}, but nobody listens at {found.listen}: it was changed meanwhile"
        yield Finding(what=what, hint=f"systemctl --user restart {SOCKET}")


def unmask(name: str, path: str, directory: str) -> str:
    """Return how to unmask a unit that is masked at this path. `directory`: where the units belong."""
    runtime = "" if path.startswith(f"{directory}/") else "--runtime "
    return f"systemctl --user unmask {runtime}{name}"


def _masked(found: view.View) -> dict[str, str]:
    """Return the units that are masked, and where."""
    masked = {name: one.path for name, one in found.files.items() if one.state is State.MASKED}
    return masked | {
        name: unit.fragment for name, unit in found.manager.items() if unit.load == "masked" and name not in masked
    }


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_graphical(environ: Mapping[str, str]) -> bool:
    return not environ.get("SSH_CONNECTION") and environ.get("XDG_SESSION_TYPE") in _GRAPHICAL
