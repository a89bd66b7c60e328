"""Logs on stderr: for people on a terminal, JSON lines otherwise. Only counts, names, times and ids are ever logged."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


class _Stderr:
    """Writes a line; a reader that has gone, a full disk or a closed stderr loses the line, never the daemon."""

    def msg(self, message: str) -> None:
        try:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            return

    debug = info = warning = error = critical = exception = msg


def configure() -> None:
    """Set structlog up for this process."""
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
        logger_factory=lambda *_arguments: _Stderr(),
        cache_logger_on_first_use=True,
    )


def _printable(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Write out what could move a terminal's cursor: ids and names are other people's."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event
