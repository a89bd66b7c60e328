"""A connected client: its socket, and the bytes of its next requests."""

import os
import socket
import struct
from contextlib import suppress

import anyio
import anyio.lowlevel

from fluxbudgetd.errors import FluxError
from fluxbudgetd.server.requests import error_frame
from fluxbudgetd.wire.framing import FrameDecoder

_CHUNK_BYTES = 64 << 10

_CREDENTIALS = struct.Struct("3i")


class Peer:
    """A client. `socket` is non-blocking; `pid` is the process that connected, 0 if it is in another PID namespace.

    `was_answered` is True once it has had an answer.

    `decoder` holds received bytes that were not decoded yet; it is None if there are none, as is usual. `idle_since`
    orders idle connections: the longest idle one has the lowest number.
    """

    __slots__ = ("decoder", "idle_since", "pid", "socket", "was_answered")

    def __init__(self, peer: socket.socket, pid: int) -> None:
        self.socket = peer
        self.pid = pid
        self.decoder: FrameDecoder | None = None
        self.idle_since = 0
        self.was_answered = False

    def feed(self, data: bytes) -> FrameDecoder:
        """Add bytes that have arrived; return the decoder."""
        if self.decoder is None:
            self.decoder = FrameDecoder()
        self.decoder.feed(data)
        return self.decoder

    def close(self, error: FluxError | None = None) -> None:
        """Close the connection. Send a last error first, if the kernel takes it at once."""
        with self.socket:
            if error is not None:
                with suppress(OSError):
                    self.socket.send(error_frame(error))
                    self.socket.shutdown(socket.SHUT_WR)

    def has_sent(self) -> bool:
        """Return True if the peer has sent something that was not received yet."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def send_now(self, data: bytes) -> int:
        """Return how many of these bytes the kernel has taken; raises `OSError` if the peer has closed."""
        try:
            return self.socket.send(data) if data else 0
        except BlockingIOError:
            return 0

    async def send(self, data: bytes) -> None:
        """Send bytes, however slowly the peer reads; raises anyio's `BrokenResourceError` if it has closed."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.socket.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc

    async def receive(self) -> bytes:
        """Return the next bytes; raise anyio's `EndOfStream` or `BrokenResourceError` if the peer has closed."""
        # Yield to other connections first, even if bytes have arrived. No byte is lost if this is cancelled.
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self.socket.recv(_CHUNK_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
            else:
                if not data:
                    raise anyio.EndOfStream
                return data


def credentials_of(peer: socket.socket) -> tuple[int, int, int]:
    """Return the process id, user id and group id of the other end, as they were when the connection was made.

    The other end is the process that connected or, of a client's socket, the one that listens.
    """
    pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def is_allowed(uid: int) -> bool:
    """Return True if this daemon serves the user: its own, or root."""
    return uid in (0, os.geteuid())
