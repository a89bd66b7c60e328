"""Reading interstat's database in a worker thread, one reader at a time."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import anyio
import anyio.to_thread

from fluxbudgetd.model import Reading, RecentUsage, SourceStatus, Usage
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.totals.account import NEVER

_SLOW_SECONDS = 1.0

T = TypeVar("T")


class InterstatReader:
    """Reads interstat's rows. A read that hangs is abandoned at the caller's deadline.

    `has_active` returns True while a run is active. Only then does the file stay open between reads, because an open
    connection prevents writers from removing the WAL when they close.
    """

    def __init__(self, source: InterstatSource, has_active: Callable[[], bool]) -> None:
        self._source = source
        #: Returns a number that grows whenever a commit may have landed. A read that begins now includes all of them.
        self.epoch = source.epoch
        self._has_active = has_active
        self._limiter = anyio.CapacityLimiter(1)
        self._reading_since: float | None = None
        self._recent: tuple[int, tuple[RecentUsage, ...]] = (NEVER, ())

    @property
    def path(self) -> str:
        """The database's path."""
        return self._source.path

    @property
    def is_chosen(self) -> bool:
        """True if the database's path was configured, so that it must exist."""
        return self._source.is_chosen

    @property
    def status(self) -> SourceStatus:
        """The source's state. It is `slow` while a read has been under way for more than a second."""
        since = self._reading_since
        if since is not None and anyio.current_time() - since > _SLOW_SECONDS:
            return self._source.slow()
        return self._source.status

    async def read(self, wanted: Mapping[str, int | None], scopes: Iterable[str]) -> Reading:
        """Return these sessions' rows, and those of every session that names one of the scopes.

        `wanted` maps each session to the digest of its known rows, or to None. Rows that have not changed are left out.
        """
        self._reading_since = anyio.current_time()
        try:
            return await self._in_thread(lambda: self._source.read(wanted, scopes))
        finally:
            self._reading_since = None

    async def session_rows(self, session: str, deadline: float) -> tuple[tuple[Usage, ...] | None, SourceStatus]:
        """Return one session's rows, or None if they could not be read in time, with the source's state."""
        with anyio.CancelScope(deadline=deadline):
            reading = await self._in_thread(lambda: self._source.read({session: None}, ()))
            if session in reading.sessions:
                return reading.sessions[session].records or (), reading.status
            return None, reading.status
        return None, self.status

    async def recent(self, deadline: float) -> tuple[RecentUsage, ...]:
        """Return the usage of the newest rows, or the last known if they cannot be read in time."""
        epoch = self._source.epoch()
        if self._recent[0] != epoch:
            with anyio.CancelScope(deadline=deadline):
                recent = await self._in_thread(self._source.recent)
                if recent is not None:
                    self._recent = (epoch, recent)
        return self._recent[1]

    async def reopen(self) -> None:
        """Close the file when no read is under way; the next read opens it again."""
        await anyio.to_thread.run_sync(self._source.reopen, abandon_on_cancel=True, limiter=self._limiter)

    async def _in_thread(self, read: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(self._read, read, abandon_on_cancel=True, limiter=self._limiter)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        finally:
            if not self._has_active():
                self._source.close()
