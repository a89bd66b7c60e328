"""Refreshing runs once more, shortly after a hook: what it reports may not be in the transcripts yet."""

from collections.abc import Awaitable, Callable

import anyio
import structlog

log = structlog.get_logger()

#: Claude Code writes a line within this time after it has called a hook for it.
DELAY_SECONDS = 0.15


class LaterRefreshes:
    """The runs to refresh, each by the time that it is due."""

    def __init__(self, refresh: Callable[[str], Awaitable[None]]) -> None:
        self._refresh = refresh
        self._due: dict[str, float] = {}
        self._has_any = anyio.Event()

    def request(self, run: str) -> None:
        """Have a run refreshed `DELAY_SECONDS` from now; a request that is still due is postponed."""
        self._due.pop(run, None)
        self._due[run] = anyio.current_time() + DELAY_SECONDS
        self._has_any.set()

    async def serve(self) -> None:
        """Refresh runs when they are due, until cancelled."""
        while True:
            await self._has_any.wait()
            run, at = next(iter(self._due.items()))
            await anyio.sleep_until(at)
            if self._due.get(run) != at:
                continue
            del self._due[run]
            if not self._due:
                self._has_any = anyio.Event()
            try:
                await self._refresh(run)
            except Exception:
                # No request waits for this; the next one reports the error.
                log.exception("refreshing a run after a hook failed", run=run)
