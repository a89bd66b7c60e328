"""The service manager that has started this process, and what it is told (`sd_notify(3)`).

A message is one datagram of `NAME=value` lines to `$NOTIFY_SOCKET`. Without a manager nothing is sent.
"""

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

import anyio

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_SEND_SECONDS = 1.0


class Manager:
    """Where to send messages, and how long the watchdog waits for one (`watchdog`: seconds, or None)."""

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.address = address
        self.watchdog = watchdog

    @classmethod
    def taken(cls, environ: MutableMapping[str, str], pid: int) -> "Manager":
        """Return this process's manager, and take it out of the environment, which programs that it starts inherit."""
        address, microseconds, meant = (environ.pop(name, "") for name in _VARIABLES)
        is_watched = microseconds.isdecimal() and int(microseconds) > 0 and meant in ("", str(pid))
        return cls(address or None, int(microseconds) / 1e6 if address and is_watched else None)

    async def ready(self, status: str) -> None:
        """Tell that requests are answered, for the first time or after a reload."""
        await self._tell("READY=1", _status(status))

    async def status(self, status: str) -> None:
        """Tell in a line what the daemon is doing."""
        await self._tell(_status(status))

    async def alive(self) -> None:
        """Keep the watchdog from biting for as long as it waits."""
        await self._tell("WATCHDOG=1")

    async def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` tells the end of that."""
        await self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def stopping(self, status: str) -> None:
        """Tell that the daemon is about to end."""
        await self._tell("STOPPING=1", _status(status))

    async def _tell(self, *lines: str) -> None:
        """Send one message. A manager that has gone, or reads nothing for a second, is not told."""
        if self.address is None:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(os.fsencode(address))
            with anyio.move_on_after(_SEND_SECONDS):
                while True:
                    with suppress(BlockingIOError):
                        sender.send("\n".join(lines).encode("utf-8", "backslashreplace"))
                        return
                    await anyio.wait_writable(sender)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
