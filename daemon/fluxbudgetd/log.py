"""Logs on stderr: for people on a terminal, JSON lines otherwise. Only counts, names, times and ids are ever logged."""

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_MOST_LINES = 1000
_LAST_WORDS_SECONDS = 1.0


class _Stderr:
    """Writes lines, in a thread of its own: a reader that has gone, or stands still, loses lines, never the daemon."""

    def __init__(self) -> None:
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, message: str) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(f"{message}\n".encode("utf-8", "backslashreplace"))

    debug = info = warning = error = critical = exception = msg

    def close(self) -> None:
        """Wait for the last lines, but not for a reader that stands still."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_LAST_WORDS_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # Not through sys.stderr, whose lock a write that stands still would hold at the interpreter's end.
            with suppress(OSError):
                os.write(2, line)


def configure() -> Callable[[], None]:
    """Set structlog up for this process; return what has to be called at its end."""
    stderr = _Stderr()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    # Tracebacks as plain text: structlog's richer ones carry local variables, which may hold other people's data.
    last: list[Processor] = (
        [_printable, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_arguments: stderr,
        cache_logger_on_first_use=True,
    )
    return stderr.close


def _printable(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Write out what could move a terminal's cursor: ids and names are other people's."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event
