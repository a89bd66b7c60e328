"""Doing arithmetic off the event loop when there is much of it."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")

# Below this many records the work takes less than a millisecond, and a thread would cost more.
_INLINE_RECORDS = 200


async def off_loop(size: int, function: Callable[..., T], *arguments: object) -> T:
    """Return the function's result; it is called in a worker thread when it has many records to go through."""
    if size <= _INLINE_RECORDS:
        return function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments)
