"""A thread for what may hang: it is waited for so long, and while it hangs nothing else is begun."""

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread

from fluxbudgetd.errors import ChannelError

_LOOK_SECONDS = 0.005


class _Call:
    """A call in a worker thread. `ended`: it has returned or raised; `succeeded`: it has returned."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        # Whoever takes it first decides: the thread begins, or the one who waits gives up before that.
        self._start = threading.Lock()
        self.ended = self.succeeded = False

    def carry_out(self) -> None:
        if not self._start.acquire(blocking=False):
            return
        try:
            self._function()
            self.succeeded = True
        finally:
            self.ended = True

    def give_up(self) -> bool:
        """End a call that has not begun, and tell whether it had not; one that has goes on."""
        if not self._start.acquire(blocking=False):
            return False
        self.ended = True
        return True


class Worker:
    """Makes calls that may block, one at a time, each in a worker thread. `what` is the work's name in messages.

    `patience`: so many seconds a call that is cancelled has to end by itself, before it is stopped.
    """

    def __init__(self, what: str, hint: str, patience: float = 0.0) -> None:
        self._what = what
        self._patience = patience
        self._hint = hint
        self._turn = anyio.Lock()
        # A channel that hangs takes no thread from the others.
        self._limiter = anyio.CapacityLimiter(1)
        self._last: _Call | None = None

    async def run(self, function: Callable[[], None], seconds: float, stop: Callable[[], None] | None = None) -> None:
        """Call the function, and raise what it raises.

        Raises `ChannelError` when it takes longer than `seconds`, and at once while an earlier call still hangs. A
        cancelled call calls `stop` and is waited for as long as it may take: nothing goes on behind the caller's back.
        When it has succeeded all the same, that is what the caller learns; the cancellation comes with its next wait.
        """
        with anyio.move_on_after(seconds) as limit:
            async with self._turn:
                if self._last is not None and not self._last.ended:
                    raise ChannelError(f"{self._what} still hangs since last time", self._hint)
                self._last = call = _Call(function)
                try:
                    await anyio.to_thread.run_sync(call.carry_out, abandon_on_cancel=True, limiter=self._limiter)
                except anyio.get_cancelled_exc_class():
                    call.give_up()
                    await _until_ended(call, min(limit.deadline, anyio.current_time() + self._patience))
                    if stop is not None and not call.ended:
                        stop()
                    await _until_ended(call, limit.deadline)
                    if not call.succeeded:
                        raise
                except RuntimeError as exc:
                    if call.give_up():  # the system has no more threads
                        raise ChannelError(f"{self._what} cannot begin: {exc}", "end other processes") from exc
                    raise
        if limit.cancelled_caught:
            raise ChannelError(f"{self._what} took longer than {seconds:g} s", self._hint)


async def _until_ended(call: _Call, deadline: float) -> None:
    with anyio.CancelScope(shield=True, deadline=deadline):
        while not call.ended:  # noqa: ASYNC110  the thread may outlive the loop and its events
            await anyio.sleep(_LOOK_SECONDS)
