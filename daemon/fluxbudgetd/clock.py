"""The wall clock."""

import time


def now_micros() -> int:
    """Return the time, in microseconds since the epoch."""
    return time.time_ns() // 1000
