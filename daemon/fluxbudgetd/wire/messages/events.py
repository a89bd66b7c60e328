"""The stream of events."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import Answer, Request


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    """Turn the connection into a stream of events, until either end closes it.

    First comes `subscribed`, then every event in the order of its number, without gaps or duplicates; a `heartbeat`
    after a period without events; `lagged` if the client reads so slowly that the following events come from disk.
    """

    since: int | None = None
    """Start after this number; if omitted, with the next event."""
    run: str | None = None
    """Only this run's events."""
    heartbeat_ms: int = 15_000
    """Send a heartbeat after this much silence, at least 100 ms; 0: never."""


class SubscribedAnswer(Answer, frozen=True, kw_only=True, tag="subscribed"):
    """The start of the stream."""

    since: int
    """The events that follow have higher numbers. If this is less than the request's `since`, the ledger is a new one
    and the stream starts at its beginning."""
    last: int
    """The number of the last event so far."""


class By(msgspec.Struct, frozen=True, kw_only=True):
    """The process that caused an event: the client that sent the request."""

    kind: Literal["terminal", "session", "service", "unknown"]
    """"session": it descends from a session of Claude Code; "terminal": it has a terminal; "service": it has neither;
    "unknown": one of its ancestors cannot be read, so it may descend from a session."""
    pid: int
    comm: str
    """The process's name, at most 15 bytes."""


class EventAnswer(Answer, frozen=True, kw_only=True, tag="event"):
    """An event."""

    seq: int
    """Strictly increasing, never reused."""
    at: str
    run: str | None
    """Null for events about a source."""
    kind: str
    data: dict[str, str | int | float | None]
    by: By | None = None
    """Null: the daemon itself, or the process is not known."""


class HeartbeatAnswer(Answer, frozen=True, kw_only=True, tag="heartbeat"):
    """Sent after a period without events."""

    at: str
    seq: int
    """All events up to this number have been sent."""


class LaggedAnswer(Answer, frozen=True, kw_only=True, tag="lagged"):
    """The client reads more slowly than events arrive. No event is lost; the following ones are read from disk."""

    at: str
    seq: int
    """All events up to this number have been sent."""
    behind: int
    """The number of events after `seq`."""
