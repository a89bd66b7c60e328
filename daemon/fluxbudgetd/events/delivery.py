"""Deliver warnings: each channel in a task of its own, with a place of its own in the events.

What a channel could not tell is tried again, with growing pauses, from where it was; its place is on disk, so nothing
is lost while it, or the daemon, is down. An event is told again only when the daemon was killed before it could write
down that it had been told. No channel waits for another, and no answer for a channel.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

import anyio
import structlog

from fluxbudgetd.errors import ChannelError, LedgerError
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Event
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire.messages import ChannelState

log = structlog.get_logger()

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 300.0
# How often a channel that rests looks whether there is somebody to tell now.
_RESTING_SECONDS = 60.0
_MOST_UNKEPT = 64


class Channel(Protocol):
    """A place where events are told. `latest_only`: of several events of a run, only the last needs to be told."""

    name: str
    latest_only: bool

    @property
    def enabled(self) -> bool:
        """Tell whether it is switched on."""
        ...

    def wants(self, event: Event) -> bool:
        """Tell whether an event is one for this channel."""
        ...

    async def tell(self, event: Event) -> None:
        """Tell it; raises `ChannelError`, and then it is tried again."""
        ...

    @property
    def is_unfinished(self) -> bool:
        """Tell whether something was passed over that `catch_up` has to do."""
        ...

    def is_behind(self, state: RunAccount) -> bool:
        """Tell whether it would have something to say of a run that no event says. Takes no time."""
        ...

    async def catch_up(self) -> None:
        """Tell what is different though no event says so; called after a `stir`, raises `ChannelError` likewise."""
        ...


class Delivery:
    """Brings the events to one channel, in their order.

    `restless` tells whether a channel that rests shall be tried again, though nothing new has happened.
    """

    def __init__(
        self,
        channel: Channel,
        events: EventLog,
        ledger: Ledger,
        clock: Callable[[], int],
        restless: Callable[[], bool],
    ) -> None:
        self.channel = channel
        self.place = 0
        # The place that is on disk.
        self._kept = 0
        self.detail = self.hint = ""
        self.since = clock()
        self._state: ChannelState = "ok"
        self._events = events
        self._ledger = ledger
        self._clock = clock
        self._restless = restless
        self._nudged = anyio.Event()
        self._stirred = False
        self._is_due = False

    @property
    def state(self) -> ChannelState:
        """Return whether the channel works."""
        return self._state if self.channel.enabled else "off"

    def stir(self) -> None:
        """Have the channel catch up with what no event says, and what failed tried again at once."""
        self._stirred = True
        self._nudged.set()
        self._events.stir()

    def load(self, place: int) -> None:
        """Go on from a place."""
        self.place = self._kept = place

    async def serve(self) -> None:
        """Tell what happens until cancelled; then see to it that the place is on disk."""
        try:
            await self._serve()
        finally:
            with anyio.move_on_after(_SHORTEST_PAUSE_SECONDS, shield=True), suppress(LedgerError):
                await self._keep_place()

    async def _serve(self) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            await self._events.wait(self.place, lambda: self._stirred or self._is_due)
            try:
                # Before more is told: what was told and is not on disk would be told again after a kill.
                if self._is_due:
                    await self._keep_place()
                await self._tell_page()
                await self._catch_up()
            except ChannelError as exc:
                self._note("resting" if exc.resting else "failing", exc.message, exc.hint)
                if exc.resting:
                    await self._rest(_RESTING_SECONDS if self._restless() else math.inf, until_new=True)
                    continue
            except LedgerError as exc:
                self._note("failing", exc.message, exc.hint)
            except Exception as exc:
                # The border that survives anything: one channel's defect is that channel's failure.
                log.exception("channel failed", channel=self.channel.name)
                self._note("failing", f"internal error: {type(exc).__name__}", "the daemon's log has the details")
            else:
                self._note("ok", "", "")
                pause = _SHORTEST_PAUSE_SECONDS
                continue
            # When it is not an event that cannot be told, those to come do not wait for it.
            if await self._rest(pause, until_new=self.place >= self._events.last):
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _catch_up(self) -> None:
        if self._stirred:
            self._stirred = False
            try:
                await self.channel.catch_up()
            except BaseException:
                self._stirred = True
                raise

    async def _tell_page(self) -> None:
        page = await self._events.behind(self.place)
        wanted = [event for event in page if self.channel.wants(event)]
        if self.channel.latest_only:
            latest = {event.run: event.seq for event in wanted}
            wanted = [event for event in wanted if latest[event.run] == event.seq]
        for event in wanted:
            await self.channel.tell(event)
            self.place = event.seq
            self._is_due = True
            with anyio.CancelScope(shield=True):
                await self._keep_place()
        if page:
            # Events that are none of its business are looked at again after a kill; but not those that it was off for.
            self.place = max(self.place, page[-1].seq)
            self._is_due = self._is_due or self.place - self._kept >= _MOST_UNKEPT or self.state == "off"
        if self.channel.is_unfinished:
            self._stirred = True

    async def _keep_place(self) -> None:
        place = self.place
        if place != self._kept:
            await self._ledger.save_channel_place(self.channel.name, place)
            self._kept = place
        self._is_due = self.place != place

    async def _rest(self, seconds: float, *, until_new: bool) -> bool:
        """Wait for so long, or until something may be different; `until_new`: or until something has happened.

        Tells whether it was so long.
        """
        async with anyio.create_task_group() as tasks:
            if until_new:
                tasks.start_soon(self._nudge_when_new, self._events.last)
            with anyio.move_on_after(seconds) as limit:
                await self._nudged.wait()
            tasks.cancel_scope.cancel()
        # Only now: what has become different while it was failing counts, too.
        self._nudged = anyio.Event()
        return limit.cancelled_caught

    async def _nudge_when_new(self, last: int) -> None:
        await self._events.wait(last)
        self._nudged.set()

    def _note(self, state: ChannelState, detail: str, hint: str) -> None:
        if state != self._state:
            self.since = self._clock()
        if (state, detail) != (self._state, self.detail):
            tell = log.error if state == "failing" else log.info
            tell("channel", channel=self.channel.name, state=state, detail=detail)
        self._state, self.detail, self.hint = state, detail, hint


class Deliveries:
    """All channels."""

    def __init__(self, couriers: Iterable[Delivery], ledger: Ledger) -> None:
        self.couriers = tuple(couriers)
        self._ledger = ledger

    async def load(self) -> None:
        """Find out what each channel is done with; raises `LedgerError`."""
        places = await self._ledger.channel_places(courier.channel.name for courier in self.couriers)
        for courier in self.couriers:
            courier.load(places[courier.channel.name])

    async def serve(self) -> None:
        """Tell what happens, for ever."""
        async with anyio.create_task_group() as tasks:
            for courier in self.couriers:
                tasks.start_soon(courier.serve)

    def nudge(self) -> None:
        """Have every channel that failed tried again at once, and all of them catch up."""
        for courier in self.couriers:
            courier.stir()

    def look(self, state: RunAccount) -> None:
        """Have the channels catch up that have something else to show of a run than they do."""
        for courier in self.couriers:
            if courier.channel.is_behind(state):
                courier.stir()
