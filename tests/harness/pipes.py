"""Pipes that are full."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Pipe(NamedTuple):
    """Both ends of a pipe."""

    reading: int
    writing: int


@contextmanager
def full_pipe(room: int = 0) -> Iterator[Pipe]:
    """Make an unread pipe with room for only this many bytes (whole pages)."""
    pipe = Pipe(*os.pipe())
    try:
        fill(pipe.writing)
        if room:
            os.read(pipe.reading, room)
        yield pipe
    finally:
        os.close(pipe.reading)
        os.close(pipe.writing)


def fill(file: int) -> None:
    """Fill a pipe, so that the next write blocks."""
    os.set_blocking(file, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(file, b"x" * 4096)
    os.set_blocking(file, True)
