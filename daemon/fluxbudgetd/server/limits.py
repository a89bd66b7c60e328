"""What the server allows: how many connections, how many bytes, how much time."""

import msgspec

#: How many connections the kernel queues until the server accepts them.
BACKLOG = 512


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The server's limits. Per connection unless stated otherwise."""

    connections: int = 1024
    """How many may be open at a time. For one more, the one that has been idle longest is closed; if none is idle, the
    new one gets the error `busy`."""
    first_request_seconds: float = 1.0
    """While the server drains, how long a new connection may take to send its first request."""
    frame_seconds: float = 10.0
    """How long a frame may take from its first byte to its last."""
    request_seconds: float = 30.0
    """How long a request may take."""
    send_seconds: float = 10.0
    """How long a peer may take to read an answer. A stream's answers have no limit."""
    small_bytes: int = 16 << 10
    """Messages of up to this size are never refused for lack of memory."""
    shared_bytes: int = 16 << 20
    """How many bytes of unfinished requests, and how many of unread answers, all connections may hold together."""


class ByteCount:
    """The bytes that all connections hold together. Owners add to `held` and subtract again."""

    def __init__(self, limits: Limits) -> None:
        self.held = 0
        self._limits = limits

    def is_too_much(self, size: int) -> bool:
        """Return True if a message of this size must be refused, because too many bytes are held."""
        return size > self._limits.small_bytes and self.held > self._limits.shared_bytes
