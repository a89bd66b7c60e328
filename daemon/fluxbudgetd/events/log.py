"""The events in the order of their numbers, for whoever tells them on.

An event is here once it is on disk. The latest are kept in memory, older ones are read from the ledger, a page at a
time: so a reader may be as slow as it likes, and costs nobody anything.
"""

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Event

_KEPT = 512
_PAGE = 256


class EventLog:
    """Readers keep their own place: the number of the last event that they are done with.

    `on_events` is called with events as soon as they are on disk.
    """

    def __init__(self, ledger: Ledger, on_events: Callable[[Sequence[Event]], None] = lambda _events: None) -> None:
        self.last = 0
        self._ledger = ledger
        self._on_events = on_events
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._came = anyio.Event()

    async def prepare(self) -> None:
        """Go on where the ledger has left off; raises `LedgerError`."""
        self.last = await self._ledger.last_event()
        self._ledger.committed = self._take

    def _take(self, events: Sequence[Event]) -> None:
        self._kept.extend(events)
        self.last = events[-1].seq
        self._on_events(events)
        self.stir()

    async def wait(self, place: int, or_when: Callable[[], bool] | None = None) -> None:
        """Wait until there is something behind a place, or until something holds; it is asked when `stir` is called."""
        while self.last <= place and not (or_when is not None and or_when()):
            await self._came.wait()

    def stir(self) -> None:
        """Have those who wait look again at what else they wait for."""
        self._came.set()
        self._came = anyio.Event()

    def are_kept(self, place: int) -> bool:
        """Tell whether all that is behind a place is in memory."""
        return self.last <= place or bool(self._kept and self._kept[0].seq <= place + 1)

    async def behind(self, place: int) -> Sequence[Event]:
        """Return the first events behind a place, a page at most; raises `LedgerError`."""
        if self.are_kept(place):
            return [event for event in self._kept if event.seq > place][:_PAGE]
        return await self._ledger.events(place, _PAGE)
