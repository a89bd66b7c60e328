"""intercore's databases: where they are, and when each must be read."""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple, Self

import anyio
import anyio.to_thread

from fluxbudgetd.model import IntercoreReading, SourceStatus
from fluxbudgetd.sources import file_systems, intercore
from fluxbudgetd.sources.intercore import Found, IntercoreDatabase, Stamp
from fluxbudgetd.totals.places import Places

#: How long a request waits at most: for databases to be read; for a first reading, or for a reading to be applied.
_WAIT_SECONDS, _FIRST_WAIT_SECONDS = 0.06, 0.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_FIND_SECONDS = 2.0
_SLOW_SECONDS = 1.0
_MOST_DIRECTORIES = 1000
_MOST_THREADS = 8


class Limits(NamedTuple):
    """Until when a request waits: for a database to be read; for its first reading, or for one to be applied."""

    usual: float
    first: float

    @classmethod
    def until(cls, deadline: float) -> Self:
        """Return the limits of a request with this deadline. They leave it time for the rest of its work."""
        now = anyio.current_time()
        half = (now + deadline) / 2
        return cls(min(half, now + _WAIT_SECONDS), min(half, now + _FIRST_WAIT_SECONDS))


class Readers:
    """Limits how many databases are read at once. Those that may hang have a limit of their own."""

    def __init__(self) -> None:
        self.local = anyio.CapacityLimiter(_MOST_THREADS)
        self.remote = anyio.CapacityLimiter(_MOST_THREADS)


class KnownDatabase:
    """A database, what was read last, and the state of the task that reads it.

    `fault` says why the database must not be used, `failure` why its last reading could not be applied, and `findings`
    what was not adopted or not followed. `since` is when its state began. The runs are as the database was at
    `applied_as_of` (loop time). While a task reads it, `began_at` is when the task began; `done` is set when the task
    has finished. `is_applying`: the database was read, and the runs are being changed. `next_at` is when a waiting task
    will read it again; None if no task waits.
    """

    def __init__(self, path: str, now: int) -> None:
        self.path = path
        self.database = IntercoreDatabase(path)
        self.reading: IntercoreReading | None = None
        self.since = now
        self.fault: str | None = None
        self.failure = ""
        self.findings: tuple[str, ...] = ()
        self.applied_as_of = -math.inf
        self.began_at: float | None = None
        self.done = anyio.Event()
        self.next_at: float | None = None
        self.is_applying = False
        # None until it was read. The event loop must not touch a file that may hang.
        self._may_hang: bool | None = None
        self._stamp: Stamp | None = None
        self._is_outdated = True
        self._pause = _SHORTEST_PAUSE
        self._retry_at: float | None = None

    @property
    def is_slow(self) -> bool:
        """Return True if the current read has taken longer than requests wait."""
        longest = _FIRST_WAIT_SECONDS if self.reading is None else _WAIT_SECONDS
        return self._has_taken(longest)

    @property
    def is_unsettled(self) -> bool:
        """Return True if a write soon after the last read may not have changed the files' stamps."""
        return self._stamp is not None and bool(self._stamp.unsettled)

    @property
    def retry_at(self) -> float | None:
        """Return when the next attempt is due, by the event loop's clock; None if the last one succeeded."""
        return self._retry_at

    @property
    def status(self) -> SourceStatus:
        """Return its state."""
        if self.fault is not None:
            hint = "make it a regular file that belongs to you, in a .clavain that is not a symbolic link"
            return SourceStatus(name="intercore", path=self.path, state="unreadable", detail=self.fault, hint=hint)
        if self._has_taken(_SLOW_SECONDS):
            detail, hint = "reading it takes too long", "check its disk"
            return SourceStatus(name="intercore", path=self.path, state="slow", detail=detail, hint=hint)
        if self.reading is not None:
            return self.reading.status
        return SourceStatus(name="intercore", path=self.path, state="unread")

    @property
    def is_watchable(self) -> bool:
        """Return True if it is on a file system that reports changes and does not hang."""
        return self.fault is None and self._may_hang is False

    def is_due(self, *, checks: bool) -> bool:
        """Return True if it must be read. `checks`: check the files' stamps; otherwise repeat the last result.

        On a file system that may hang, the check would take as long as a read, so the database is always due.
        """
        if self.fault is not None:
            return False
        if checks and not self._is_outdated:
            is_retried = self._retry_at is not None and anyio.current_time() >= self._retry_at
            self._is_outdated = is_retried or bool(self._may_hang) or self.database.stamp() != self._stamp
        return self._is_outdated

    async def read(self, followed: Mapping[str, int], readers: "Readers") -> IntercoreReading:
        """Read it in a worker thread. If it is outdated, it stays so until the read has ended."""
        file = self.database.file
        may_hang = await anyio.to_thread.run_sync(file_systems.may_hang, file, limiter=readers.local)
        limiter = readers.remote if may_hang else readers.local
        stamp, reading = await anyio.to_thread.run_sync(self._read, followed, abandon_on_cancel=True, limiter=limiter)
        self._may_hang, self._stamp, self._is_outdated = may_hang, stamp, False
        self.reading = reading
        return reading

    def _read(self, followed: Mapping[str, int]) -> tuple[Stamp | None, IntercoreReading]:
        # The stamp must be taken before the database is read.
        stamp = self.database.stamp()
        return stamp, self.database.read(followed)

    def note_found(self, found: Found, now: int) -> None:
        """Note whether it may be used."""
        if self.fault != found.fault:
            self.fault, self._is_outdated, self.since = found.fault, True, now

    def note_success(self) -> None:
        """Record that it was read, or that there is nothing to read."""
        self.failure, self._retry_at, self._pause = "", None, _SHORTEST_PAUSE

    def note_failure(self, why: str = "") -> None:
        """Schedule a retry after a pause, which grows. `why`: the reason why its reading could not be applied."""
        self.failure = why
        self._retry_at = anyio.current_time() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _has_taken(self, seconds: float) -> bool:
        return self.began_at is not None and anyio.current_time() - self.began_at > seconds


