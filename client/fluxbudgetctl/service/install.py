"""`service install`: write the units, enable them, and switch a running service to them."""

import os
from collections.abc import Sequence
from contextlib import suppress

from fluxbudgetctl.failure import Failure, print_stderr
from fluxbudgetctl.service import describe, leftovers, manager, package, sprints, status, trial, unit_files, units
from fluxbudgetctl.service.doctor import INSTALL, INSTALL_NOW, unmask_command
from fluxbudgetctl.service.status import ServiceStatus
from fluxbudgetctl.service.unit_files import not_ours, require_no_directory
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetctl.versions import client_version
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line


def install(*, now: bool, force: bool, named: Sequence[str] = (), closes: bool = False) -> None:
    """Install the service.

    With `now` the socket listens at once, not only after the next login. With `force`, units that were edited, or
    not written by this command, are overwritten. `named` are directories of sprints to open, in addition to those that
    are open already; if `closes` is set, all of them are closed. Raises `Failure`.
    """
    environ = units.carried_over(os.environ, os.geteuid())
    before, answer = status.read_status_and_ping()
    _require_replaceable(before, force=force)
    outside = before.find_outside(answer)
    if outside is not None and now:
        raise Failure(
            f"fluxbudgetd (pid {outside}) runs outside systemd: stop it first (kill {outside})",
            "then run this again; nothing was written",
            codes.REFUSED,
        )
    texts = status.wanted_units({**units.kept(before.files[SERVICE], os.environ), **environ})
    if not closes:
        texts |= _sprints(before.sprints, named, force=force)
    trial.require_start(package.daemon_command(), manager.environment())
    _print_remarks(before.files[SERVICE], environ)
    unit_files.write(before.directory, texts)
    if closes and before.sprints.state in (State.OURS, State.EDITED):
        unit_files.remove(before.sprints.path)
        print(f"removed {before.sprints.path}")
    for name in texts:
        print(f"wrote {os.path.join(before.directory, name)}")
    _apply(before, texts, now=now, outside=outside)


def print_units(named: Sequence[str] = (), *, closes: bool = False) -> None:
    """Print what `install` would write; works without systemd."""
    environ = units.carried_over(os.environ, os.geteuid())
    directory = status.unit_directory()
    installed = status.read_files(directory)[SERVICE]
    _print_remarks(installed, environ)
    texts = status.wanted_units({**units.kept(installed, os.environ), **environ})
    if not closes:
        texts |= _sprints(sprints.read(directory), named, force=True)
    print("\n".join(f"# {os.path.join(directory, name)}\n{text}" for name, text in texts.items()), end="")


def _sprints(installed: units.File, named: Sequence[str], *, force: bool) -> dict[str, str]:
    """Return the drop-in for sprints, by its relative path; nothing if there is none to write. Raises `Failure`."""
    is_ours = installed.state is State.OURS
    if not named and not is_ours:
        return {}  # there is no drop-in, or the user has edited it
    if installed.state in (State.EDITED, State.FOREIGN, State.MASKED) and not force:
        hint = "move your changes to 'systemctl --user edit fluxbudgetd.service', then overwrite it with --force"
        raise Failure(f"{not_ours(installed)}; nothing was written", hint, codes.REFUSED)
    before = [path for path in sprints.directories_in(installed) if os.path.isdir(path)]
    directories = list(dict.fromkeys((*before, *sprints.checked(named))))
    found = sprints.find(directories, os.geteuid())
    if not found.is_all:
        print_stderr("warning: too many directories, so not all were searched: name the projects themselves")
    if not found.places:
        print_stderr(
            f"no project below {one_line(', '.join(directories))} has .clavain or .beads yet: run this again later"
        )
    path = sprints.search_path(os.environ, _managers_path())
    if not path and any(os.path.basename(place) == sprints.BEADS for place in found.places):
        print_stderr("'bd' is not on your PATH, so beads are not read: install it, then run this again")
    return {f"{sprints.DIRECTORY}/{sprints.NAME}": sprints.render(directories, found, path, client_version())}


def _managers_path() -> str:
    """Return the PATH that the user manager gives to services."""
    found = manager.environment().get("PATH") if manager.is_available() else None
    return found or "/usr/local/bin:/usr/bin:/bin"


