"""Log entries for systemd's journal, in its own protocol: a priority, and fields that can be searched.

`journalctl --user-unit=fluxbudgetd FLUXBUDGET_RUN=…` finds what was logged about a run. Entries carry no time: the
journal adds it.
"""

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
# Keys of structlog's that do not become fields.
_RESERVED = ("event", "level", "exception")


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Return True if a file descriptor is connected to the journal."""
    with suppress(OSError):
        found = os.fstat(descriptor)
        return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


class Entry:
    """One entry, made from structlog's `event`, `level`, optional `exception`, and fields."""

    def __init__(self, event: Mapping[str, object]) -> None:
        self.priority = _PRIORITIES.get(str(event.get("level")), _PRIORITIES["info"])
        self._fields = {key: str(value) for key, value in event.items() if key not in _RESERVED}
        words = [str(event.get("event", "")), *(f"{key}={value}" for key, value in self._fields.items())]
        traceback = event.get("exception")
        self.message = " ".join(words) + (f"\n{traceback}" if traceback else "")

    def datagram(self) -> bytes:
        """Return the entry in the journal's protocol."""
        named = {f"FLUXBUDGET_{key.upper()}": value for key, value in self._fields.items() if key.isidentifier()}
        fields = {
            "MESSAGE": self.message,
            "PRIORITY": str(self.priority),
            "SYSLOG_IDENTIFIER": "fluxbudgetd",
            **named,
        }
        return b"".join(_field(name, value.encode("utf-8", "backslashreplace")) for name, value in fields.items())

    def lines(self) -> bytes:
        """Return the entry as lines for stderr. Each starts with its priority, which the journal reads."""
        return lines(self.message, self.priority)


def lines(text: str, priority: int = _PRIORITIES["error"]) -> bytes:
    """Return text as lines that each start with a priority (0 to 7)."""
    return "".join(f"<{priority}>{line}\n" for line in text.splitlines()).encode("utf-8", "backslashreplace")


class Journal:
    """Sends entries to the journal, or to stderr if the journal's socket does not accept them."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def write(self, entry: Entry) -> None:
        """Send an entry. Waits if the journal is slow."""
        try:
            self._socket.sendto(entry.datagram(), self._path)
        except OSError:
            with suppress(OSError):
                os.write(2, entry.lines())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
