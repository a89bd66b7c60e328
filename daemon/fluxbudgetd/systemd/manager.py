"""The service manager that started this process, and the messages to it (`sd_notify(3)`).

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
    """The manager's address (None: no manager), and the watchdog's time in seconds (None: no watchdog)."""

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.address = address
        self.watchdog = watchdog

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> "Manager":
        """Return this process's manager, and remove its variables, so that child processes do not inherit them."""
        address, microseconds, recipient = (environ.pop(name, "") for name in _VARIABLES)
        is_watched = microseconds.isdecimal() and int(microseconds) > 0 and recipient in ("", str(pid))
        return cls(address or None, int(microseconds) / 1e6 if address and is_watched else None)

    async def ready(self, status: str) -> None:
        """Report that requests are answered, at the start or after a reload."""
        await self._send("READY=1", _status(status))

    async def status(self, status: str) -> None:
        """Report in one line what the daemon is doing."""
        await self._send(_status(status))

    async def alive(self) -> None:
        """Feed the watchdog."""
        await self._send("WATCHDOG=1")

    async def reloading(self) -> None:
        """Report that the configuration is being reloaded; `ready` reports the end of that."""
        await self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def stopping(self, status: str) -> None:
        """Report that the daemon is about to stop."""
        await self._send("STOPPING=1", _status(status))

    async def _send(self, *lines: str) -> None:
        """Send one message. It is dropped if the manager is gone, or does not read it within a second."""
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