def _print_remarks(installed: units.File, environ: dict[str, str]) -> None:
    """Print what the user should know before. `environ` is what the environment carries over to the daemon."""
    program = package.daemon_command()[0]
    home = os.path.expanduser("~")
    why = package.why_temporary(program, home, os.environ.get("XDG_CACHE_HOME"))
    if why is not None:
        print_stderr(f"warning: {one_line(program)} {why}: install fluxbudget in a permanent place")
    kept = units.kept(installed, os.environ)
    if environ:
        print_stderr(f"from your environment, for the daemon: {_pairs(environ)}")
    if kept:
        print_stderr(f"kept from the installed unit: {_pairs(kept)}")
    old, new = (units.state_directory(of, home) for of in (units.carried_in(installed), {**kept, **environ}))
    if installed.version and old != new:
        print_stderr(f"the ledger is in {one_line(new)} from now on; the one in {one_line(old)} stays there, unread")


def _pairs(environ: dict[str, str]) -> str:
    return one_line(", ".join(f"{name}={value}" for name, value in environ.items()))


def _require_replaceable(before: ServiceStatus, *, force: bool) -> None:
    for name, file in before.files.items():
        if file.state is State.MASKED:
            hint = unmask_command(name, file.path, before.directory)
            raise Failure(f"{name} is masked ({file.path}); nothing was written", hint, codes.REFUSED)
        require_no_directory(file)
        if file.state in (State.EDITED, State.FOREIGN) and not force:
            hint = f"move your changes to 'systemctl --user edit {name}', then overwrite the unit with --force"
            raise Failure(f"{not_ours(file)}; nothing was written", hint, codes.REFUSED)


def _apply(before: ServiceStatus, texts: dict[str, str], *, now: bool, outside: int | None) -> None:
    """Have the manager use the written units.

    Raises `Failure` if a step fails, after restarting what was running before.
    """
    is_restart = _must_restart_socket(before, texts)
    try:
        if is_restart:
            manager.run("stop", *UNITS)  # before the reload, after which the manager has forgotten the old socket
        manager.run("daemon-reload")
        manager.run("enable", *UNITS)
        print("enabled: it starts at your next login")
        if outside is not None:
            print(f"fluxbudgetd (pid {outside}) runs outside systemd: kill {outside}, then {INSTALL_NOW}")
        elif is_restart:
            if before.listen is not None and before.listen != status.read_status().listen:
                leftovers.remove_leftovers(before.listen)
            _start(SOCKET, "start", SOCKET)
            print("the socket has changed and was restarted: the first call starts the daemon")
        else:
            _switch(before, now=now)
    except Failure as failure:
        if is_restart and outside is None:
            with suppress(Failure):  # the first failure is the one to report
                manager.run("start", SOCKET)
        retry = INSTALL_NOW if is_restart or now else INSTALL
        raise Failure(f"written, but {failure.message}", f"{failure.hint}; then {retry}", failure.exit_code) from None


def _must_restart_socket(before: ServiceStatus, texts: dict[str, str]) -> bool:
    """Return True if the socket was set up by a different unit than the one just written.

    This depends on what the manager has read, not only on the file: an earlier install may have failed in between.
    """
    file, unit = before.files[SOCKET], before.socket
    if not unit.is_up:
        return unit.has_failed
    is_changed = unit.fragment != file.path or file.body != texts[SOCKET].partition("\n")[2]
    return is_changed or unit.needs_reload == "yes" or not before.is_listening


def _switch(before: ServiceStatus, *, now: bool) -> None:
    """Restart a running service with the new units; start the socket if `now`. Raises `Failure` if that fails."""
    if now:
        _start(SOCKET, "start", SOCKET)
    if before.service.is_up or before.service.active == "activating":
        _start(SERVICE, "try-restart", SERVICE)
        print("the daemon was restarted")
    elif now:
        print("listening: the first call starts the daemon")
    elif before.socket.is_up:
        print("the first call starts the daemon")
    else:
        print(f"to listen now: 'systemctl --user start {SOCKET}'")


def _start(name: str, *arguments: str) -> None:
    """Have the manager start a unit; raises `Failure`, with the unit's own reason, unless it is up afterwards."""
    failure: Failure | None = None
    try:
        manager.run(*arguments)
    except Failure as exc:
        if exc.exit_code == codes.UNREACHABLE:
            raise
        failure = exc
    unit = manager.read_units()[name]
    if failure is None and unit.is_up:
        return
    why = describe.failure(unit) or unit.active
    raise Failure(f"{name} does not start: {why}", f"see {describe.JOURNAL}", codes.REFUSED)
