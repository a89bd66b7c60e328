"""The usual case without a task: one callback receives a request, answers it and sends the answer.

A hook connects, sends one request, reads the answer and closes. A task and a stream for each connection would cost more
than the answer. So a connection only has a task (`Connection`) while it waits for something other than its next
request: the rest of a frame, an answer, a stream, room for unsent bytes. Otherwise it is idle and belongs to
`QuickConnections`.

anyio has no callbacks, so this is the only file of the server that uses asyncio.

Each callback accepts a few connections and answers the first request of each, or it answers rounds of requests, one of
each connection that has sent one, until none is left or a limit is reached. A peer that sends many requests at once
waits its turn like the others.

All idle connections share one epoll object, which the event loop watches. A callback therefore knows which of them have
sent a request. In a round, it receives these requests, handles them together, so that they share one check of the
sources, and only then sends the answers: a program with several connections is then woken once, not once per answer.
Registering each connection with the event loop would also cost more.
"""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager

from fluxbudgetd import errors
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.limited_log import LimitedLog
from fluxbudgetd.server.peer import Peer
from fluxbudgetd.server.requests import Responder, Response
from fluxbudgetd.wire.framing import FrameError, whole_message

# More than the usual request needs. From 64 KiB on, malloc returns memory to the kernel each time it is freed.
_CHUNK_BYTES = 32 << 10
# How many connections are accepted, and their first requests answered, before other callbacks run.
_ACCEPT_AT_ONCE = 16
# How many requests of idle connections are answered before other callbacks run.
_ANSWER_AT_ONCE = 32
_ACCEPT_PAUSE_SECONDS = 0.05

#: What a connection waits for: the rest of a frame (None), or a response.
Waiting = Response | Awaitable[Response] | None

log = LimitedLog()


