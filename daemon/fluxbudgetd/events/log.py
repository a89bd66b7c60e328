"""The event log: every event once, in the order of the numbers, at each reader's own pace.

The newest events are in memory; older ones are read from the ledger a page at a time, so a slow reader uses no memory.
"""

from collections.abc import Callable, Sequence

from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger.events import StoredEvents
from fluxbudgetd.model import Event

_PAGE = 256


class EventLog:
    """Readers keep their own position: the number of the last event that they have handled."""

    def __init__(self, newest: NewestEvents, stored: StoredEvents) -> None:
        self._newest = newest
        self._stored = stored

    async def load(self) -> None:
        """Continue after the ledger's last event; raises `LedgerError`."""
        self._newest.start_after(await self._stored.last_number())

    @property
    def last(self) -> int:
        """Return the last event's number."""
        return self._newest.last

    async def wait(self, position: int, or_until: Callable[[], bool] | None = None) -> None:
        """Wait until there is an event after a position, or `or_until` returns True; `notify` re-evaluates it."""
        await self._newest.wait(position, or_until)

    def notify(self) -> None:
        """Wake waiters to re-check their conditions."""
        self._newest.notify()

    def is_in_memory(self, position: int) -> bool:
        """Return True if every event after a position is in memory."""
        return self._newest.has_all_after(position)

    async def after(self, position: int) -> Sequence[Event]:
        """Return the first events after a position, at most one page; raises `LedgerError`."""
        if self._newest.has_all_after(position):
            return self._newest.after(position)[:_PAGE]
        return await self._stored.after(position, _PAGE)
