"""The sources' states, when each began, and an event when a source fails or recovers."""

from collections.abc import Callable, Iterable

import structlog

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import EventData, EventKind, SourceStatus

log = structlog.get_logger()


class SourceStates:
    """Tracks the sources' states. `on_change` is called when one changes."""

    def __init__(
        self,
        statuses: Iterable[SourceStatus],
        ledger: Ledger,
        clock: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._on_change = on_change
        self._states = {status.name: status.state for status in statuses}
        self._since = dict.fromkeys(self._states, clock())
        self._reported: dict[str, EventKind] = {}

    async def load(self) -> None:
        """Read what was last reported, so that a restart does not report it again; raises `LedgerError`."""
        self._reported = await self._ledger.events.last_of_sources()

    def since(self, name: str) -> int:
        """Return when a source's current state began, in microseconds since 1970."""
        return self._since[name]

    async def note(self, status: SourceStatus, *, is_fault: bool) -> None:
        """Record a source's state; write an event if it has become a fault, or the source can be read again."""
        if status.state != self._states[status.name]:
            self._states[status.name] = status.state
            self._since[status.name] = self._clock()
            self._on_change()
            log.info("source state changed", source=status.name, state=status.state, detail=status.detail)
        kind: EventKind = "source.recovered" if status.is_readable else "source.degraded"
        reported = self._reported.get(status.name)
        if reported == kind or not (is_fault or (status.is_readable and reported is not None)):
            return
        try:
            data: EventData = {"source": status.name, "state": status.state, "detail": status.detail}
            await self._ledger.events.add([(self._clock(), None, (kind, data), None)])
        except LedgerError as exc:
            # The next batch tries again.
            log.error("source event not saved", kind=kind, error=exc.message)
            return
        self._reported[status.name] = kind
