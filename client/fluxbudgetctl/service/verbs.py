"""`service install`, `service uninstall`, `service status`."""

import argparse
import os
from contextlib import suppress

from fluxbudgetctl import verbs
from fluxbudgetctl.failure import Failure, one_line, say
from fluxbudgetctl.service import findings, leftovers, manager, sources, trial, units, view, words, writing
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from fluxbudgetd.wire import codes

Options = argparse.Namespace


def install(options: Options) -> int:
    """`service install`: write the units, enable them, and let a running service go over to them."""
    here = units.carried_over(os.environ, os.geteuid())
    if options.print:
        return _print(here)
    before, answer = view.look_and_ask()
    _require_replaceable(before, force=options.force)
    outside = before.outside(answer)
    if outside is not None and options.now:
        raise Failure(
            f"fluxbudgetd (pid {outside}) runs outside systemd: stop it first (kill {outside})",
            "then run this again; nothing was written",
            codes.REFUSED,
        )
    texts = view.wanted({**units.kept(before.files[SERVICE], os.environ), **here})
    trial.require_start(sources.program(), manager.environment())
    _remark(before.files[SERVICE], here)
    writing.write(before.directory, texts)
    for name in UNITS:
        print(f"wrote {os.path.join(before.directory, name)}")
    _take_effect(before, texts, now=options.now, outside=outside)
    return codes.OK


def uninstall(options: Options) -> int:
    """`service uninstall`: stop, disable and remove what `install` has made; the state stays."""
    before = view.look()
    ours = [name for name in UNITS if before.is_there(name)]
    gone = [name for name in UNITS if _is_gone(before, name)]
    for name, one in before.files.items():
        if one.state is State.MASKED:
            say(f"{name} is masked ({one.path}): that is left as it is")
        elif one.state is State.MISSING and before.is_known(name) and name not in gone:
            say(f"{name} comes from {before.manager[name].fragment}: that is left as it is")
    not_ours = [one for one in before.files.values() if one.state in (State.EDITED, State.FOREIGN)]
    if not_ours and not options.force:
        raise Failure(f"{_not_ours(not_ours[0])}; nothing was removed", "remove it with --force", codes.REFUSED)
    if not ours and not gone:
        print("nothing is installed")
        return codes.OK
    for name in ours:
        _require_no_directory(before.files[name])
    _take_away(before, ours, gone)
    for place in before.drop_ins:
        print(f"your own settings stay: {place}")
    print("the ledger and the configuration stay")
    return codes.OK


def status(options: Options) -> int:
    """`service status`."""
    found, answer = view.look_and_ask()
    if options.json:
        verbs.print_json(words.as_json(found, found.outside(answer)))
    else:
        print("\n".join(words.lines(found, answer)))
    return codes.OK if found.is_installed and (found.socket.is_up or found.service.is_up) else codes.REFUSED


def _print(here: dict[str, str]) -> int:
    directory = view.directory()
    installed = view.files(directory)[SERVICE]
    _remark(installed, here)
    texts = view.wanted({**units.kept(installed, os.environ), **here})
    print("\n".join(f"# {os.path.join(directory, name)}\n{texts[name]}" for name in UNITS), end="")
    return codes.OK


def _remark(installed: units.File, here: dict[str, str]) -> None:
    """Say what somebody should know before it is so. `here`: what the environment has for the daemon."""
    program = sources.program()[0]
    home = os.path.expanduser("~")
    why = sources.passing(program, home, os.environ.get("XDG_CACHE_HOME"))
    if why is not None:
        say(f"warning: {one_line(program)} {why}: install fluxbudget where it stays")
    kept = units.kept(installed, os.environ)
    if here:
        say(f"from your environment, for the daemon: {_pairs(here)}")
    if kept:
        say(f"kept from the installed unit: {_pairs(kept)}")
    was, will_be = (units.state_directory(of, home) for of in (units.carried_in(installed), {**kept, **here}))
    if installed.version and was != will_be:
        say(f"the ledger is in {one_line(will_be)} from now on; that in {one_line(was)} stays there, unread")


def _pairs(carried: dict[str, str]) -> str:
    return one_line(", ".join(f"{name}={value}" for name, value in carried.items()))


def _require_replaceable(before: view.View, *, force: bool) -> None:
    for name, one in before.files.items():
        if one.state is State.MASKED:
            hint = findings.unmask(name, one.path, before.directory)
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


def _take_effect(before: view.View, texts: dict[str, str], *, now: bool, outside: int | None) -> None:
    """Have the manager go over to what was written; raises `Failure`, once what was up has been started again."""
    anew = _is_to_be_started_anew(before, texts)
    try:
        if anew:
            manager.do("stop", *UNITS)  # before the manager forgets which file the socket has
        manager.do("daemon-reload")
        manager.do("enable", *UNITS)
        print("enabled: it starts at your next login")
        if outside is not None:
            print(f"fluxbudgetd (pid {outside}) runs outside systemd: kill {outside}, then {findings.INSTALL_NOW}")
        elif anew:
            if before.listen is not None and before.listen != view.look().listen:
                leftovers.clear(before.listen)
            _start(SOCKET, "start", SOCKET)
            print("the socket has changed and was started anew: the first call starts the daemon")
        else:
            _go_over(before, now=now)
    except Failure as failure:
        if anew and outside is None:
            with suppress(Failure):  # the first one is told
                manager.do("start", SOCKET)
        again = findings.INSTALL_NOW if anew or now else findings.INSTALL
        raise Failure(f"written, but {failure.message}", f"{failure.hint}; then {again}", failure.exit_code) from None


def _is_to_be_started_anew(before: view.View, texts: dict[str, str]) -> bool:
    """Tell whether the socket is up (or should be) with another unit than the one that was written now.

    What the manager has read decides, not only the file: an earlier install may have come no further than that.
    """
    file, unit = before.files[SOCKET], before.socket
    if not unit.is_up:
        return unit.has_failed
    is_other = unit.fragment != file.path or file.body != texts[SOCKET].partition("\n")[2]
    return is_other or unit.needs_reload == "yes" or not before.is_heard


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
    raise Failure(f"{name} does not start: {why}", f"see {words.JOURNAL}", codes.REFUSED)


def _is_gone(before: view.View, name: str) -> bool:
    """Tell whether somebody has deleted a unit's file that the manager still has, or has enabled."""
    unit = before.manager[name]
    if before.files[name].state is not State.MISSING or os.path.exists(unit.fragment):
        return False
    return bool(unit.fragment) or unit.active not in ("", "inactive") or leftovers.has_links(before.directory, name)


def _take_away(before: view.View, ours: list[str], gone: list[str]) -> None:
    # (Of a unit that systemd cannot read it would not even say that it does not run.)
    if running := [name for name in ours + gone if before.manager[name].active not in ("", "inactive", "failed")]:
        manager.do("stop", *running)
    if ours:
        manager.do("disable", *ours)
    if gone:  # it removes the links, whether or not it complains of what they led to
        manager.call("disable", *gone, seconds=manager.PATIENT_SECONDS)
    for name in ours:
        writing.remove(before.files[name].path)
        print(f"removed {before.files[name].path}")
    for name in gone:
        print(f"removed what was left of {name}")
    manager.do("daemon-reload")
    for name in UNITS:
        manager.call("reset-failed", name, seconds=manager.PATIENT_SECONDS)  # which fails when there is nothing to do
    if before.listen is not None:
        leftovers.clear(before.listen)
