"""The server: accepts connections, makes room for them or refuses them, and closes them in order."""

import os
import socket
from contextlib import AbstractContextManager, nullcontext

import anyio
import anyio.abc

from fluxbudgetd import errors
from fluxbudgetd.server.connection import Connection, Shared
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.limited_log import LimitedLog
from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.server.peer import Peer, credentials_of, is_allowed
from fluxbudgetd.server.quick import Acceptor, QuickConnections, Waiting
from fluxbudgetd.server.requests import Handler, Responder

log = LimitedLog()


class Server:
    """Serves a listening socket until cancelled. A connection has a task only while it waits for something.

    Requests that arrive together are handled in one block of `turn`, which may be entered again and again.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits | None = None,
        turn: AbstractContextManager[object] = nullcontext(),  # noqa: B008  it has no state
    ) -> None:
        self._limits = limits = limits or Limits()
        self._draining = Draining()
        unsent = ByteCount(limits)
        responder = Responder(handler, limits, unsent)
        self._shared = Shared(responder, limits, self._draining, ByteCount(limits), unsent)
        self._quick = QuickConnections(responder, turn, self._draining, self._start_task, self._on_closed)
        self._acceptor = Acceptor(self._add, self._quick.close_idle)
        self._tasks: anyio.abc.TaskGroup | None = None
        # The connections that have a task.
        self._waiting: set[Peer] = set()
        self._connections = 0
        self._all_closed = anyio.Event()

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return self._connections

    @property
    def idle(self) -> tuple[socket.socket, ...]:
        """Return the sockets of the connections that wait for a request, the longest waiting first."""
        return tuple(peer.socket for peer in self._quick.idle)

    async def serve(self, listening: socket.socket) -> None:
        """Serve the connections of a listening, non-blocking socket until cancelled.

        No connection is lost: each is either served here, or stays in the kernel's queue for the next process that
        serves the socket.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._quick.open()
                self._acceptor.start(listening)
                await anyio.sleep_forever()
        finally:
            self._acceptor.stop(leave_queue=True)
            self._quick.close()
            for peer in self._waiting:  # their tasks were cancelled before they began
                peer.close()

    def move_to(self, listening: socket.socket) -> None:
        """Accept the connections in the current socket's queue, then those of another listening socket."""
        self._acceptor.stop(leave_queue=False)
        self._acceptor.start(listening)

    def stop_accepting(self, *, leave_queue: bool = True) -> None:
        """Accept no more connections: leave those in the kernel's queue for the next process, or accept them last."""
        self._acceptor.stop(leave_queue=leave_queue)

    async def drained(self) -> None:
        """Close every connection after its current answer, and wait until all are closed.

        No request that was sent is lost: a connection is closed when it has nothing left to read, and a new one after
        its first request has been answered.
        """
        self._draining.begin()
        self._quick.drain()
        with anyio.move_on_after(self._limits.first_request_seconds):
            await self._closed()
        self._draining.include_new()
        self._quick.drain()
        await self._closed()

    async def _closed(self) -> None:
        if self._connections:
            await self._all_closed.wait()

    def _add(self, accepted: socket.socket) -> None:
        """Serve a new connection, or refuse it."""
        pid, uid, _ = credentials_of(accepted)
        peer = Peer(accepted, pid)
        refusal = self._refusal(uid)
        if refusal is not None:
            peer.close(refusal)
            return
        self._connections += 1
        self._quick.start(peer)

    def _refusal(self, uid: int) -> errors.FluxError | None:
        """Return why a new connection of this user is not served, or None."""
        if not is_allowed(uid):
            log.warning("peer refused", uid=uid)
            return errors.ForbiddenError(
                f"this daemon serves uid {os.geteuid()}, not {uid}", "start your own fluxbudgetd"
            )
        if self._connections >= self._limits.connections and not self._quick.close_idle():
            return errors.BusyError(f"{self._limits.connections} connections are open", "close some, or try again")
        return None

    def _start_task(self, peer: Peer, waiting: Waiting) -> None:
        self._waiting.add(peer)
        if self._tasks is not None:
            self._tasks.start_soon(self._finish, peer, waiting)

    async def _finish(self, peer: Peer, waiting: Waiting) -> None:
        is_open, error = False, None
        try:
            is_open = await Connection(peer, self._shared).finish(waiting)
        except errors.FluxError as exc:
            error = exc
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            pass
        except Exception as exc:  # noqa: BLE001  a defect affects only its own connection
            log.failure("connection failed", exc)
        finally:
            self._waiting.discard(peer)
            if not is_open:
                peer.close(error)
                self._on_closed()
        if is_open:
            self._quick.start(peer)

    def _on_closed(self) -> None:
        self._connections -= 1
        if self._draining.has_begun and not self._connections:
            self._all_closed.set()
