"""A task that collects something when it is asked to, and goes on after the request has given up."""

from collections.abc import Awaitable, Callable

import anyio
import structlog

from fluxbudgetd.errors import LedgerError

log = structlog.get_logger()


class NotCollectedError(Exception):
    """Something could not be collected; says why."""


class Collector:
    """Runs one collection at a time; each covers all requests that were made before it began.

    `collect` gets the latest deadline of its requests, and raises `NotCollectedError` or `LedgerError`. `name` is that
    of what is collected, for the log and for people.
    """

    def __init__(self, name: str, collect: Callable[[float], Awaitable[None]]) -> None:
        self._name = name
        self._collect = collect
        # Requests are numbered.
        self._requested = self._collected = 0
        self._deadline = 0.0
        self._request = anyio.Event()
        self._done = anyio.Event()
        self._error: str | None = None

    def request(self, deadline: float) -> int:
        """Have everything collected that is there now; return the number of the request."""
        self._requested += 1
        self._deadline = max(self._deadline, deadline)
        self._request.set()
        return self._requested

    async def wait(self, number: int, deadline: float) -> str | None:
        """Wait for a request, and return why it was not fulfilled, or None."""
        with anyio.CancelScope(deadline=deadline):
            while self._collected < number:
                await self._done.wait()
            return self._error
        return f"{self._name}: slow: not everything was counted in time"

    async def serve(self) -> None:
        """Collect as requested, until cancelled."""
        while True:
            await self._request.wait()
            self._request = anyio.Event()
            number = self._requested
            self._error = await self._attempt()
            self._collected = number
            self._done.set()
            self._done = anyio.Event()

    async def _attempt(self) -> str | None:
        try:
            await self._collect(self._deadline)
        except LedgerError as exc:
            return exc.message
        except NotCollectedError as exc:
            return str(exc)
        except Exception as exc:
            # A source may hold anything. What was collected before still counts.
            log.exception("collection failed", collected=self._name)
            return f"{self._name}: {exc!r}"
        return None
