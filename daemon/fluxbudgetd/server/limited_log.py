"""Rate-limited logging, for events that a peer can cause any number of times."""

import time

import structlog

_SECONDS = 10.0

log = structlog.get_logger()


class LimitedLog:
    """Logs an event at most once in ten seconds. The next line says how many were left out."""

    def __init__(self) -> None:
        # By event, or by line of code that raised: when it may be logged again, and how many were left out.
        self._events: dict[object, tuple[float, int]] = {}

    def warning(self, event: str, **fields: object) -> None:
        """Log a warning."""
        left_out = self._count(event)
        if left_out is not None:
            log.warning(event, **fields, **left_out)

    def failure(self, event: str, exc: Exception) -> None:
        """Log a defect with its traceback."""
        left_out = self._count((event, _origin(exc)))
        if left_out is not None:
            log.error(event, exc_info=exc, **left_out)

    def _count(self, key: object) -> dict[str, int] | None:
        """Return the fields to add to the line, or None if it is left out."""
        now = time.monotonic()
        next_at, left_out = self._events.get(key, (now, 0))
        if now < next_at:
            self._events[key] = (next_at, left_out + 1)
            return None
        self._events[key] = (now + _SECONDS, 0)
        return {"left_out": left_out} if left_out else {}


def _origin(exc: Exception) -> tuple[object, int]:
    """Return the line of code that has raised an exception."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return (None, 0) if frames is None else (frames.tb_frame.f_code, frames.tb_lineno)
