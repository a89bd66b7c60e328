"""The log: for people on a terminal, entries with fields in systemd's journal, otherwise JSON lines on stderr.

Only counts, names, times and ids are ever logged.
"""

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fluxbudgetd.systemd.journal import Entry, Journal, is_journal, lines

T = TypeVar("T")

_MOST_ENTRIES = 1000
_CLOSE_SECONDS = 1.0


class _Writer(Generic[T]):
    """Writes entries in a thread of its own. If the reader is gone or stalled, entries are lost."""

    def __init__(self, write: Callable[[T], None]) -> None:
        self._write_one = write
        self._entries: queue.Queue[tuple[T] | None] = queue.Queue(_MOST_ENTRIES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, message: T) -> None:
        with suppress(queue.Full):
            self._entries.put_nowait((message,))

    debug = info = warning = error = critical = exception = msg

    def close(self) -> None:
        """Wait until the last entries are written, but not for a stalled reader."""
        with suppress(queue.Full):
            self._entries.put_nowait(None)
        self._thread.join(_CLOSE_SECONDS)

    def _write(self) -> None:
        while (entry := self._entries.get()) is not None:
            self._write_one(*entry)


def configure() -> Callable[[], None]:
    """Set up structlog for this process; return the function to call at its end."""
    # Tracebacks as plain text: rich ones show local variables, which may hold other people's data.
    if is_journal(2, os.environ):
        journal = Journal()
        return _configured(_Writer(journal.write), [structlog.processors.format_exc_info, _journal_entry])
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if sys.stderr is not None and sys.stderr.isatty():
        shown = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return _configured(_Writer(_write_line), [stamped, _printable, shown])
    rendered = structlog.processors.JSONRenderer()
    return _configured(_Writer(_write_line), [stamped, structlog.processors.format_exc_info, rendered])


def write_now(text: str) -> None:
    """Write a fatal error to stderr, bypassing the queue."""
    written = lines(text) if is_journal(2, os.environ) else f"{text}\n".encode("utf-8", "backslashreplace")
    with suppress(OSError):
        os.write(2, written)


def _configured(writer: _Writer[T], last: list[Processor]) -> Callable[[], None]:
    structlog.configure(
        processors=[structlog.processors.add_log_level, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_arguments: writer,
        cache_logger_on_first_use=True,
    )
    return writer.close


def _write_line(line: str) -> None:
    # Not through sys.stderr: a stalled write would hold its lock when the interpreter exits.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))


def _journal_entry(_logger: WrappedLogger, _name: str, event: EventDict) -> tuple[tuple[Entry], dict[str, object]]:
    return (Entry(event),), {}


def _printable(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Escape what could move a terminal's cursor: ids and names come from other programs."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event
