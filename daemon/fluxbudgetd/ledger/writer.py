"""Write to the ledger what no request waits for, and retry until it succeeds.

Measured usage, reservations, refusals, crossed thresholds and delivered positions take effect in memory before they are
on disk. Their owners keep them until they are written; each kind is a `Backlog` of the one `LedgerWriter`:

* Each backlog is written in its own task, so a slow one delays no other; the ledger runs one transaction at a time.
* A failed write is retried after 1, 2, 4 … 60 seconds, or as soon as something is added to the backlog.
* On shutdown, `flush` tries every backlog once more.
"""

import math
from collections.abc import Awaitable, Callable

import anyio
import structlog

from fluxbudgetd.errors import LedgerError

log = structlog.get_logger()

_FLUSH_SECONDS = 1.0


class Backlog:
    """Records of one kind that wait to be written; create it with `LedgerWriter.backlog`.

    `write` writes every waiting record and then forgets it. It returns at once if none waits, and raises `LedgerError`
    if the ledger cannot be written. `error` is that of the last attempt, None if it succeeded. `records` names them in
    the log.
    """

    def __init__(self, records: str, write: Callable[[], Awaitable[None]], pauses: tuple[float, float]) -> None:
        self.error: LedgerError | None = None
        self._records = records
        self._write = write
        self._shortest_pause, self._longest_pause = pauses
        # Requests are numbered. An attempt covers every request that was made before it began.
        self._requested = self._attempted = self._written = 0
        self._request = anyio.Event()
        self._attempt = anyio.Event()

    def request(self) -> None:
        """Have the records written soon; returns at once."""
        self._requested += 1
        self._request.set()

    async def attempt(self, seconds: float = math.inf) -> bool:
        """Have the records written, and wait at most `seconds` for the attempt. Return True if they are on disk."""
        self.request()
        number = self._requested
        with anyio.move_on_after(seconds):
            while self._attempted < number:
                await self._attempt.wait()
        return self._written >= number

    async def written(self) -> None:
        """Wait until everything that was requested before this call is on disk."""
        number = self._requested
        while self._written < number:
            await self._attempt.wait()

    async def serve(self) -> None:
        """Write as requested until cancelled."""
        pause = self._shortest_pause
        while True:
            if self._written == self._requested:
                await self._request.wait()
            self._request = anyio.Event()
            if await self.try_once():
                pause = self._shortest_pause
                continue
            with anyio.move_on_after(pause) as limit:
                await self._request.wait()
            if limit.cancelled_caught:
                pause = min(2 * pause, self._longest_pause)

    async def try_once(self) -> bool:
        """Write every waiting record. Return True if that succeeded."""
        number = self._requested
        try:
            await self._write()
        except LedgerError as exc:
            if self.error is None or self.error.message != exc.message:
                log.error("ledger write failed, will retry", records=self._records, error=exc.message)
            self.error = exc
        else:
            self.error = None
            self._written = number
        self._attempted = number
        self._attempt.set()
        self._attempt = anyio.Event()
        return self.error is None


class LedgerWriter:
    """The backlogs, and the one fault state of the ledger.

    `pauses` are the shortest and the longest pause between attempts, in seconds.
    """

    def __init__(self, pauses: tuple[float, float] = (1.0, 60.0)) -> None:
        self._pauses = pauses
        self._backlogs: list[Backlog] = []
        self._unreadable: str | None = None

    def backlog(self, records: str, write: Callable[[], Awaitable[None]]) -> Backlog:
        """Return a new backlog; `records` names its records in the log."""
        backlog = Backlog(records, write, self._pauses)
        self._backlogs.append(backlog)
        return backlog

    @property
    def fault(self) -> str | None:
        """Return why the last write or read failed, or None."""
        errors = (backlog.error for backlog in self._backlogs)
        return next((error.message for error in errors if error is not None), self._unreadable)

    def note_unreadable(self, error: LedgerError) -> None:
        """Report a failed read as the ledger's fault, until `note_readable`."""
        if self._unreadable != error.message:
            log.error("the ledger cannot be read", error=error.message)
        self._unreadable = error.message

    def note_readable(self) -> None:
        """Withdraw the fault that `note_unreadable` reported."""
        self._unreadable = None

    async def serve(self) -> None:
        """Write every backlog until cancelled."""
        async with anyio.create_task_group() as tasks:
            for backlog in self._backlogs:
                tasks.start_soon(backlog.serve)

    async def flush(self) -> None:
        """Try every backlog once more, within a second; call this once nothing more can be added."""
        with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
            async with anyio.create_task_group() as tasks:
                for backlog in self._backlogs:
                    tasks.start_soon(backlog.try_once)
