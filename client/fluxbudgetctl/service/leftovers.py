"""What a daemon that was killed has left beside its socket, and what units that somebody deleted have left."""

import glob
import os
import stat
from contextlib import suppress

from fluxbudgetctl.service import holders, manager
from fluxbudgetctl.surroundings import is_dead
from fluxbudgetd.wire.state_names import ALIVE, RUNS, SCOPES, SESSIONS, state_directory


def clear(path: str) -> None:
    """Remove what is fluxbudgetd's beside a socket's path, unless somebody serves there.

    By name, and through no link: a person who has chosen a directory may keep own files there, under `state`, too. The
    directory itself goes only when it is the one in the runtime directory, and empty.
    """
    lock = holders.socket_lock(path)
    if holders.holder(lock) is not None or (os.path.lexists(path) and not is_dead(path)):
        return
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    with suppress(OSError):
        if _is_file(lock):
            os.unlink(lock)
    _clear_state(state_directory(path))
    place = os.path.dirname(path)
    if place == os.path.join(manager.runtime_directory() or "", "fluxbudget"):
        with suppress(OSError):
            os.rmdir(place)


def has_links(directory: str, name: str) -> bool:
    """Tell whether a unit that is not there any more is still enabled in this directory."""
    wanted = os.path.join(directory, name)
    links = glob.glob(os.path.join(glob.escape(directory), "*.wants", name))
    return any(os.path.islink(link) and os.path.realpath(link) == os.path.realpath(wanted) for link in links)


def _clear_state(state: str) -> None:
    """Remove the files of runs that a daemon has left; `alive` is the sign that it was one."""
    if not _is_directory(state):
        return
    alive = os.path.join(state, ALIVE)
    was_ours = _is_file(alive)
    for name in (SESSIONS, SCOPES, RUNS):
        place = os.path.join(state, name)
        if not _is_directory(place):
            continue
        with suppress(OSError):
            for entry in list(os.scandir(place)) if was_ours else []:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
        with suppress(OSError):
            os.rmdir(place)
    with suppress(OSError):
        if was_ours:
            os.unlink(alive)
        os.rmdir(state)


def _is_file(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _is_directory(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False
