"""Noticing that files may have changed without being asked. Answers never depend on it: they look for themselves."""

import os
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError  # their documented home

from fluxbudgetd.wire.text import shown_path

log = structlog.get_logger()

# watchfiles wakes up once per step even when nothing happens: 50 ms costs 0.2 % of a core.
_STEP_MS = 50
_DEBOUNCE_MS = 100
# However quiet it is, look this often: inotify says nothing of a network file system, nor of a renamed parent.
_PATIENCE_MS = 5_000
_POLL_SECONDS = 2.0
# How often to poll, if polling were asked for.
_UNUSED = 300


async def changes(path: str, directories: Iterable[str], stop: anyio.Event) -> AsyncGenerator[None, None]:
    """Yield whenever the database at `path`, or anything in the directories, may have changed, until `stop` is set.

    The database's directory is watched, or the nearest one that exists; other directories as far as they exist. Where
    the system has no watches left, it polls. The first time is as soon as the watch is armed: what has changed until
    then is to be looked for then. (So watchfiles' lower half is used: `awatch` does not say when it is armed.)
    """
    others = tuple(directories)
    while not stop.is_set():
        try:
            place = await anyio.to_thread.run_sync(_place, path)
            there = await anyio.to_thread.run_sync(_there, others)
            with RustNotify([place.directory, *there], False, False, _UNUSED, False, True) as watcher:
                yield
                while not stop.is_set():
                    seen = await anyio.to_thread.run_sync(watcher.watch, _DEBOUNCE_MS, _STEP_MS, _PATIENCE_MS, stop)
                    if isinstance(seen, str) or any(place.concerns(changed) for _, changed in seen):
                        yield
                    # The directory may have come to be, or another may have taken its name.
                    if isinstance(seen, str) or not place.is_parent:
                        if await anyio.to_thread.run_sync(_place, path) != place:
                            break
                        if await anyio.to_thread.run_sync(_there, others) != there:
                            break
        except (OSError, ValueError, WatchfilesRustInternalError) as exc:  # ValueError: the path is no UTF-8
            log.warning("not watching, polling instead", path=shown_path(path), error=str(exc))
            yield
            with anyio.move_on_after(_POLL_SECONDS):
                await stop.wait()


def _there(directories: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(directory for directory in directories if os.path.isdir(directory))


class _Place(NamedTuple):
    directory: str
    is_parent: bool
    identity: tuple[int, int]
    names: frozenset[str]

    def concerns(self, changed: str) -> bool:
        """Tell whether a changed path is the database's, or lies in another directory than the database's."""
        return not self.is_parent or changed in self.names or os.path.dirname(changed) != self.directory


def _place(path: str) -> _Place:
    target = os.path.realpath(path)  # a WAL lies beside the file that a symlink leads to
    names = frozenset((target, f"{target}-wal", f"{target}-journal"))
    parent = directory = os.path.dirname(target)
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    found = os.stat(directory)
    return _Place(directory, directory == parent, (found.st_dev, found.st_ino), names)
