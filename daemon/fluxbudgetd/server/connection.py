"""Wait for what a connection needs: the rest of a frame, an answer, more input, a stream, room for unsent bytes.

A peer that sends half a frame, or never reads its answers, only affects its own connection. Between requests, a
connection has no task (`quick.py`).
"""

from collections.abc import Awaitable
from typing import NamedTuple

import anyio

from fluxbudgetd import errors
from fluxbudgetd.server.continuation import next_message
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.limited_log import LimitedLog
from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.server.peer import Peer
from fluxbudgetd.server.requests import MoreInput, Responder, Response, Stream, TrackedFrame
from fluxbudgetd.server.streaming import send_stream
from fluxbudgetd.wire.framing import FrameError

log = LimitedLog()


class Shared(NamedTuple):
    """State shared by a server's connections. `unread` counts the bytes of unfinished requests."""

    responder: Responder
    limits: Limits
    draining: Draining
    unread: ByteCount
    unsent: ByteCount


class Connection:
    """A connection that waits for something."""

    def __init__(self, peer: Peer, shared: Shared) -> None:
        self._peer = peer
        self._shared = shared
        self._limits = shared.limits

    async def finish(self, response: Response | Awaitable[Response] | None) -> bool:
        """Finish a request: receive the rest of it (None), or send this response to it.

        Return False if the connection must be closed. Raises `FluxError` for an error to send before that;
        anyio's `EndOfStream` or `BrokenResourceError`, or `OSError`, if the peer has closed.
        """
        answer = await self._answer(response)
        if isinstance(answer, bytes):
            is_sent = await self._send(answer)
        elif isinstance(answer, TrackedFrame):
            is_sent = await self._send_tracked(answer)
        else:
            await send_stream(self._peer, answer, self._shared.draining)
            return False
        if not is_sent:
            log.warning("peer does not read its answers; connection closed")
        self._peer.was_answered = True
        return is_sent

    async def _answer(self, response: Response | Awaitable[Response] | None) -> bytes | TrackedFrame | Stream:
        """Return the answer to a request; raise `FluxError` if one of its frames is invalid or late."""
        responder, peer = self._shared.responder, self._peer
        if response is None:
            response = responder.respond(await self._rest_in_time(), peer.pid)
        while not isinstance(response, bytes):
            if isinstance(response, Awaitable):
                response = await response
            elif isinstance(response, MoreInput):
                more = response
                response = responder.resume(more, await next_message(peer, more, self._shared.unread))
            else:
                return response
        return response

    async def _rest_in_time(self) -> bytes:
        try:
            with anyio.fail_after(self._limits.frame_seconds):
                return await self._rest_of_frame()
        except FrameError as exc:
            raise errors.TooLargeError(str(exc), "see docs/protocol.md") from exc
        except TimeoutError:
            raise errors.RequestTimeoutError(
                f"the frame was not complete after {self._limits.frame_seconds:.0f} s", "send a frame in one piece"
            ) from None

    async def _rest_of_frame(self) -> bytes:
        decoder, unread, held = self._peer.feed(b""), self._shared.unread, 0
        try:
            while True:
                unread.held += decoder.buffered - held
                held = decoder.buffered
                if unread.is_too_much(held):
                    raise errors.BusyError("too many large requests are being received", "try again")
                decoder.feed(await self._peer.receive())
                if (body := decoder.next()) is not None:
                    return body
        finally:
            unread.held -= held

    async def _send(self, frame: bytes) -> bool:
        """Send an answer; return False if the peer did not read it in time.

        The kernel nearly always takes all of it at once. A time limit, which costs more, is set up only for the rest.
        """
        left = frame[self._peer.send_now(frame) :]
        if not left:
            return True
        self._shared.unsent.held += len(left)
        try:
            with anyio.move_on_after(self._limits.send_seconds):
                await self._peer.send(left)
                return True
        finally:
            self._shared.unsent.held -= len(left)
        return False

    async def _send_tracked(self, answer: TrackedFrame) -> bool:
        is_sent = False
        try:
            is_sent = await self._send(answer.frame)
        finally:
            answer.on_delivered(is_sent)
        return is_sent
