"""Pipes and FIFOs that have no room."""

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
    """Give a pipe that nobody reads, with room for so many bytes (whole pages) only."""
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
    """Write until there is no room any more; who writes to it afterwards waits."""
    os.set_blocking(file, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(file, b"x" * 4096)
    os.set_blocking(file, True)
