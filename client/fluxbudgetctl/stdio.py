"""stdin and stdout of the piped verbs, with limits of size and time."""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from fluxbudgetd.wire.framing import MAX_STDIN

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from typing import TextIO

_CHUNK = 64 * 1024


class Stdin:
    """What has been read of stdin. One that is a terminal, closed or unreadable counts as empty."""

    def __init__(self, *, is_read: bool) -> None:
        """Without `is_read`, stdin is not touched and counts as empty."""
        self.data = bytearray()
        self.is_cut = False
        """There was more than `MAX_STDIN` bytes; the rest has been discarded."""
        self.has_ended = not is_read or sys.stdin is None or os.isatty(0)

    def read(self) -> None:
        """Read once; waits if there is nothing to read."""
        try:
            chunk = os.read(0, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        room = MAX_STDIN - len(self.data)
        self.data += chunk[:room]
        self.is_cut = self.is_cut or len(chunk) > room
        self.has_ended = not chunk

    def read_available(self) -> None:
        """Read what can be read without waiting."""
        while not self.has_ended and not self.is_cut and self.wait(0):
            self.read()

    def wait(self, deadline: float) -> bool:
        """Wait until there is something to read, or its end; False if that is not so at the deadline (monotonic)."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))


def write(data: bytes, file: TextIO | None, deadline: float | None = None) -> None:
    """Write to stdout or stderr, past Python's buffer; raises `OSError`.

    With a deadline (monotonic seconds), raises `TimeoutError` if by then the reader has not made room for the rest.
    Even after the deadline it writes as much as there is room for. Without one, it waits for the reader.
    """
    if file is None:  # closed; its descriptor may belong to another file by now
        return
    fd = file.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while data:
        if deadline is None:
            data = data[os.write(fd, data) :]
        elif poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            # A writable pipe has room for PIPE_BUF bytes; writing more could block.
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
        else:
            raise TimeoutError(errno.ETIMEDOUT, "the reader did not read it in time")
