"""Blocking calls that may hang, one at a time, in a worker thread."""

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

# After a cancellation, wait this long for the call to end.
_PATIENCE_SECONDS = 1.0
_POLL_SECONDS = 0.005


class _Job(Generic[T]):
    """One call. It begins when a thread takes it, and may then take any time."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.has_begun = self.has_ended = False

    def carry_out(self) -> T:
        self.has_begun = True
        try:
            return self._function()
        finally:
            self.has_ended = True

    @property
    def is_running(self) -> bool:
        return self.has_begun and not self.has_ended


class Jobs:
    """Runs calls. The caller makes sure that there is only one at a time."""

    def __init__(self) -> None:
        # A call that hangs must not use up the threads that other calls need.
        self._limiter = anyio.CapacityLimiter(1)
        self._is_last_running: Callable[[], bool] = lambda: False

    async def run(self, function: Callable[[], T], seconds: float, stop: Callable[[], None] = lambda: None) -> T | None:
        """Call the function; return what it returns, and raise what it raises.

        Return None if it takes longer than `seconds`, and at once while an earlier call still hangs. When it takes too
        long, or this is cancelled, `stop` is called, and the call gets a second to end.
        """
        if self._is_last_running():
            return None
        job = _Job(function)
        self._is_last_running = lambda: job.is_running
        with anyio.move_on_after(seconds):
            try:
                return await anyio.to_thread.run_sync(job.carry_out, abandon_on_cancel=True, limiter=self._limiter)
            except anyio.get_cancelled_exc_class():
                stop()
                await _until_ended(job)
                raise
        return None


async def _until_ended(job: _Job[T]) -> None:
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _PATIENCE_SECONDS):
        while job.is_running:  # noqa: ASYNC110  the thread may outlive the loop and its events
            await anyio.sleep(_POLL_SECONDS)
