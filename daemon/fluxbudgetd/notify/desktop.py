"""Notification bubbles on the desktop, through the session bus.

dbus_fast takes a tenth of a second and megabytes to import, so it is imported with the first bubble, and never on the
daemon's event loop. Each bubble is shown in a worker thread, on its own short-lived loop, which leaves nothing open.
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
from fluxbudgetd.notify.shown_bubbles import ShownBubbles

__all__ = ["Bubble", "Desktop", "Urgency"]

# An attempt ends at its deadline. If it has not ended this much later, it hangs.
_GRACE_SECONDS = 0.5


class Desktop:
    """Shows bubbles, one at a time, on the session bus of this environment and user."""

    def __init__(self, environ: Mapping[str, str], uid: int) -> None:
        self._configured_address = environ.get("DBUS_SESSION_BUS_ADDRESS", "")
        runtime_dir = environ.get("XDG_RUNTIME_DIR", "")
        self._default_path = os.path.join(runtime_dir if runtime_dir.startswith("/") else f"/run/user/{uid}", "bus")
        self._shown = ShownBubbles()
        self._threads = anyio.CapacityLimiter(1)
        # Held by the thread that shows a bubble, even after the attempt was abandoned.
        self._showing = threading.Lock()
        self._current: _Attempt | None = None

    async def show(self, bubble: Bubble, seconds: float) -> None:
        """Show a bubble, replacing the previous one with its key; raises `ChannelError`, after about `seconds` at most.

        The error is `resting` if there is no session bus, or the bus has no notification server and cannot start one.
        """
        current = self._current
        if current is not None and time.monotonic() >= current.until + _GRACE_SECONDS:
            raise _hangs()
        attempt = _Attempt(bubble, time.monotonic() + seconds)
        try:
            with anyio.fail_after(seconds + _GRACE_SECONDS):
                await anyio.to_thread.run_sync(self._run, attempt, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError as exc:
            raise _hangs() from exc
        finally:
            attempt.give_up()

    def _run(self, attempt: "_Attempt") -> None:
        if not self._showing.acquire(timeout=attempt.seconds_left):
            raise _hangs()
        try:
            self._current = attempt
            attempt.run(self._address(), self._shown)
        finally:
            self._current = None
            self._showing.release()

    def _address(self) -> str:
        """Return the bus's address. Never start a bus: without a desktop, it has no notification server."""
        if self._configured_address:
            return self._configured_address
        if not os.path.exists(self._default_path):
            hint = "the daemon runs outside a desktop session; $DBUS_SESSION_BUS_ADDRESS can name a bus"
            raise ChannelError("there is no session bus", hint, resting=True)
        return f"unix:path={quote(os.fsencode(self._default_path)).replace('~', '%7E')}"


class _Attempt:
    """One attempt to show a bubble. `until` is its deadline, in seconds of the monotonic clock."""

    def __init__(self, bubble: Bubble, until: float) -> None:
        self.until = until
        self._bubble = bubble
        self._given_up = False
        self._cancel: Callable[[], object] | None = None

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def run(self, address: str, shown: ShownBubbles) -> None:
        """Show the bubble; called in a worker thread."""
        try:
            from fluxbudgetd.notify.session_bus import show  # noqa: PLC0415  it imports dbus_fast
        except ImportError as exc:
            raise ChannelError("dbus_fast cannot be imported", "install fluxbudget again") from exc

        async def cancellable() -> None:
            with anyio.CancelScope() as scope:
                self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
                if not self._given_up:
                    await show(address, self._bubble, shown, self.seconds_left)

        anyio.run(cancellable)

    def give_up(self) -> None:
        """Cancel the attempt if it has not ended; called on the daemon's loop."""
        self._given_up = True
        if self._cancel is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._cancel()


def _hangs() -> ChannelError:
    return ChannelError("an earlier notification hangs", "check that the session bus responds")
