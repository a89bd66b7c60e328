"""How connections are closed when the server stops, without losing a request that was sent.

A connection that has had an answer is closed as soon as it has nothing left to read. A new one has a moment to send its
first request, and is closed after the answer. Streams end at once.
"""

import anyio


class Draining:
    """Tracks the streams, and decides which connections must be closed."""

    def __init__(self) -> None:
        self._streams: set[anyio.CancelScope] = set()
        #: True once the server drains.
        self.has_begun = False
        self._includes_new = False

    def is_over(self, *, was_answered: bool) -> bool:
        """Return True if a connection with nothing left to read must be closed; `was_answered` if it had an answer."""
        return self.has_begun and (was_answered or self._includes_new)

    def add_stream(self, scope: anyio.CancelScope) -> None:
        """Record a stream; cancelling its scope ends it."""
        self._streams.add(scope)

    def remove_stream(self, scope: anyio.CancelScope) -> None:
        """Record that a stream has ended."""
        self._streams.discard(scope)

    def begin(self) -> None:
        """End the streams, and begin to close connections that have had an answer."""
        self.has_begun = True
        for scope in self._streams:
            scope.cancel()

    def include_new(self) -> None:
        """Also close connections that have not sent a request."""
        self._includes_new = True
