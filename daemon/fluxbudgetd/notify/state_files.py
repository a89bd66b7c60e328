"""Runs as files of `key=value` lines, for shells and sandboxes that cannot open a Unix socket.

`runs/<run>` has the lines; `sessions/<session>` and `scopes/<scope>` are links to it. The files of a killed daemon must
be ignored: a reader first tries to get a shared lock on `alive`, and succeeds only if no daemon is running.
"""

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.atomic import TEMPORARY, Failures, link, private_directories, remove, write
from fluxbudgetd.notify.worker import Worker
from fluxbudgetd.wire.state_names import ALIVE, RUNS, SCOPES, SESSIONS, file_name

_SECONDS = 5.0
# Readers hold the lock for microseconds.
_LOCK_SECONDS = 2.0
_LOCK_STEP = 0.005
# A shell takes these characters literally, quoted or not.
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9._:+-]*")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's file says. Tokens are of the run's cost basis, `pct` has one decimal, `as_of` is ISO-8601 UTC.

    `line` is the text of the status line, without colours.
    """

    run: str
    phase: str
    state: str
    budget: int | None
    remaining: int | None
    spent: int
    reserved: int
    pct: float | None
    stale: bool
    cost_basis: str
    enforcement: str
    line: str
    as_of: str


class StateFiles:
    """The state files in a directory, which is created if missing. A call takes at most `seconds`.

    Calls raise `ChannelError` for the first file that failed, after all others have been handled; call again to retry.
    """

    def __init__(self, directory: str, *, seconds: float = _SECONDS) -> None:
        self._directory = directory
        self._seconds = seconds
        self._alive = os.path.join(directory, ALIVE)
        self._lock: int | None = None
        # What was written: path → a file's content, path → a link's target.
        self._contents: dict[str, bytes] = {}
        self._targets: dict[str, str] = {}
        self._worker = Worker("writing state files", f"check the file system of {shown_file(directory)}")

    async def open(self) -> None:
        """Remove what a killed daemon has left, and lock `alive`; `ChannelError` if another daemon holds the lock."""
        await self._worker.run(self._open, self._seconds)

    async def put(
        self, states: Sequence[State], links: Mapping[str, str | None], scopes: Mapping[str, str | None]
    ) -> None:
        """Write the runs' files, then the links: session or scope → run, None to remove it.

        Unchanged files are not rewritten. If the directory was deleted, everything is written again.
        """
        await self._worker.run(partial(self._put, tuple(states), dict(links), dict(scopes)), self._seconds)

    async def remove(self, runs: Sequence[str]) -> None:
        """Remove the links to runs, then their files; missing ones are ignored."""
        await self._worker.run(partial(self._remove, tuple(runs)), self._seconds)

    async def close(self) -> None:
        """Remove all files and links, then the lock; does nothing before `open`."""
        await self._worker.run(self._close, self._seconds)

    def _path(self, directory: str, name: str) -> str | None:
        encoded = file_name(name)
        return None if encoded is None else os.path.join(self._directory, directory, encoded)

    def _open(self) -> None:
        failures = Failures()
        for directory in (RUNS, SESSIONS, SCOPES):
            path = os.path.join(self._directory, directory)
            with failures.at(path, "created"):
                private_directories(path)
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
        return self._is_held() and all(map(os.path.isdir, directories))

    def _clear(self) -> None:
        """Remove every file and link; raises `ChannelError`."""
        failures = Failures()
        for path in self._existing(failures):
            with failures.at(path, "removed"):
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

    def _put(self, states: tuple[State, ...], links: dict[str, str | None], scopes: dict[str, str | None]) -> None:
        contents = {path: _content(state) for state in states if (path := self._path(RUNS, state.run))}
        targets: dict[str, str | None] = {}
        for directory, runs in ((SESSIONS, links), (SCOPES, scopes)):
            for name, run in runs.items():
                if path := self._path(directory, name):
                    encoded = None if run is None else file_name(run)
                    targets[path] = None if encoded is None else f"../{RUNS}/{encoded}"
        if not self._is_intact():
            self._open()
            contents = {**self._contents, **contents}
            targets = {**self._targets, **targets}
        failures = Failures()
        for path, content in contents.items():
            with failures.at(path, "written"):
                self._write(path, content)
        for path, target in targets.items():
            with failures.at(path, "removed" if target is None else "created"):
                self._link(path, target)
        failures.raise_first()

    def _write(self, path: str, content: bytes) -> None:
        if self._contents.get(path) == content and _is_file(path):
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
        link_targets = {f"../{RUNS}/{name}" for name in names}
        failures = Failures()
        for path in [path for path, target in self._targets.items() if target in link_targets]:
            with failures.at(path, "removed"):
                self._link(path, None)
        for path in (os.path.join(self._directory, RUNS, name) for name in names):
            self._contents.pop(path, None)
            with failures.at(path, "removed"):
                remove(path)
        failures.raise_first()

    def _close(self) -> None:
        if self._lock is None:
            return
        failures = Failures()
        try:
            self._contents.clear()
            self._targets.clear()
            self._clear()
            with failures.at(self._alive, "removed"):
                if self._is_held():
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


def _content(state: State) -> bytes:
    lines = {
        "run": _plain(state.run),
        "phase": _plain(state.phase),
        "state": _plain(state.state),
        "budget": _number(state.budget),
        "spent": _number(state.spent),
        "remaining": _number(state.remaining),
        "pct": "" if state.pct is None else f"{state.pct:.1f}",
        "reserved": _number(state.reserved),
        "stale": str(int(state.stale)),
        "cost_basis": _plain(state.cost_basis),
        "enforcement": _plain(state.enforcement),
        "line": _quoted(state.line),
        "as_of": _plain(state.as_of),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items()).encode()


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _plain(text: str) -> str:
    return text if _PLAIN_VALUE.fullmatch(text) else ""


def _quoted(text: str) -> str:
    """Return a text in single quotes for a shell; a quote or an unprintable character in it becomes `?`."""
    return "'" + "".join("?" if c == "'" or not c.isprintable() else c for c in text) + "'"
