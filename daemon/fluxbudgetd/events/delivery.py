"""Deliver events to one channel, in order, from the channel's own position in the event log.

Each channel has its own task, so no channel waits for another and no answer waits for a channel. A failed delivery is
retried from the same position with growing pauses. A position is on disk before the next event is delivered: an event
is delivered again only if the daemon is killed between the delivery and that write.
"""

import math
from collections.abc import Callable
from typing import Protocol

import anyio
import structlog

from fluxbudgetd.errors import ChannelError, LedgerError
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.ledger.deliveries import StoredDeliveries
from fluxbudgetd.model import Event
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire.messages import ChannelState

log = structlog.get_logger()

# A resting channel is retried this often while runs are active.
_RESTING_SECONDS = 60.0
# Save the position after skipping this many events.
_MOST_UNSAVED = 64


class EventChannel(Protocol):
    """Where events are delivered.

    `latest_only`: of several events of a run, only the last has to be delivered, and each `run.loosened`.
    """

    name: str
    latest_only: bool

    @property
    def enabled(self) -> bool:
        """Return True if the configuration enables the channel."""
        ...

    def wants(self, event: Event) -> bool:
        """Return True if an event must be delivered."""
        ...

    async def deliver(self, event: Event) -> None:
        """Deliver an event; raises `ChannelError`, and then it is retried."""
        ...

    @property
    def is_incomplete(self) -> bool:
        """Return True if part of a delivery failed and is left for `reconcile`."""
        ...

    def is_outdated(self, account: RunAccount) -> bool:
        """Return True if the channel's output about a run is outdated and no event will correct it."""
        ...

    async def reconcile(self) -> None:
        """Correct output that is outdated or incomplete; raises `ChannelError`, and then it is retried."""
        ...


class Delivery:
    """Delivers events to one channel. `position` is the number of the last event that was delivered or skipped.

    `pauses` are the shortest and the longest pause between attempts, in seconds.
    """

    def __init__(
        self,
        channel: EventChannel,
        events: EventLog,
        stored: StoredDeliveries,
        writer: LedgerWriter,
        clock: Callable[[], int],
        has_active_runs: Callable[[], bool],
        *,
        pauses: tuple[float, float] = (1.0, 300.0),
    ) -> None:
        self.channel = channel
        self.position = 0
        self.detail = self.hint = ""
        self.since = clock()
        self._state: ChannelState = "ok"
        self._events = events
        self._stored = stored
        self._clock = clock
        self._has_active_runs = has_active_runs
        self._shortest_pause, self._longest_pause = pauses
        self._retry = anyio.Event()
        self._must_reconcile = False
        self._saved_position = 0
        self._backlog = writer.backlog(f"position of channel {channel.name}", self._write_position)

    @property
    def state(self) -> ChannelState:
        """Return the channel's state."""
        return self._state if self.channel.enabled else "off"

    def retry_now(self) -> None:
        """Retry a failed delivery at once, and have the channel reconcile."""
        self._must_reconcile = True
        self._retry.set()
        self._events.notify()

    def load(self, position: int) -> None:
        """Continue from a position."""
        self.position = self._saved_position = position

    async def serve(self) -> None:
        """Deliver events until cancelled."""
        pause = self._shortest_pause
        while True:
            await self._events.wait(self.position, lambda: self._must_reconcile)
            try:
                await self._deliver_page()
                await self._reconcile()
            except ChannelError as exc:
                self._report("resting" if exc.resting else "failing", exc.message, exc.hint)
                if exc.resting:
                    await self._pause(_RESTING_SECONDS if self._has_active_runs() else math.inf, until_new=True)
                    continue
            except LedgerError as exc:
                self._report("failing", exc.message, exc.hint)
            except Exception as exc:
                # Last resort: a defect in one channel must not stop the daemon.
                log.exception("channel failed", channel=self.channel.name)
                self._report("failing", f"internal error: {type(exc).__name__}", "the daemon's log has the details")
            else:
                self._report("ok", "", "")
                pause = self._shortest_pause
                continue
            # If `reconcile` failed, new events do not wait for it.
            if await self._pause(pause, until_new=self.position >= self._events.last):
                pause = min(2 * pause, self._longest_pause)

    async def _deliver_page(self) -> None:
        page = await self._events.after(self.position)
        wanted = [event for event in page if self.channel.wants(event)]
        if self.channel.latest_only:
            latest = {event.run: event.seq for event in wanted if event.kind != "run.loosened"}
            wanted = [event for event in wanted if event.kind == "run.loosened" or latest[event.run] == event.seq]
        for event in wanted:
            await self.channel.deliver(event)
            self.position = event.seq
            await self._save_position()
        if page:
            # Skipped events may be skipped again after a kill. Those skipped while the channel was off must be saved,
            # or it would deliver them once enabled.
            self.position = max(self.position, page[-1].seq)
            if self.position - self._saved_position >= _MOST_UNSAVED or self.state == "off":
                self._backlog.request()
        if self.channel.is_incomplete:
            self._must_reconcile = True

    async def _reconcile(self) -> None:
        if self._must_reconcile:
            self._must_reconcile = False
            try:
                await self.channel.reconcile()
            except BaseException:
                self._must_reconcile = True
                raise

    async def _save_position(self) -> None:
        """Wait until the position is on disk, without a deadline."""
        if await self._backlog.attempt():
            return
        if self._backlog.error is not None:
            self._report("failing", self._backlog.error.message, self._backlog.error.hint)
        await self._backlog.written()

    async def _write_position(self) -> None:
        position = self.position
        if position != self._saved_position:
            await self._stored.save_position(self.channel.name, position)
            self._saved_position = position

    async def _pause(self, seconds: float, *, until_new: bool) -> bool:
        """Return True if the full time passed; `retry_now`, or a new event with `until_new`, ends the wait early."""
        async with anyio.create_task_group() as tasks:
            if until_new:
                tasks.start_soon(self._retry_when_new, self._events.last)
            with anyio.move_on_after(seconds) as limit:
                await self._retry.wait()
            tasks.cancel_scope.cancel()
        # Cleared only now, so that a `retry_now` during the failed attempt counts, too.
        self._retry = anyio.Event()
        return limit.cancelled_caught

    async def _retry_when_new(self, last: int) -> None:
        await self._events.wait(last)
        self._retry.set()

    def _report(self, state: ChannelState, detail: str, hint: str) -> None:
        if state != self._state:
            self.since = self._clock()
        if (state, detail) != (self._state, self.detail):
            log_state = log.error if state == "failing" else log.info
            log_state("channel state changed", channel=self.channel.name, state=state, detail=detail)
        self._state, self.detail, self.hint = state, detail, hint