class Finder:
    """Finds databases in a few worker threads.

    A directory that does not answer blocks one thread, and no other directory is affected.
    """

    def __init__(self, places: Places) -> None:
        self._limiter = anyio.CapacityLimiter(_MOST_THREADS)
        self._places = places
        # What was found last, by directory.
        self._found: dict[str, Found | None] = {}
        self._searches: dict[str, anyio.Event] = {}
        self._busy: set[str] = set()

    def has_examined(self, directory: str) -> bool:
        """Return True if the directory was examined before."""
        return directory in self._found

    async def of(self, directory: str, deadline: float) -> Found | None:
        """Return the nearest database of a directory, or what was found last if the file system does not answer."""
        with anyio.CancelScope(deadline=deadline):
            if (search := self._searches.get(directory)) is not None:
                await search.wait()
            elif directory not in self._busy and len(self._busy) < _MOST_THREADS:
                await self._search(directory, deadline)
        return self._found.get(directory)

    async def at(self, path: str) -> Found | None:
        """Return the database at a path; None if the file system does not answer. `~` stands for the home directory."""
        with anyio.move_on_after(_FIND_SECONDS):
            return await anyio.to_thread.run_sync(_found_at, path, abandon_on_cancel=True, limiter=self._limiter)
        return None

    async def _search(self, directory: str, deadline: float) -> None:
        search = self._searches[directory] = anyio.Event()
        try:
            # `Places.of` takes at most half of the remaining time.
            places = await self._places.of(directory, deadline)
            found = await anyio.to_thread.run_sync(
                self._find, directory, places, abandon_on_cancel=True, limiter=self._limiter
            )
        finally:
            del self._searches[directory]
            search.set()
        if len(self._found) >= _MOST_DIRECTORIES:
            self._found.clear()
        self._found[directory] = found

    def _find(self, directory: str, places: tuple[str, ...]) -> Found | None:
        self._busy.add(directory)
        try:
            return intercore.find(places)
        finally:
            self._busy.discard(directory)


def _found_at(path: str) -> Found:
    return intercore.found_at(os.path.expanduser(path))
