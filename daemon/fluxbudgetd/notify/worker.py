"""Run blocking calls that may hang, one at a time, with a timeout."""

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread

from fluxbudgetd.errors import ChannelError

_POLL_SECONDS = 0.005


class _BlockingCall:
    """A call in a worker thread. `ended`: it returned or raised; `succeeded`: it returned."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        # Acquired once: by the thread when it begins the call, or by the caller when it gives up before that.
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
        """Prevent the call from beginning. Return True if that succeeded; a call that has begun continues."""
        if not self._start.acquire(blocking=False):
            return False
        self.ended = True
        return True


class Worker:
    """Runs calls in a worker thread. `task` names the work in error messages; `hint` says what to do if it hangs.

    A cancelled call has `patience` seconds to end by itself before it is stopped.
    """

    def __init__(self, task: str, hint: str, patience: float = 0.0) -> None:
        self._task = task
        self._patience = patience
        self._hint = hint
        self._turn = anyio.Lock()
        # A call that hangs must not use up threads that other workers need.
        self._limiter = anyio.CapacityLimiter(1)
        self._last: _BlockingCall | None = None

    async def run(self, function: Callable[[], None], seconds: float, stop: Callable[[], None] | None = None) -> None:
        """Call the function, and raise what it raises.

        Raises `ChannelError` if it takes longer than `seconds`, and at once while an earlier call still hangs. If this
        is cancelled, it calls `stop` and waits for the call within `seconds`, so that the call does not outlive it. If
        the call succeeds meanwhile, this returns normally, and the caller is cancelled at its next await.
        """
        with anyio.move_on_after(seconds) as limit:
            async with self._turn:
                if self._last is not None and not self._last.ended:
                    raise ChannelError(f"{self._task} still hangs from an earlier attempt", self._hint)
                self._last = call = _BlockingCall(function)
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
                        raise ChannelError(f"{self._task} cannot start: {exc}", "end other processes") from exc
                    raise
        if limit.cancelled_caught:
            raise ChannelError(f"{self._task} took longer than {seconds:g} s", self._hint)


async def _until_ended(call: _BlockingCall, deadline: float) -> None:
    with anyio.CancelScope(shield=True, deadline=deadline):
        while not call.ended:  # noqa: ASYNC110  the thread may outlive the loop and its events
            await anyio.sleep(_POLL_SECONDS)
