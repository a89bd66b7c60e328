"""`service install`, `service uninstall`, `service status`."""

import argparse
import os
import shutil
import tempfile
from contextlib import suppress

from fluxbudgetctl import environment, verbs
from fluxbudgetctl.failure import Failure, one_line, say
from fluxbudgetctl.service import findings, manager, sources, units, view, words
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire import codes, messages

Options = argparse.Namespace
_MODE = 0o644


def install(options: Options) -> int:
    """`service install`: write the units, enable them, and let a running service go over to them."""
    carried = units.carried_over(os.environ, os.geteuid())
    texts = view.wanted(carried)
    if options.print:
        _remark(carried)
        print("\n".join(f"# {os.path.join(view.directory(), name)}\n{texts[name]}" for name in UNITS), end="")
        return codes.OK
    manager.require(view.directory())
    before, answer = view.look_and_ask()
    _require_replaceable(before, force=options.force)
    outside = _outside(before, answer)
    if outside is not None and options.now:
        raise Failure(
            f"fluxbudgetd (pid {outside}) runs outside systemd: stop it first (kill {outside})",
            "then run this again; nothing was written",
            codes.REFUSED,
        )
    _remark(carried)
    _write(before, texts)
    moved = before.socket.is_up and before.files[SOCKET].body != texts[SOCKET].partition("\n")[2]
    if moved:
        manager.do("stop", *UNITS)  # before the manager forgets which file the socket has
    manager.do("daemon-reload")
    manager.do("enable", *UNITS)
    _report(before, carried)
    if outside is not None:
        print(f"fluxbudgetd (pid {outside}) runs outside systemd: when it has ended, 'systemctl --user start {SOCKET}'")
        return codes.OK
    if moved:
        if before.listen != view.look().listen:
            _clear_runtime(before)
        _start(SOCKET, "start", SOCKET)
        print("the socket has changed and was started anew: the first call starts the daemon")
    else:
        _go_over(before, now=options.now)
    return codes.OK


def uninstall(options: Options) -> int:
    """`service uninstall`: stop, disable and remove what `install` has made; the state stays."""
    manager.require(view.directory())
    before = view.look()
    ours = [name for name in UNITS if before.is_there(name)]
    for name in UNITS:
        if before.files[name].state is State.MASKED:
            say(f"{name} is masked ({before.files[name].path}): that is left as it is")
    not_ours = [one for one in before.files.values() if one.state in (State.EDITED, State.FOREIGN)]
    if not_ours and not options.force:
        raise Failure(f"{_not_ours(not_ours[0])}; nothing was removed", "remove it with --force", codes.REFUSED)
    if not ours:
        print("nothing is installed")
        return codes.OK
    _take_away(before, ours)
    for place in view.drop_ins():
        print(f"your own settings stay: {place}")
    print("the ledger and the configuration stay")
    return codes.OK


def _take_away(before: view.View, ours: list[str]) -> None:
    for name in ours:
        _require_no_directory(before.files[name])
    # (Of a unit that systemd cannot read it would not even say that it does not run.)
    if running := [name for name in ours if before.manager[name].active not in ("", "inactive", "failed")]:
        manager.do("stop", *running)
    manager.do("disable", *ours)
    for name in ours:
        _remove(before.files[name].path)
        print(f"removed {before.files[name].path}")
    manager.do("daemon-reload")
    for name in UNITS:
        manager.call("reset-failed", name, seconds=manager.PATIENT_SECONDS)  # which fails when there is nothing to do
    _clear_runtime(before)
    carried = units.carried_in(before.files[SERVICE])
    empty = units.made_directories(carried, os.path.expanduser("~"))
    for place in (*empty, view.directory(), os.path.dirname(view.directory())):
        with suppress(OSError):  # somebody else's files are in it
            os.rmdir(place)


def status(options: Options) -> int:
    """`service status`."""
    manager.require(view.directory())
    found, answer = view.look_and_ask()
    if options.json:
        verbs.print_json(words.as_json(found, answer.pid if isinstance(answer, messages.PingAnswer) else None))
    else:
        print("\n".join(words.lines(found, answer)))
    return codes.OK if found.is_installed and (found.socket.is_up or found.service.is_up) else codes.REFUSED


