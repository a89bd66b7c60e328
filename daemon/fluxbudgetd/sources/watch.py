"""Watching files for changes. Answers never depend on it: each request checks the files itself."""

import os
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError  # documented there

from fluxbudgetd.wire.text import shown_path

log = structlog.get_logger()

# watchfiles wakes up once per step even when nothing happens: 50 ms costs 0.2 % of a core.
_STEP_MS = 50
_DEBOUNCE_MS = 100
# Yield at least this often: inotify reports neither changes on a network file system nor a renamed parent.
_LONGEST_WAIT_MS = 5_000
_POLL_SECONDS = 2.0
# watchfiles' own poll interval; watchfiles is not asked to poll.
_UNUSED = 300


async def changes(path: str, directories: Iterable[str], stop: anyio.Event) -> AsyncGenerator[None, None]:
    """Yield whenever the database at `path`, or anything in the directories, may have changed, until `stop` is set.

    The database's directory is watched, or the nearest parent that exists, and those other directories that exist. If
    the system has no watches left, this polls. It first yields as soon as the watch is armed, so that the caller can
    scan for earlier changes. (`awatch` does not report when it is armed, so watchfiles' lower layer is used.)
    """
    others = tuple(directories)
    while not stop.is_set():
        try:
            place = await anyio.to_thread.run_sync(_place, path)
            existing = await anyio.to_thread.run_sync(_existing, others)
            with RustNotify([place.directory, *existing], False, False, _UNUSED, False, True) as watcher:
                yield
                while not stop.is_set():
                    seen = await anyio.to_thread.run_sync(watcher.watch, _DEBOUNCE_MS, _STEP_MS, _LONGEST_WAIT_MS, stop)
                    if isinstance(seen, str) or any(place.concerns(changed) for _, changed in seen):
                        yield
                    # The directory may have been created or replaced.
                    if isinstance(seen, str) or not place.is_parent:
                        if await anyio.to_thread.run_sync(_place, path) != place:
                            break
                        if await anyio.to_thread.run_sync(_existing, others) != existing:
                            break
        except (OSError, ValueError, WatchfilesRustInternalError) as exc:  # ValueError: the path is not UTF-8
            log.warning("cannot watch, polling instead", path=shown_path(path), error=str(exc))
            yield
            with anyio.move_on_after(_POLL_SECONDS):
                await stop.wait()


async def set_when_cancelled(stop: anyio.Event) -> None:
    """End watchfiles' thread, which does not end when the task that waits for it is cancelled."""
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()


def _existing(directories: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(directory for directory in directories if os.path.isdir(directory))


class _Place(NamedTuple):
    directory: str
    is_parent: bool
    identity: tuple[int, int]
    names: frozenset[str]

    def concerns(self, changed: str) -> bool:
        """Return True if a changed path is one of the database's files, or not in the database's directory."""
        return not self.is_parent or changed in self.names or os.path.dirname(changed) != self.directory


def _place(path: str) -> _Place:
    target = os.path.realpath(path)  # the WAL is beside the file that a symlink leads to
    names = frozenset((target, f"{target}-wal", f"{target}-journal"))
    parent = directory = os.path.dirname(target)
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    info = os.stat(directory)
    return _Place(directory, directory == parent, (info.st_dev, info.st_ino), names)
