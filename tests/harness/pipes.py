"""Pipes that stay open, and pipes that are full."""

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
def open_pipe() -> Iterator[Pipe]:
    """Make a pipe whose ends stay open unless the test closes them."""
    pipe = Pipe(*os.pipe())
    try:
        yield pipe
    finally:
        for file in pipe:
            with contextlib.suppress(OSError):
                os.close(file)


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
