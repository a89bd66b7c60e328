"""How connections are closed when the server stops, without losing a request that was sent.

A connection that has had an answer is closed as soon as it has nothing left to read. A new one has a moment to send its
first request, and is closed after the answer. Streams end at once.
"""

import socket

import anyio


class Draining:
    """Tracks the streams and the idle connections, and ends them when the server stops."""

    def __init__(self) -> None:
        self._idle: dict[socket.socket, bool] = {}
        self._streams: set[anyio.CancelScope] = set()
        self._has_begun = False
        self._includes_new = False

    @property
    def has_begun(self) -> bool:
        """True if connections must be closed."""
        return self._has_begun

    @property
    def idle(self) -> tuple[socket.socket, ...]:
        """Return the sockets of the connections that wait for a request, the longest waiting first."""
        return tuple(self._idle)

    def is_over(self, *, was_answered: bool) -> bool:
        """Return True if a connection with nothing left to read must be closed; `was_answered` if it had an answer."""
        return self._has_begun and (was_answered or self._includes_new)

    def add_idle(self, peer: socket.socket, *, was_answered: bool) -> None:
        """Record that a connection waits for its next request."""
        self._idle[peer] = was_answered

    def remove_idle(self, peer: socket.socket) -> None:
        """Record that a connection is no longer idle."""
        del self._idle[peer]

    def add_stream(self, scope: anyio.CancelScope) -> None:
        """Record a stream; cancelling its scope ends it."""
        self._streams.add(scope)

    def remove_stream(self, scope: anyio.CancelScope) -> None:
        """Record that a stream has ended."""
        self._streams.discard(scope)

    def begin(self) -> None:
        """End the streams, and close the connections that have had an answer."""
        self._has_begun = True
        for scope in self._streams:
            scope.cancel()
        self._wake()

    def include_new(self) -> None:
        """Close the connections that have not sent a request, too."""
        self._includes_new = True
        self._wake()

    def _wake(self) -> None:
        for peer, was_answered in tuple(self._idle.items()):
            if self.is_over(was_answered=was_answered):
                anyio.notify_closing(peer)