class Acceptor:
    """Accepts the connections of a listening socket. `on_connection` is called with each."""

    def __init__(self, on_connection: Callable[[socket.socket], None], make_room: Callable[[], bool]) -> None:
        self._on_connection = on_connection
        self._make_room = make_room
        self._listening: socket.socket | None = None

    def start(self, listening: socket.socket) -> None:
        """Accept from a listening, non-blocking socket."""
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening, self._accept_some, listening)

    def stop(self, *, leave_queue: bool) -> None:
        """Stop accepting. `leave_queue`: connections that wait in the kernel's queue stay there."""
        listening, self._listening = self._listening, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            while not leave_queue and self._accept(listening):
                continue

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            if not self._accept(listening):
                return

    def _accept(self, listening: socket.socket) -> bool:
        """Accept a connection; return False if there is none, or it cannot be accepted now."""
        try:
            peer, _ = listening.accept()
        except BlockingIOError:
            return False
        except OSError as exc:
            # No descriptor is free, or the peer has closed already. Open connections are not affected. (Without a free
            # descriptor, the kernel reports this even if no connection waits.)
            if not _is_readable(listening):
                return False
            if self._make_room():
                return True
            log.warning("connection not accepted", error=str(exc))
            self._pause(listening)
            return False
        peer.setblocking(False)
        self._on_connection(peer)
        return True

    def _pause(self, listening: socket.socket) -> None:
        """Stop accepting for a moment, because the kernel would report the same connection again at once."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)

        def go_on() -> None:
            if self._listening is listening:
                self.start(listening)

        loop.call_later(_ACCEPT_PAUSE_SECONDS, go_on)


class QuickConnections:
    """The connections without a task.

    Requests that arrive together, or one that arrives alone, are handled in one block of `turn`, which begins after the
    last of them was received.
    `on_waiting` is called when a connection has to wait for something, and owns it until it passes it to `start` again.
    `on_closed` is called after a connection was closed here.
    """

    def __init__(
        self,
        responder: Responder,
        turn: AbstractContextManager[object],
        draining: Draining,
        on_waiting: Callable[[Peer, Waiting], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._responder = responder
        self._turn = turn
        self._draining = draining
        self._on_waiting = on_waiting
        self._on_closed = on_closed
        # The connections that are watched, by their descriptors, and those whose next turn is scheduled.
        self._idle: dict[int, Peer] = {}
        self._scheduled: set[Peer] = set()
        self._turns = 0
        self._epoll: select.epoll | None = None

    @property
    def idle(self) -> tuple[Peer, ...]:
        """Return the idle connections, the longest idle first."""
        return tuple(sorted(self._idle.values(), key=lambda peer: peer.idle_since))

    def open(self) -> None:
        """Prepare to serve; `close` ends it."""
        self._epoll = select.epoll()
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._serve_ready, self._epoll)

    def start(self, peer: Peer) -> None:
        """Serve a connection: a new one, or one that has waited for something."""
        if peer.decoder is not None and not peer.decoder.buffered:
            peer.decoder = None
        self._serve(peer)

    def close_idle(self) -> bool:
        """Close the connection that has been idle longest; return False if none is idle."""
        found = next((peer for peer in self.idle if not peer.has_sent()), None)
        if found is not None:
            self._close(found)
        return found is not None

    def drain(self) -> None:
        """Answer what idle connections have sent, and close those that `Draining` says are over."""
        for peer in self.idle:
            self._serve(peer)

    def close(self) -> None:
        """Close every connection."""
        for peer in (*self._idle.values(), *self._scheduled):
            self._close(peer)
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            asyncio.get_running_loop().remove_reader(epoll.fileno())
            epoll.close()

    def _serve_ready(self, epoll: select.epoll) -> None:
        """Serve the idle connections that have sent a request, and those that send one meanwhile, up to a limit.

        A program that has had its answers may have sent its next requests already. Serving them here saves a turn of
        the event loop.
        """
        left = _ANSWER_AT_ONCE
        while left > 0 and (found := epoll.poll(0, left)):
            left -= len(found)
            self._serve_together([peer for fd, _ in found if (peer := self._idle.get(fd)) is not None])

    def _serve_together(self, ready: Iterable[Peer]) -> None:
        """Receive the next request of each connection, if it has arrived; answer them all; then send the answers."""
        received = [(peer, message) for peer in ready if (message := self._receive(peer)) is not None]
        if not received:
            return
        with self._turn:
            responses = [(peer, self._responder.respond(message, peer.pid)) for peer, message in received]
        for peer, response in responses:
            self._finish(peer, response)

    def _serve(self, peer: Peer) -> None:
        """Answer the connection's next request if it has arrived."""
        message = self._receive(peer)
        if message is not None:
            with self._turn:
                response = self._responder.respond(message, peer.pid)
            self._finish(peer, response)

    def _receive(self, peer: Peer) -> bytes | None:
        """Return the connection's next request; None if it is not complete yet."""
        try:
            message = _next_message(peer)
        except BlockingIOError:
            if self._draining.is_over(was_answered=peer.was_answered):
                self._close(peer)
            else:
                self._watch(peer)
        except OSError:
            self._close(peer)
        except FrameError as exc:
            self._close(peer, errors.TooLargeError(str(exc), "see docs/protocol.md"))
        except Exception as exc:  # noqa: BLE001  a defect affects only its own connection
            log.failure("connection failed", exc)
            self._close(peer)
        else:
            if message is None:
                self._wait(peer, None)
            return message
        return None

    def _finish(self, peer: Peer, response: Response | Awaitable[Response]) -> None:
        """Send a response, or have the connection wait for it."""
        if isinstance(response, bytes):
            self._send(peer, response)
        else:
            self._wait(peer, response)

    def _send(self, peer: Peer, answer: bytes) -> None:
        """Send an answer; a connection whose peer does not take all of it has to wait."""
        try:
            sent = peer.send_now(answer)
        except OSError:
            self._close(peer)
            return
        if sent < len(answer):
            self._wait(peer, answer[sent:])
            return
        peer.was_answered = True
        if peer.decoder is None and not self._draining.has_begun:
            self._watch(peer)
        else:
            self._schedule(peer)

    def _wait(self, peer: Peer, waiting: Waiting) -> None:
        self._unwatch(peer)
        self._on_waiting(peer, waiting)

    def _schedule(self, peer: Peer) -> None:
        """Let other connections take a turn before this one's next request."""
        self._unwatch(peer)
        self._scheduled.add(peer)
        asyncio.get_running_loop().call_soon(self._scheduled_turn, peer)

    def _scheduled_turn(self, peer: Peer) -> None:
        if peer in self._scheduled:  # it has not been closed meanwhile
            self._scheduled.discard(peer)
            self._serve(peer)

    def _watch(self, peer: Peer) -> None:
        """Watch the connection's socket, and record that it is idle from now on."""
        self._turns += 1
        peer.idle_since = self._turns
        fd = peer.socket.fileno()
        if fd not in self._idle:
            self._idle[fd] = peer
            if self._epoll is not None:
                self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, peer: Peer) -> None:
        fd = peer.socket.fileno()
        if self._idle.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def _close(self, peer: Peer, error: errors.FluxError | None = None) -> None:
        self._unwatch(peer)
        self._scheduled.discard(peer)
        peer.close(error)
        self._on_closed()


def _is_readable(checked: socket.socket) -> bool:
    poll = select.poll()
    poll.register(checked, select.POLLIN)
    return bool(poll.poll(0))


def _next_message(peer: Peer) -> bytes | None:
    """Return the next message; None if only a part of it has arrived."""
    decoder = peer.decoder
    if decoder is None:
        data = peer.socket.recv(_CHUNK_BYTES)
        if (message := whole_message(data)) is not None:
            return message
        if not data:
            raise ConnectionResetError
        decoder = peer.feed(data)
    message = decoder.next()
    if not decoder.buffered:
        peer.decoder = None
    return message