def _remark(carried: dict[str, str]) -> None:
    program = sources.program()[0]
    why = sources.passing(program, os.path.expanduser("~"), os.environ.get("XDG_CACHE_HOME"))
    if why is not None:
        say(f"warning: {one_line(program)} {why}: install fluxbudget where it stays")
    if carried:
        say(f"from your environment, for the daemon: {one_line(', '.join(f'{k}={v}' for k, v in carried.items()))}")


def _require_replaceable(before: view.View, *, force: bool) -> None:
    for name, one in before.files.items():
        if one.state is State.MASKED:
            hint = findings.unmask(name, one.path)
            raise Failure(f"{name} is masked ({one.path}); nothing was written", hint, codes.REFUSED)
        _require_no_directory(one)
        if one.state in (State.EDITED, State.FOREIGN) and not force:
            hint = f"keep your changes with 'systemctl --user edit {name}', then overwrite it with --force"
            raise Failure(f"{_not_ours(one)}; nothing was written", hint, codes.REFUSED)


def _require_no_directory(one: units.File) -> None:
    if os.path.isdir(one.path) and not os.path.islink(one.path):
        raise Failure(f"{one.path} is a directory; nothing was changed", "move it away", codes.REFUSED)


def _not_ours(one: units.File) -> str:
    return f"{one.path} was {'edited by hand' if one.state is State.EDITED else 'not written by this command'}"


def _outside(before: view.View, answer: messages.PingAnswer | Failure | None) -> int | None:
    """Return the pid of a daemon that runs, but not as the service."""
    if isinstance(answer, messages.PingAnswer) and view.is_outside(before, answer.pid):
        return answer.pid
    return None


def _write(before: view.View, texts: dict[str, str]) -> None:
    """Write both units, each whole or not at all; raises `Failure`."""
    made: list[tuple[str, str]] = []
    try:
        os.makedirs(view.directory(), exist_ok=True)
        for name in UNITS:
            made += [(_temporary(texts[name]), before.files[name].path)]  # each one at once: they are to be removed
        for temporary, path in made:
            os.replace(temporary, path)
        _sync(view.directory())
    except OSError as exc:
        for temporary, _ in made:
            with suppress(OSError):
                os.unlink(temporary)
        what = f"{exc.filename or view.directory()} cannot be written: {exc.strerror}"
        raise Failure(what, "look at the directory's permissions and room", codes.REFUSED) from None


def _temporary(text: str) -> str:
    """Write a text beside where it belongs, on disk when this returns; raises `OSError` and leaves nothing."""
    fd, path = tempfile.mkstemp(prefix=".fluxbudgetd-", dir=view.directory())
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(fd, _MODE)
            os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    return path


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _report(before: view.View, carried: dict[str, str]) -> None:
    for name in UNITS:
        print(f"wrote {before.files[name].path}")
    for name in sorted(units.carried_in(before.files[SERVICE]).keys() - carried.keys()):
        print(f"{name}, which the service had, is not set any more")
    print("enabled: it starts at your next login")


def _go_over(before: view.View, *, now: bool) -> None:
    """Let what runs run by the new units; start the socket when that is asked. Raises `Failure` when it does not."""
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


def _start(name: str, *what: str) -> None:
    """Have the manager start something; raises `Failure`, in the unit's own words, unless it is up then."""
    failure: Failure | None = None
    try:
        manager.do(*what)
    except Failure as exc:
        if exc.exit_code == codes.UNREACHABLE:
            raise
        failure = exc
    unit = manager.look()[name]
    if failure is None and unit.is_up:
        return
    why = words.failure(unit) or unit.active
    said = f" (it says: {unit.status})" if unit.status else ""
    raise Failure(f"{name} does not start: {why}{said}", f"see {words.JOURNAL}", codes.REFUSED)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failure(f"{path} cannot be removed: {exc.strerror}", "look at its permissions", codes.REFUSED) from None


def _clear_runtime(before: view.View) -> None:
    """Remove what is left in the socket's own directory, unless a daemon outside systemd serves there."""
    path = before.listen or environment.socket()
    place = os.path.dirname(path)
    if os.path.basename(place) != "fluxbudget" or _is_served(path):
        return
    for file in (path, f"{path}.lock"):
        with suppress(OSError):
            os.unlink(file)
    shutil.rmtree(os.path.join(place, "state"), ignore_errors=True)
    with suppress(OSError):
        os.rmdir(place)


def _is_served(path: str) -> bool:
    try:
        view.who_serves(path)
    except Failure as failure:
        return failure.exit_code != codes.UNREACHABLE
    return True
