"""Removes what a killed daemon leaves beside its socket, and finds what units with deleted files leave."""

import glob
import os
import stat
from contextlib import suppress

from fluxbudgetctl.service import locks, manager
from fluxbudgetctl.socket_check import is_dead
from fluxbudgetd.wire.state_names import ALIVE, RUNS, SCOPES, SESSIONS, hard_directory, state_directory


def remove_leftovers(path: str) -> None:
    """Remove fluxbudgetd's files beside the socket at this path, unless a daemon serves it.

    Files are removed by name and links are not followed, because the directory, and `state` in it, may also contain the
    user's own files. The directory itself is removed only if it is the one in the runtime directory, and empty.
    """
    lock = locks.socket_lock(path)
    if locks.holder(lock) is not None or (os.path.lexists(path) and not is_dead(path)):
        return
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    with suppress(OSError):
        if _is_file(lock):
            os.unlink(lock)
    _clear_markers(hard_directory(path))
    _clear_state(state_directory(path))
    place = os.path.dirname(path)
    if place == os.path.join(manager.runtime_directory() or "", "fluxbudget"):
        with suppress(OSError):
            os.rmdir(place)


def has_links(directory: str, name: str) -> bool:
    """Return True if a unit is still enabled in this directory (its file may be gone)."""
    wanted = os.path.join(directory, name)
    links = glob.glob(os.path.join(glob.escape(directory), "*.wants", name))
    return any(os.path.islink(link) and os.path.realpath(link) == os.path.realpath(wanted) for link in links)


def _clear_markers(hard: str) -> None:
    """Remove a daemon's markers, which are empty files."""
    if not _is_directory(hard):
        return
    with suppress(OSError):
        for entry in list(os.scandir(hard)):
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size == 0:
                os.unlink(entry.path)
        os.rmdir(hard)


def _clear_state(state: str) -> None:
    """Remove a daemon's state files; the file `alive` shows that they are a daemon's."""
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
