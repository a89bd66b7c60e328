"""Our rows in one of intercore's databases: which of them are due, and whether the last write succeeded.

A row is written at once after an event, otherwise at most every 30 seconds. What was written is remembered, so a
database is opened only if something has changed, or if a reading of the database shows another value. A failed write is
retried after 1, 2, 4 … 60 seconds.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import anyio
import structlog

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.model import Counts
from fluxbudgetd.notify.intercore_faults import NotWritten, NotWrittenError
from fluxbudgetd.notify.intercore_rows import OwnRow, write
from fluxbudgetd.notify.worker import Worker

log = structlog.get_logger()

#: Seconds between two writes of a run whose numbers keep changing.
PACE = 30.0
# Changes within this time are written together.
_COALESCE_SECONDS = 0.05
_PAUSES = (1.0, 60.0)
# SQLite itself waits at most 0.2 s; only a file system that does not answer takes this long.
_HANG_SECONDS = 5.0
_PATIENCE_SECONDS = 1.0
_SECOND = 1_000_000


class WriteState(NamedTuple):
    """The result of the last write to a database. `at`: when its rows were last correct, in microseconds.

    `waiting`: there was nothing to write yet. `off`: the configuration switches writing off. Any state except these and
    `ok` says why the rows could not be written; `detail` describes the reason, and `hint` says what to do.
    """

    state: Literal["ok", "waiting", "off"] | NotWritten
    at: int | None = None
    detail: str = ""
    hint: str = ""


class OwnRows:
    """Keeps our rows in the database at `path` up to date.

    `row_of` returns what a run's row must say; None if there is nothing to write for now. Runs are named by our ids.
    `pace` is the time between two writes of a run that keeps changing, `pauses` are the shortest and the longest pause
    after a failure, in seconds.
    """

    def __init__(
        self,
        path: str,
        row_of: Callable[[str], OwnRow | None],
        clock: Callable[[], int],
        *,
        pace: float = PACE,
        pauses: tuple[float, float] = _PAUSES,
    ) -> None:
        self.path = path
        self.state = WriteState("waiting")
        self.fault: ChannelError | None = None
        #: The runs that are missing from the database.
        self.missing: set[str] = set()
        self._row_of = row_of
        self._clock = clock
        self._pace = pace
        self._shortest_pause, self._longest_pause = pauses
        self._worker = Worker(f"writing {path}", "check the file system", _PATIENCE_SECONDS)
        # By run: when it may be written next (loop time); when it was written last; what the database says, if known.
        self._due: dict[str, float] = {}
        self._written_at: dict[str, float] = {}
        self._known: dict[str, OwnRow] = {}
        self._logged = ""
        self._wake = anyio.Event()
        self._retry = anyio.Event()
        # Syncs are numbered. An attempt to write covers every sync that was requested before it began.
        self._requested = self._attempted = 0
        self._attempt = anyio.Event()

    def request(self, run: str, *, at_once: bool = False) -> None:
        """Request that a run's row is written soon, or `at_once`, if it has changed; returns without waiting."""
        soonest = -math.inf if at_once else self._written_at.get(run, -math.inf) + self._pace
        if soonest < self._due.get(run, math.inf):
            self._due[run] = soonest
            self._wake.set()

    def note_read(self, run: str, own: Counts | None) -> None:
        """Compare a row that was read with what was written: it may have been pruned, or restored from a backup."""
        known = self._known.get(run)
        if known is not None and (known.input, known.output, known.cache) != _numbers(own):
            self.forget(run)
            self.request(run)

    def forget(self, run: str) -> None:
        """Forget what the database says about a run, so that the next write compares again."""
        self._known.pop(run, None)

    async def sync(self, runs: Iterable[str], deadline: float) -> ChannelError | None:
        """Write the rows of these runs now, and wait until the deadline. Return why they were not written, or None.

        This retries while another program holds a lock.
        """
        for run in runs:
            self.forget(run)
            self.request(run, at_once=True)
        fault = ChannelError(f"{self.path} was not written in time", "ask again, or give more --timeout")
        with anyio.CancelScope(deadline=deadline):
            while True:
                self._requested += 1
                number = self._requested
                self._retry.set()
                while self._attempted < number:
                    await self._attempt.wait()
                if self.fault is None or not _is_locked(self.fault):
                    return self.fault
                fault = self.fault
        return fault

    async def serve(self) -> None:
        """Write due rows until cancelled; then write all remaining changes."""
        pause = self._shortest_pause
        try:
            while True:
                await self._until_due()
                await anyio.sleep(_COALESCE_SECONDS)
                self._retry = anyio.Event()
                if await self._write_due(anyio.current_time()):
                    pause = self._shortest_pause
                    continue
                with anyio.move_on_after(pause) as limit:
                    await self._retry.wait()
                if limit.cancelled_caught:
                    pause = min(2 * pause, self._longest_pause)
        finally:
            if self._due:
                with anyio.CancelScope(shield=True):
                    await self._write_due(math.inf)

    async def _until_due(self) -> None:
        while True:
            soonest = min(self._due.values(), default=math.inf)
            if soonest <= anyio.current_time():
                return
            self._wake = anyio.Event()
            with anyio.CancelScope(deadline=soonest):
                await self._wake.wait()

    async def _write_due(self, now: float) -> bool:
        """Write the rows that are due. Return True if that succeeded; otherwise they are still due."""
        number = self._requested
        due = [run for run, at in self._due.items() if at <= now]
        for run in due:
            del self._due[run]
        rows = {run: row for run in due if (row := self._row_of(run)) is not None}
        outdated = {run: row for run, row in rows.items() if row.rearm or self._known.get(run) != row}
        # Set before the write: a `forget` during the write must not be lost, and a change during it has to wait.
        self._known |= outdated
        self._written_at |= dict.fromkeys(outdated, anyio.current_time())
        is_written = False
        try:
            is_written = not outdated or await self._try(outdated)
        finally:
            if not is_written:
                for run in outdated:
                    self.forget(run)
                    self._due[run] = -math.inf
        self._attempted = number
        self._attempt.set()
        self._attempt = anyio.Event()
        return is_written

    async def _try(self, rows: dict[str, OwnRow]) -> bool:
        """Write rows, by our ids. Return True if that succeeded."""
        missing: frozenset[str] = frozenset()
        now = self._clock()

        def call() -> None:
            nonlocal missing
            missing = write(self.path, list(rows.values()), now // _SECOND)

        try:
            await self._worker.run(call, _HANG_SECONDS)
        except ChannelError as exc:
            self._report(exc)
            return False
        except Exception as exc:
            # Last resort: a defect must not stop the daemon.
            log.exception("writing intercore's database failed", path=self.path)
            what = f"{self.path} was not written: internal error: {type(exc).__name__}"
            self._report(ChannelError(what, "the daemon's log has the details"))
            return False
        for run, row in rows.items():
            (self.missing.add if row.run in missing else self.missing.discard)(run)
        self._report(None)
        return True

    def _report(self, fault: ChannelError | None) -> None:
        # Most locks are released by the next attempt, so only a second failure is logged.
        if fault is None and self._logged:
            log.info("intercore's database is written again", path=self.path)
            self._logged = ""
        elif fault is not None and self.fault is not None and self.fault.message == fault.message != self._logged:
            log.warning("intercore's database was not written", detail=fault.message, hint=fault.hint)
            self._logged = fault.message
        self.fault = fault
        if fault is None:
            self.state = WriteState("ok", self._clock())
        elif isinstance(fault, NotWrittenError):
            self.state = WriteState(fault.state, self.state.at, fault.detail, fault.hint)
        else:
            self.state = WriteState("failed", self.state.at, fault.message, fault.hint)


def _is_locked(fault: ChannelError) -> bool:
    return isinstance(fault, NotWrittenError) and fault.state == "locked"


def _numbers(own: Counts | None) -> tuple[int, int, int]:
    return (0, 0, 0) if own is None else (own.input, own.output, own.cache_read)
