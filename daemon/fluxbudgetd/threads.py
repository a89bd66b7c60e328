"""Large computations off the event loop."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")

# With fewer records the work takes less than a millisecond, and a thread would cost more.
_INLINE_RECORDS = 200


async def off_loop(size: int, function: Callable[..., T], *arguments: object) -> T:
    """Return the function's result. It runs in a worker thread if `size`, its number of records, is large."""
    if size <= _INLINE_RECORDS:
        return function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments)
