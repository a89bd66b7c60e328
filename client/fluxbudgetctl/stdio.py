"""stdin, stdout and stderr, with limits of size and time."""

import errno
import posix
import select
import sys
import time

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from typing import TextIO

#: This many bytes of a longer input are kept. (A tool's output, which a hook gets, can be of any size.)
MAX_INPUT = 256 * 1024
_CHUNK = 64 * 1024


class Stdin:
    """What has been read of stdin. A closed or unreadable stdin, or a terminal, counts as empty."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_cut = False
        """There was more, which has been discarded."""
        self.has_ended = sys.stdin is None or posix.isatty(0)

    def read(self) -> None:
        """Read once; waits if there is nothing to read."""
        try:
            chunk = posix.read(0, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        room = MAX_INPUT - len(self.data)
        self.data += chunk[:room]
        self.is_cut = self.is_cut or len(chunk) > room
        self.has_ended = not chunk

    def read_available(self) -> None:
        """Read what can be read without waiting."""
        while not self.has_ended and not self.is_cut and self.wait(0):
            self.read()

    def wait(self, deadline: float) -> bool:
        """Wait until stdin is readable or at its end; return False if the deadline (monotonic seconds) comes first."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))


def wait_for(peer: int, deadline: float, *, is_sending: bool, is_reading: bool) -> dict[int, int]:
    """Wait for a connection and, with `is_reading`, for stdin; return the events of each. Raises `TimeoutError`."""
    poll = select.poll()
    poll.register(peer, select.POLLIN | (select.POLLOUT if is_sending else 0))
    if is_reading:
        poll.register(0, select.POLLIN)
    left = deadline - time.monotonic()
    ready = poll.poll(left * 1000) if left > 0 else []
    if not ready:
        raise TimeoutError
    return dict(ready)


def write(data: bytes, file: "TextIO | None", deadline: float | None) -> None:
    """Write to stdout or stderr, past Python's buffer; raises `OSError`.

    With a deadline (monotonic seconds), raises `TimeoutError` if the reader has not made room by then; what fits is
    written even after the deadline. Without one, waits for the reader.
    """
    if file is None:  # closed; its descriptor may belong to another file by now
        return
    fd = file.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while data:
        if deadline is not None and not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the reader did not read it in time")
        # A writable pipe has room for PIPE_BUF bytes; writing more could block.
        piece = data if deadline is None else data[: select.PIPE_BUF]
        try:
            data = data[posix.write(fd, piece) :]
        except BlockingIOError:  # another program has made the file non-blocking
            poll.poll(None if deadline is None else max(deadline - time.monotonic(), 0) * 1000)
