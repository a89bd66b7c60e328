"""`service uninstall`: stop, disable and remove the units."""

import os
from contextlib import suppress

from fluxbudgetctl.calls import call
from fluxbudgetctl.failure import Failure, print_stderr
from fluxbudgetctl.service import leftovers, manager, unit_files
from fluxbudgetctl.service.status import ServiceStatus, read_status
from fluxbudgetctl.service.unit_files import not_ours, require_no_directory
from fluxbudgetctl.service.units import UNITS, File, State
from fluxbudgetd.wire import codes, messages

#: The daemon may have to start first.
_ASK_SECONDS = 5.0


def uninstall(*, force: bool) -> None:
    """Stop, disable and remove the units; the ledger and the configuration stay.

    With `force` it also removes units that were edited, or not written by this command. Raises `Failure`.
    """
    before = read_status()
    present = [name for name in UNITS if before.has_file(name)]
    deleted = [name for name in UNITS if _was_deleted(before, name)]
    for name, file in before.files.items():
        if file.state is State.MASKED:
            print_stderr(f"{name} is masked ({file.path}); it stays as it is")
        elif file.state is State.MISSING and before.is_known(name) and name not in deleted:
            print_stderr(f"{name} comes from {before.manager[name].fragment}; it stays as it is")
    foreign = [file for file in before.files.values() if file.state in (State.EDITED, State.FOREIGN)]
    if foreign and not force:
        raise Failure(f"{not_ours(foreign[0])}; nothing was removed", "remove it with --force", codes.REFUSED)
    if not present and not deleted:
        print("nothing is installed")
        return
    for name in present:
        require_no_directory(before.files[name])
    _require_permission()
    _remove_sprints(before.sprints, force=force)
    _remove(before, present, deleted)
    for place in filter(os.path.isdir, before.drop_ins):
        print(f"your own settings stay: {place}")
    print("the ledger and the configuration stay")


def _require_permission() -> None:
    """Raise `Failure` if a daemon answers that a hard limit forbids this. Without an answer, nothing forbids it."""
    try:
        call(messages.Loosen(action="uninstall"), messages.LoosenAnswer, _ASK_SECONDS)
    except Failure as exc:
        if exc.exit_code == codes.REFUSED:
            raise


def _was_deleted(before: ServiceStatus, name: str) -> bool:
    """Return True if the unit's file is gone, but the manager still has the unit loaded or enabled."""
    unit = before.manager[name]
    if before.files[name].state is not State.MISSING or os.path.exists(unit.fragment):
        return False
    return bool(unit.fragment) or unit.active not in ("", "inactive") or leftovers.has_links(before.directory, name)


def _remove_sprints(file: File, *, force: bool) -> None:
    """Remove the drop-in for sprints; with `force`, even if it was edited."""
    if file.state is State.OURS or (force and file.state is State.EDITED):
        unit_files.remove(file.path)
        print(f"removed {file.path}")
        with suppress(OSError):  # the directory may have other drop-ins
            os.rmdir(os.path.dirname(file.path))


def _remove(before: ServiceStatus, present: list[str], deleted: list[str]) -> None:
    # Only units that run: stopping one that systemd cannot read is an error even if it does not run.
    names = present + deleted
    if running := [name for name in names if before.manager[name].active not in ("", "inactive", "failed")]:
        manager.run("stop", *running)
    if present:
        manager.run("disable", *present)
    if deleted:  # removes the links, but may exit with an error because their target is missing
        manager.systemctl("disable", *deleted, seconds=manager.LONG_SECONDS)
    for name in present:
        unit_files.remove(before.files[name].path)
        print(f"removed {before.files[name].path}")
    for name in deleted:
        print(f"removed what was left of {name}")
    manager.run("daemon-reload")
    for name in UNITS:
        manager.systemctl("reset-failed", name, seconds=manager.LONG_SECONDS)  # an error if the unit is not loaded
    if before.listen is not None:
        leftovers.remove_leftovers(before.listen)
