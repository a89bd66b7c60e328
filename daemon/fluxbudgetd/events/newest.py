"""The newest events, in memory. They are added as soon as they are on disk."""

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from fluxbudgetd.model import Event

_MOST_EVENTS = 512


class NewestEvents:
    """The last few hundred events. `last` is the number of the last event, even if none is in memory."""

    def __init__(self) -> None:
        self.last = 0
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._last_by_run: dict[str, int] = {}
        self._notified = anyio.Event()

    def start_after(self, last: int) -> None:
        """Continue after the ledger's last event number."""
        self.last = last

    def add(self, events: Sequence[Event]) -> None:
        """Add events, in the order of their numbers."""
        self._events.extend(events)
        self.last = events[-1].seq
        self._last_by_run.update((event.run, event.seq) for event in events if event.run is not None)
        self.notify()

    def last_of_run(self, run: str) -> int:
        """Return the number of a run's last event since the start, 0 if there is none."""
        return self._last_by_run.get(run, 0)

    def has_all_after(self, position: int) -> bool:
        """Return True if every event after a position is in memory."""
        return self.last <= position or bool(self._events and self._events[0].seq <= position + 1)

    def after(self, position: int) -> list[Event]:
        """Return the events after a position that are in memory."""
        return [event for event in self._events if event.seq > position]

    async def wait(self, position: int, or_until: Callable[[], bool] | None = None) -> None:
        """Wait until there is an event after a position, or `or_until` returns True; `notify` re-evaluates it."""
        while self.last <= position and not (or_until is not None and or_until()):
            await self._notified.wait()

    def notify(self) -> None:
        """Wake waiters to re-check their conditions."""
        self._notified.set()
        self._notified = anyio.Event()
