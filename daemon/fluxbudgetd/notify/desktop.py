"""The desktop as a channel: notification bubbles, through the session bus.

dbus_fast takes a tenth of a second and megabytes to import: whoever never shows a bubble does not pay for it, and the
daemon's loop never does. A delivery runs in a worker thread, on a short loop of its own, and leaves nothing open.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import quote

import anyio
import anyio.to_thread

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.bubble import Bubble, Urgency
from fluxbudgetd.notify.memory import Memory

__all__ = ["Bubble", "Desktop", "Urgency"]

# A delivery ends by itself when its time is over; one that has not done so this much later hangs.
_GRACE_SECONDS = 0.5


class Desktop:
    """Shows bubbles, one at a time, on the session bus of this environment and user."""

    def __init__(self, environ: Mapping[str, str], uid: int) -> None:
        self._named = environ.get("DBUS_SESSION_BUS_ADDRESS", "")
        given = environ.get("XDG_RUNTIME_DIR", "")
        self._usual = os.path.join(given if given.startswith("/") else f"/run/user/{uid}", "bus")
        self._memory = Memory()
        self._threads = anyio.CapacityLimiter(1)
        # Held by the thread that delivers, even when it was given up on.
        self._delivering = threading.Lock()
        self._current: _Delivery | None = None

    async def show(self, bubble: Bubble, seconds: float) -> None:
        """Show a bubble, in place of its key's last one; raises `ChannelError`, at about `seconds` at the latest.

        It is resting when there is no session bus, or nobody on it shows notifications or can be started to.
        """
        current = self._current
        if current is not None and time.monotonic() >= current.until + _GRACE_SECONDS:
            raise _hangs()
        delivery = _Delivery(bubble, time.monotonic() + seconds)
        try:
            with anyio.fail_after(seconds + _GRACE_SECONDS):
                await anyio.to_thread.run_sync(self._deliver, delivery, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError as exc:
            raise _hangs() from exc
        finally:
            delivery.give_up()

    def _deliver(self, delivery: "_Delivery") -> None:
        if not self._delivering.acquire(timeout=delivery.seconds_left):
            raise _hangs()
        try:
            self._current = delivery
            delivery.run(self._address(), self._memory)
        finally:
            self._current = None
            self._delivering.release()

    def _address(self) -> str:
        """Return the bus's address. None is ever started: a bus without a desktop has nobody to show anything."""
        if self._named:
            return self._named
        if not os.path.exists(self._usual):
            hint = "the daemon runs outside of a desktop's session; $DBUS_SESSION_BUS_ADDRESS names a bus"
            raise ChannelError("there is no session bus", hint, resting=True)
        return f"unix:path={quote(os.fsencode(self._usual)).replace('~', '%7E')}"


class _Delivery:
    """One bubble's way through the bus. `until` is its deadline, in seconds of the monotonic clock."""

    def __init__(self, bubble: Bubble, until: float) -> None:
        self.until = until
        self._bubble = bubble
        self._given_up = False
        self._cancel: Callable[[], object] | None = None

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def run(self, address: str, memory: Memory) -> None:
        """Deliver; called in a worker thread."""
        try:
            from fluxbudgetd.notify.session_bus import show  # noqa: PLC0415  it imports dbus_fast
        except ImportError as exc:
            raise ChannelError("dbus_fast cannot be imported", "install fluxbudget anew") from exc

        async def cancellable() -> None:
            with anyio.CancelScope() as scope:
                self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
                if not self._given_up:
                    await show(address, self._bubble, memory, self.seconds_left)

        anyio.run(cancellable)

    def give_up(self) -> None:
        """Make it end, if it has not; called on the daemon's loop."""
        self._given_up = True
        if self._cancel is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._cancel()


def _hangs() -> ChannelError:
    return ChannelError("a notification is under way and does not come to an end", "does the session bus hang?")
