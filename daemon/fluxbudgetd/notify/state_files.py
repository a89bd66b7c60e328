"""Runs as files of `key=value` lines, for shells and sandboxes that cannot open a Unix socket.

`runs/<run>` has the lines; `sessions/<session>` and `scopes/<scope>` are links to it. The files of a killed daemon must
be ignored: a reader first tries to get a shared lock on `alive`, and succeeds only if no daemon is running. But a hook
that gets no answer reads the files of a run with a marker, whether or not a daemon is running. So these files stay when
the daemon stops.
"""

import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.atomic import TEMPORARY, Failures, is_directory, link, private_directories, remove, write
from fluxbudgetd.notify.markers import Markers
from fluxbudgetd.notify.state_text import State, lines_of, without_time
from fluxbudgetd.notify.worker import Worker
from fluxbudgetd.wire.state_names import ALIVE, RUNS, SCOPES, SESSIONS, file_name

_SECONDS = 5.0
# Readers hold the lock for microseconds.
_LOCK_SECONDS = 2.0
_LOCK_STEP = 0.005


class StateFiles:
    """The state files in a directory, and the markers in another; both are created if missing, and so is their parent.

    What is above that parent is not created: logind makes the runtime directory, and may just have removed it.

    A call takes at most `seconds`. It raises `ChannelError` for the first file that failed, after all others have been
    handled; call again to retry.
    """

    def __init__(self, directory: str, markers: str, *, seconds: float = _SECONDS) -> None:
        self._directory = directory
        self._base = os.path.dirname(os.path.dirname(directory))
        self._markers = Markers(markers, self._base)
        # The runs whose marker and files may be left from an earlier daemon, and the links among these files.
        self._adoptable: frozenset[str] = frozenset()
        self._adopted: set[str] = set()
        self._seconds = seconds
        self._alive = os.path.join(directory, ALIVE)
        self._lock: int | None = None
        # What was written: path → a file's content, path → a link's target.
        self._contents: dict[str, bytes] = {}
        self._targets: dict[str, str] = {}
        self._worker = Worker("writing state files", f"check the file system of {shown_file(directory)}")

    async def open(self, adoptable: Iterable[str] = ()) -> None:
        """Remove what a killed daemon has left, and lock `alive`; `ChannelError` if another daemon holds the lock.

        The files of `adoptable` runs that have a marker stay until they are put or removed.
        """
        self._adoptable = frozenset(adoptable)
        await self._worker.run(self._open, self._seconds)

    async def put(
        self,
        states: Sequence[State],
        links: Mapping[str, str | None],
        scopes: Mapping[str, str | None],
        stopped: Collection[str] = (),
    ) -> None:
        """Write the runs' files, then the links: session or scope → run, None to remove it. Last, write the markers.

        `stopped` are those of the runs that have a marker from now on. Files in which only `as_of` would change are not
        rewritten. If a directory was deleted, everything is written again.
        """
        stops = {state.run: state.run in stopped for state in states}
        await self._worker.run(partial(self._put, tuple(states), dict(links), dict(scopes), stops), self._seconds)

    async def remove(self, runs: Sequence[str]) -> None:
        """Remove the links to runs, then their files and markers; missing ones are ignored."""
        await self._worker.run(partial(self._remove, tuple(runs)), self._seconds)

    async def close(self) -> None:
        """Remove the files and links of the runs without a marker, then the lock; does nothing before `open`.

        If there is a marker, all sessions' links stay. One without a target says that its session's run is not stopped.
        """
        await self._worker.run(self._close, self._seconds)

    def _path(self, directory: str, name: str) -> str | None:
        encoded = file_name(name)
        return None if encoded is None else os.path.join(self._directory, directory, encoded)

    def _open(self) -> None:
        failures = Failures()
        if os.path.lexists(self._directory):
            # Nothing may be created behind a symbolic link.
            with failures.at(self._directory, "created"):
                private_directories(self._directory, self._base)
            failures.raise_first()
        for directory in (RUNS, SESSIONS, SCOPES):
            path = os.path.join(self._directory, directory)
            with failures.at(path, "created"):
                private_directories(path, self._base)
        self._markers.create_directory(failures)
        failures.raise_first()
        self._unlock()
        with failures.at(self._alive, "locked"):
            deadline = time.monotonic() + _LOCK_SECONDS
            # If the file was removed before it was locked, readers would open another one.
            while not self._is_held():
                self._unlock()
                self._acquire(deadline)
        failures.raise_first()

    def _acquire(self, deadline: float) -> None:
        """Remove the old files and lock `alive`; raises `OSError` or `ChannelError`."""
        self._lock = os.open(self._alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Until the old files are gone, readers can still get a shared lock, and so ignore the files.
            self._flock(self._lock, fcntl.LOCK_SH, deadline)
            failures = Failures()
            self._markers.adopt(self._adoptable, failures)
            failures.raise_first()
            self._adopt_links()
            self._clear()
            self._flock(self._lock, fcntl.LOCK_EX, deadline)
        except (OSError, ChannelError):
            self._unlock()
            raise

    def _flock(self, fd: int, kind: int, deadline: float) -> None:
        while not _try_lock(fd, kind):
            if time.monotonic() > deadline:
                raise ChannelError(
                    f"{shown_file(self._alive)} is locked by another process",
                    "another fluxbudgetd may be using this directory; stop it, or give another --socket",
                )
            time.sleep(_LOCK_STEP)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_held(self) -> bool:
        """Return True if the locked file is still the one called `alive`."""
        if self._lock is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._lock), os.lstat(self._alive))
        except FileNotFoundError:
            return False

    def _is_intact(self) -> bool:
        directories = (os.path.join(self._directory, directory) for directory in (RUNS, SESSIONS, SCOPES))
        return self._is_held() and self._markers.is_intact() and all(map(is_directory, (self._directory, *directories)))

    def _adopt_links(self) -> None:
        """Remember the links to runs with a marker, because they may be out of date."""
        for path in self._existing(Failures()):
            target = _target(path)
            if path not in self._targets and target is not None and self._is_marked(path):
                self._targets[path] = target
                self._adopted.add(path)

    def _is_marked(self, path: str) -> bool:
        """Return True for the file of a run with a marker, and for a link to it."""
        target = _target(path)
        if target is not None:
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))
        directory, name = os.path.split(path)
        return directory == os.path.join(self._directory, RUNS) and name in self._markers.names

    def _clear(self, *, but: str | None = None) -> None:
        """Remove every file and link, except those of runs with a marker, and those in the directory `but`.

        Raises `ChannelError`.
        """
        failures = Failures()
        for path in self._existing(failures):
            with failures.at(path, "removed"):
                if not self._is_marked(path) and os.path.dirname(path) != but:
                    remove(path)
        failures.raise_first()

    def _existing(self, failures: Failures) -> Iterator[str]:
        """Yield the files and links that exist, links before their targets."""
        for directory, prefix in ((SESSIONS, ""), (SCOPES, ""), (RUNS, ""), ("", TEMPORARY)):
            place = os.path.join(self._directory, directory)
            with failures.at(place, "scanned"), suppress(FileNotFoundError), os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(prefix) and not entry.is_dir(follow_symlinks=False):
                        yield entry.path

    def _put(
        self,
        states: tuple[State, ...],
        links: dict[str, str | None],
        scopes: dict[str, str | None],
        stops: dict[str, bool],
    ) -> None:
        contents = {path: lines_of(state) for state in states if (path := self._path(RUNS, state.run))}
        targets: dict[str, str | None] = {}
        for directory, runs in ((SESSIONS, links), (SCOPES, scopes)):
            for name, run in runs.items():
                if path := self._path(directory, name):
                    encoded = None if run is None else file_name(run)
                    targets[path] = None if encoded is None else _link_target(encoded)
        if not self._is_intact():
            self._open()
            contents = {**self._contents, **contents}
            targets = {**self._targets, **targets}
        for path in self._outdated(contents):
            targets.setdefault(path, None)
        failures = Failures()
        for path, content in contents.items():
            with failures.at(path, "written"):
                self._write(path, content)
        for path, target in targets.items():
            with failures.at(path, "removed" if target is None else "created"):
                self._link(path, target)
        self._markers.write(stops, failures)
        failures.raise_first()

    def _outdated(self, paths: Iterable[str]) -> list[str]:
        """Return the links of an earlier daemon to these runs' files. Those that are still right are put again."""
        targets = {_link_target(os.path.basename(path)) for path in paths}
        outdated = [path for path in self._adopted if self._targets.get(path) in targets]
        self._adopted.difference_update(outdated)
        return outdated

    def _write(self, path: str, content: bytes) -> None:
        if without_time(self._contents.get(path, b"")) == without_time(content) and _is_file(path):
            return
        # If this fails, the file's content is unknown, so the next call writes it again.
        self._contents.pop(path, None)
        write(path, content, self._directory)
        self._contents[path] = content

    def _link(self, path: str, target: str | None) -> None:
        self._targets.pop(path, None)
        if target is None:
            remove(path)
            return
        if _target(path) != target:
            link(path, target, self._directory)
        self._targets[path] = target

    def _remove(self, runs: tuple[str, ...]) -> None:
        names = {name for run in runs if (name := file_name(run))}
        link_targets = set(map(_link_target, names))
        failures = Failures()
        for path in [path for path, target in self._targets.items() if target in link_targets]:
            with failures.at(path, "removed"):
                self._link(path, None)
        for path in (os.path.join(self._directory, RUNS, name) for name in names):
            self._contents.pop(path, None)
            with failures.at(path, "removed"):
                remove(path)
        self._markers.write(dict.fromkeys(runs, False), failures)
        failures.raise_first()

    def _close(self) -> None:
        if self._lock is None:
            return
        failures = Failures()
        try:
            self._contents.clear()
            self._targets.clear()
            self._clear(but=os.path.join(self._directory, SESSIONS) if self._markers.names else None)
            with failures.at(self._alive, "removed"):
                # `alive` says that the files are a daemon's, so it stays with them.
                if self._is_held() and not self._markers.names:
                    remove(self._alive)
        finally:
            self._unlock()
        failures.raise_first()


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _link_target(name: str) -> str:
    """Return what links to the run's file of this name contain."""
    return f"../{RUNS}/{name}"
