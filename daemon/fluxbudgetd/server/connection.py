"""One connection: frames in, answers out, in order.

A peer that sends half a frame, or never reads its answers, only affects its own connection.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from fluxbudgetd import errors
from fluxbudgetd.server.continuation import next_message
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.server.requests import MoreInput, Responder, Stream, TrackedFrame, error_frame
from fluxbudgetd.server.streaming import send_stream
from fluxbudgetd.wire.framing import FrameDecoder, FrameError

_CHUNK_BYTES = 64 << 10

log = structlog.get_logger()


class Shared(NamedTuple):
    """State shared by a server's connections. `unread` counts the bytes of unfinished requests."""

    responder: Responder
    limits: Limits
    draining: Draining
    unread: ByteCount
    unsent: ByteCount


class Connection:
    """Serves one peer. `peer` is the socket below `stream`."""

    def __init__(self, stream: anyio.abc.SocketStream, peer: socket.socket, shared: Shared) -> None:
        self._stream = stream
        self._peer = peer
        self._shared = shared
        self._limits = shared.limits
        self._decoder = FrameDecoder()
        self._was_answered = False

    async def serve(self) -> None:
        """Answer requests until the peer closes the connection or violates the protocol, or the server drains.

        Raises anyio's `EndOfStream`, `BrokenResourceError` or `ClosedResourceError` if the connection has ended.
        """
        while True:
            try:
                answer = await self._answer(await self._receive())
            except errors.FluxError as exc:
                await send_error(self._stream, exc, self._limits.refusal_seconds)
                return
            if isinstance(answer, bytes):
                is_sent = await self._send(answer)
            elif isinstance(answer, TrackedFrame):
                is_sent = await self._send_tracked(answer)
            else:
                error = await send_stream(self._stream, self._peer, answer, self._shared.draining)
                if error is not None:
                    await send_error(self._stream, error, self._limits.refusal_seconds)
                return
            if not is_sent:
                log.warning("peer does not read its answers; connection closed")
                return
            self._was_answered = True

    async def _answer(self, body: bytes) -> bytes | TrackedFrame | Stream:
        """Return the answer to a request; raise `FluxError` if a frame of its input is invalid."""
        responder, unread = self._shared.responder, self._shared.unread
        response = responder.respond(body)
        del body  # it may be large, and the command may wait for long
        while not isinstance(response, bytes):
            if isinstance(response, Awaitable):
                response = await response
            elif isinstance(response, MoreInput):
                response = responder.resume(response, await next_message(self._peer, self._decoder, response, unread))
            else:
                return response
        return response

    async def _receive(self) -> bytes:
        """Return the next message; raise `FluxError` if a frame is invalid or late."""
        try:
            if (body := self._decoder.next()) is not None:
                # Let other connections run between the requests of a peer that sends many at once.
                await anyio.lowlevel.checkpoint()
                return body
            if not self._decoder.buffered:
                self._decoder.feed(await self._first_bytes())
                if (body := self._decoder.next()) is not None:
                    return body
            with anyio.fail_after(self._limits.frame_seconds):
                return await self._rest_of_frame()
        except FrameError as exc:
            raise errors.TooLargeError(str(exc), "see docs/protocol.md") from exc
        except TimeoutError:
            raise errors.RequestTimeoutError(
                f"the frame was not complete after {self._limits.frame_seconds:.0f} s", "send a frame in one piece"
            ) from None

    async def _first_bytes(self) -> bytes:
        draining = self._shared.draining
        draining.add_idle(self._peer, was_answered=self._was_answered)
        try:
            return await self._bytes(lambda: draining.is_over(was_answered=self._was_answered))
        finally:
            draining.remove_idle(self._peer)

    async def _rest_of_frame(self) -> bytes:
        decoder, unread, held = self._decoder, self._shared.unread, 0
        try:
            while True:
                unread.held += decoder.buffered - held
                held = decoder.buffered
                if unread.is_too_much(held):
                    raise errors.BusyError("too many large requests are being received", "try again")
                decoder.feed(await self._bytes(lambda: False))
                if (body := decoder.next()) is not None:
                    return body
        finally:
            unread.held -= held

    async def _bytes(self, is_over: Callable[[], bool]) -> bytes:
        """Return bytes from the peer; raise `EndOfStream` if the peer has closed, or no bytes are left and `is_over()`.

        The stream's own `receive` would lose bytes that arrive just as it is cancelled.
        """
        has_waited = False
        while True:
            try:
                data = self._peer.recv(_CHUNK_BYTES)
            except BlockingIOError:
                if is_over():
                    raise anyio.EndOfStream from None
                has_waited = True
                with suppress(anyio.ClosedResourceError):  # the server drains: check `is_over` again
                    await anyio.wait_readable(self._peer)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
            else:
                if not data:
                    raise anyio.EndOfStream
                if not has_waited:
                    await anyio.lowlevel.checkpoint()
                return data

    async def _send(self, frame: bytes) -> bool:
        """Send an answer; return False if the peer did not read it in time.

        The kernel nearly always takes all of it at once. A time limit, which costs more, is set up only for the rest.
        """
        try:
            sent = self._peer.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise anyio.BrokenResourceError from exc
        left = len(frame) - sent
        if not left:
            return True
        self._shared.unsent.held += left
        try:
            with anyio.move_on_after(self._limits.send_seconds):
                await self._stream.send(frame[sent:])
                return True
        finally:
            self._shared.unsent.held -= left
        return False

    async def _send_tracked(self, answer: TrackedFrame) -> bool:
        is_sent = False
        try:
            is_sent = await self._send(answer.frame)
        finally:
            answer.on_delivered(is_sent)
        return is_sent


async def send_error(stream: anyio.abc.SocketStream, error: errors.FluxError, seconds: float) -> None:
    """Send a last error before the connection is closed; give up after `seconds`."""
    with anyio.move_on_after(seconds):
        await stream.send(error_frame(error))
        await stream.send_eof()
