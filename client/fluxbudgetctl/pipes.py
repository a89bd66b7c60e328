"""stdin, stdout and stderr of the verbs that Claude Code calls: bytes, bounded, and never waited for too long."""

from __future__ import annotations

import errno
import os
import select
import sys
import time

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from typing import TextIO

#: Of a longer input this many bytes are sent. (What a hook is told of a tool's output has no limit.)
KEPT = 256 * 1024
_CHUNK = 64 * 1024


class Input:
    """What stood on stdin."""

    def __init__(self, data: bytes, *, whole: bool, ended: bool) -> None:
        self.data = data
        self.whole = whole
        """False: there was more, which has been thrown away."""
        self.ended = ended
        """False: the end had not come when the time was up."""


def read(deadline: float) -> Input:
    """Read stdin to its end, or until the deadline (by the monotonic clock).

    A terminal, a stdin that is closed and one that cannot be read are empty: they hold nothing for a hook.
    """
    kept = bytearray()
    whole = True
    try:
        if sys.stdin is None or os.isatty(0):
            return Input(b"", whole=True, ended=True)
        waiting = select.poll()
        waiting.register(0, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                return Input(bytes(kept), whole=whole, ended=False)
            data = os.read(0, _CHUNK)
            if not data:
                break
            whole = whole and len(kept) + len(data) <= KEPT
            kept += data[: KEPT - len(kept)]
    except OSError:
        pass  # what has come so far is all there is
    return Input(bytes(kept), whole=whole, ended=True)


def write(line: str, deadline: float, to: TextIO | None) -> None:
    """Write a line to stdout or stderr as UTF-8, whatever the locale: it is Claude Code that reads it.

    Raises `OSError`; `TimeoutError` when the deadline (by the monotonic clock) has come and nobody makes room for the
    rest. What there is room for is written even then.
    """
    if to is None:  # closed; its descriptor may be another file's by now
        return
    file = to.fileno()
    waiting = select.poll()
    waiting.register(file, select.POLLOUT)
    data = f"{line}\n".encode()
    while data:
        if not waiting.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nobody has read it in time")
        # For more than this a pipe's room may be too small, and the writing waits.
        data = data[os.write(file, data[: select.PIPE_BUF]) :]
