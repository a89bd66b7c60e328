"""Scans of interstat's whole table: one at a time, in a task of their own.

A request waits for a scan until its deadline. A scan that takes longer continues, and a later request gets its result.
Each scan has its own database connection, so totals stay fresh meanwhile. It is closed afterwards, because an open
connection prevents writers from removing the WAL when they close.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar, cast

import anyio
import anyio.to_thread
import msgspec
import structlog

from fluxbudgetd.model import SourceStatus
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.totals.account import NEVER

log = structlog.get_logger()

T = TypeVar("T")

#: Called with the source in a worker thread. Returns None if the source cannot be read.
Scan = Callable[[InterstatSource], T | None]

_MOST_KEPT = 16


class ScanResult(NamedTuple, Generic[T]):
    """The result of a scan. `value` is what was found last; None if there is nothing.

    `stale_why` says why the result is older than the request (None: it is not). `in_time`: a scan finished in time.
    """

    value: T | None
    stale_why: str | None
    in_time: bool


class _Entry(msgspec.Struct):
    """A kind of scan: the epochs at which it was requested, tried, and last found something."""

    requested: int = NEVER
    tried: int = NEVER
    found: int = NEVER
    value: object = None
    error: Exception | None = None


class History:
    """Scans by key; a key stands for one kind of scan. `epoch` returns interstat's epoch."""

    def __init__(self, path: str, epoch: Callable[[], int]) -> None:
        self._source = InterstatSource(path)
        self._epoch = epoch
        self._entries: dict[str, _Entry] = {}
        # In the order in which they were requested.
        self._requests: dict[str, Scan[object]] = {}
        self._requested = anyio.Event()
        self._done = anyio.Event()
        self._began_at: float | None = None

    def has_stalled(self, seconds: float) -> bool:
        """Return True if a scan has been under way for more than `seconds`."""
        return self._began_at is not None and anyio.current_time() - self._began_at > seconds

    @property
    def status(self) -> SourceStatus:
        """The source's state as of the last scan."""
        return self._source.status

    async def ask(self, key: str, scan: Scan[T], deadline: float) -> ScanResult[T]:
        """Return what a scan finds now or, at the deadline, what it found last. Raises what the scan raised."""
        epoch = self._epoch()
        entry = self._entry(key)
        if entry.tried < epoch or entry.found == NEVER:
            self._requests[key] = scan
            entry.requested = epoch
            self._requested.set()
            with anyio.CancelScope(deadline=deadline):
                while True:
                    await self._done.wait()
                    if entry.tried >= epoch:
                        break
        in_time = entry.tried >= epoch
        if in_time and entry.error is not None:
            raise entry.error
        value = cast("T | None", entry.value)  # a key stands for one kind of scan
        if entry.found >= epoch:
            return ScanResult(value, None, in_time=True)
        status = self._source.status
        fault = f"{status.state}: {status.detail}" if in_time else "slow: current numbers were not available in time"
        return ScanResult(value, f"{status.name}: {fault}", in_time)

    async def serve(self) -> None:
        """Scan as requested, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested = anyio.Event()
            while self._requests:
                key = next(iter(self._requests))
                await self._run(self._requests.pop(key), self._entry(key))
                self._done.set()
                self._done = anyio.Event()

    async def _run(self, scan: Scan[object], entry: _Entry) -> None:
        epoch, entry.error = entry.requested, None
        self._began_at = anyio.current_time()
        try:
            value = await anyio.to_thread.run_sync(self._scan, scan, abandon_on_cancel=True)
            if value is not None:
                entry.found, entry.value = epoch, value
        except Exception as exc:
            # Raised in every request that waits for it; the next scan is not affected.
            log.exception("scan failed")
            entry.error = exc
        finally:
            self._began_at = None
        entry.tried = epoch

    def _entry(self, key: str) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            for old in [name for name in self._entries if name not in self._requests][: 1 - _MOST_KEPT]:
                del self._entries[old]
            entry = self._entries[key] = _Entry()
        return entry

    def _scan(self, scan: Scan[object]) -> object:
        try:
            return scan(self._source)
        finally:
            self._source.reopen()
