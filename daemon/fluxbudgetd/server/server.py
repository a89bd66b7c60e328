"""The server: accepts connections, refuses those beyond its limits, and closes them in order."""

import os
import socket
import struct

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from fluxbudgetd import errors
from fluxbudgetd.server.connection import Connection, Shared, send_error
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.server.requests import Handler, Responder

_ACCEPT_PAUSE_SECONDS = 0.05

log = structlog.get_logger()


class Server:
    """Serves a listening socket until cancelled. Each connection is one task."""

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self._draining = Draining()
        unsent = ByteCount(limits)
        self._shared = Shared(Responder(handler, limits, unsent), limits, self._draining, ByteCount(limits), unsent)
        self._connections = 0
        self._refusals = 0
        self._accepting = anyio.CancelScope()
        self._all_closed = anyio.Event()

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return self._connections

    @property
    def idle(self) -> tuple[socket.socket, ...]:
        """Return the sockets of the connections that wait for a request, the longest waiting first."""
        return self._draining.idle

    async def serve(self, listening: socket.socket) -> None:
        """Accept connections of a listening, non-blocking socket until `stop_accepting`, and serve them.

        No connection is lost: each is either served here, or stays in the kernel's queue for the next process that
        serves the socket.
        """
        async with anyio.create_task_group() as tasks:
            with self._accepting:
                while True:
                    try:
                        peer, _ = listening.accept()
                    except BlockingIOError:
                        await anyio.wait_readable(listening)
                    except OSError as exc:
                        # No descriptor is free, or the peer has closed already. Open connections are not affected.
                        log.warning("connection not accepted", error=str(exc))
                        await anyio.sleep(_ACCEPT_PAUSE_SECONDS)
                    else:
                        stream = await anyio.abc.UNIXSocketStream.from_socket(peer)
                        tasks.start_soon(self._connection, stream, peer)
                        await anyio.lowlevel.checkpoint()

    def stop_accepting(self) -> None:
        """Leave new connections in the kernel's queue."""
        self._accepting.cancel()

    async def drained(self) -> None:
        """Close every connection after its current answer, and wait until all are closed.

        No request that was sent is lost: a connection is closed when it has nothing left to read, and a new one after
        its first request has been answered.
        """
        # Let the newest connection's task start, so that it is counted.
        await anyio.lowlevel.checkpoint()
        self._draining.begin()
        with anyio.move_on_after(self._limits.first_request_seconds):
            await self._closed()
        self._draining.include_new()
        await self._closed()

    async def _closed(self) -> None:
        if self._connections:
            await self._all_closed.wait()

    async def _connection(self, stream: anyio.abc.SocketStream, peer: socket.socket) -> None:
        async with stream:
            try:
                refusal = self._refusal(peer)
                if refusal is not None:
                    await self._refuse(stream, refusal)
                    return
                self._connections += 1
                try:
                    await Connection(stream, peer, self._shared).serve()
                finally:
                    self._connections -= 1
                    if self._draining.has_begun and not self._connections:
                        self._all_closed.set()
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                return

    def _refusal(self, peer: socket.socket) -> errors.FluxError | None:
        """Return why a new connection is not served, or None."""
        uid = peer_uid(peer)
        if uid not in (0, os.geteuid()):
            log.warning("peer refused", uid=uid)
            return errors.ForbiddenError(
                f"this daemon serves uid {os.geteuid()}, not {uid}", "start your own fluxbudgetd"
            )
        if self._connections >= self._limits.connections:
            return errors.BusyError(f"{self._limits.connections} connections are open", "close some, or try again")
        return None

    async def _refuse(self, stream: anyio.abc.SocketStream, refusal: errors.FluxError) -> None:
        if self._refusals >= self._limits.refusals:
            return
        self._refusals += 1
        try:
            await send_error(stream, refusal, self._limits.refusal_seconds)
        finally:
            self._refusals -= 1


def peer_uid(peer: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
