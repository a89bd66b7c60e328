"""stdin, stdout and stderr of the verbs that Claude Code calls: limited in size and in time."""

from __future__ import annotations

import errno
import os
import select
import sys
import time

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from typing import TextIO

#: This many bytes of a longer input are sent. (A tool's output, which a hook gets, can be of any size.)
MAX_INPUT = 256 * 1024
_CHUNK = 64 * 1024


class Input:
    """What was read from stdin."""

    def __init__(self, data: bytes, *, whole: bool, ended: bool) -> None:
        self.data = data
        self.whole = whole
        """False if there was more, which was discarded."""
        self.ended = ended
        """False if the deadline came before the end of the input."""


def read_input(deadline: float) -> Input:
    """Read stdin to its end, or until the deadline (monotonic seconds).

    A stdin that is a terminal, closed or unreadable counts as empty.
    """
    data = bytearray()
    whole = True
    try:
        if sys.stdin is None or os.isatty(0):
            return Input(b"", whole=True, ended=True)
        poll = select.poll()
        poll.register(0, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return Input(bytes(data), whole=whole, ended=False)
            chunk = os.read(0, _CHUNK)
            if not chunk:
                break
            whole = whole and len(data) + len(chunk) <= MAX_INPUT
            data += chunk[: MAX_INPUT - len(data)]
    except OSError:
        pass  # use what has been read so far
    return Input(bytes(data), whole=whole, ended=True)


def write_line(line: str, deadline: float, file: TextIO | None) -> None:
    """Write a line to stdout or stderr, as UTF-8 in every locale because Claude Code reads it.

    Raises `OSError`; `TimeoutError` if at the deadline (monotonic seconds) the reader has not made room for the rest.
    Even after the deadline it writes as much as there is room for.
    """
    if file is None:  # closed; its descriptor may belong to another file by now
        return
    fd = file.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    data = f"{line}\n".encode()
    while data:
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the reader did not read it in time")
        # A writable pipe has room for PIPE_BUF bytes; writing more could block.
        data = data[os.write(fd, data[: select.PIPE_BUF]) :]
