"""How connections end when the server stops: no request that was sent is lost.

A connection that has been answered ends as soon as it has nothing left to read. A new one may still send its first
request for a moment, and ends when that has been answered. Streams end at once.
"""

import socket

import anyio


class Draining:
    """Knows the streams and the connections that wait for a request, and ends them when the server stops."""

    def __init__(self) -> None:
        self._idle: dict[socket.socket, bool] = {}
        self._streams: set[anyio.CancelScope] = set()
        self._has_begun = False
        self._includes_new = False

    @property
    def has_begun(self) -> bool:
        """True if connections are to end."""
        return self._has_begun

    @property
    def idle(self) -> tuple[socket.socket, ...]:
        """Return the sockets of the connections that wait for a request, the longest waiting first."""
        return tuple(self._idle)

    def is_over(self, *, was_answered: bool) -> bool:
        """Return True if a connection with nothing left to read is to end; `was_answered` if it had a request."""
        return self._has_begun and (was_answered or self._includes_new)

    def add_idle(self, peer: socket.socket, *, was_answered: bool) -> None:
        """Note that a connection waits for its next request."""
        self._idle[peer] = was_answered

    def remove_idle(self, peer: socket.socket) -> None:
        """Note that a connection waits no longer."""
        del self._idle[peer]

    def add_stream(self, scope: anyio.CancelScope) -> None:
        """Note a stream, which ends if its scope is cancelled."""
        self._streams.add(scope)

    def remove_stream(self, scope: anyio.CancelScope) -> None:
        """Note that a stream has ended."""
        self._streams.discard(scope)

    def begin(self) -> None:
        """End the streams, and the connections that have been answered."""
        self._has_begun = True
        for scope in self._streams:
            scope.cancel()
        self._wake()

    def include_new(self) -> None:
        """End the connections that have not sent a request, too."""
        self._includes_new = True
        self._wake()

    def _wake(self) -> None:
        for peer, was_answered in tuple(self._idle.items()):
            if self.is_over(was_answered=was_answered):
                anyio.notify_closing(peer)
