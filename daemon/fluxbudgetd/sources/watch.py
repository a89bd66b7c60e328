"""Noticing without a request that files may have changed. Answers never depend on it: each checks the files itself."""

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
# Yield at least this often: inotify reports neither changes on a network file system nor a renamed parent.
_PATIENCE_MS = 5_000
_POLL_SECONDS = 2.0
# How often to poll, if polling were asked for.
_UNUSED = 300


async def changes(path: str, directories: Iterable[str], stop: anyio.Event) -> AsyncGenerator[None, None]:
    """Yield whenever the database at `path`, or anything in the directories, may have changed, until `stop` is set.

    The database's directory is watched, or the nearest one that exists; other directories as far as they exist. Where
    the system has no watches left, it polls. It first yields as soon as the watch is armed, so that the caller can look
    for changes made before. (`awatch` does not say when it is armed, so watchfiles' lower half is used.)
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
                    # The directory may have been created or replaced.
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
        """Return True if a changed path is the database's, or is in another directory than the database's."""
        return not self.is_parent or changed in self.names or os.path.dirname(changed) != self.directory


def _place(path: str) -> _Place:
    target = os.path.realpath(path)  # the WAL is beside the file that a symlink leads to
    names = frozenset((target, f"{target}-wal", f"{target}-journal"))
    parent = directory = os.path.dirname(target)
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    found = os.stat(directory)
    return _Place(directory, directory == parent, (found.st_dev, found.st_ino), names)
