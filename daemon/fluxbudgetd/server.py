"""Connections: who may, how many, how much, how long; frames in, answers out, in order.

One connection is one task. A request that fails gets an error answer; one that hangs, a peer that sends half a frame or
never reads its answers, costs its own connection and nothing else.
"""

import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import structlog

from fluxbudgetd import errors
from fluxbudgetd.answers import Heard
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

MAX_CONNECTIONS = 1024
# Beyond the limit a few more are accepted, so that they can be told `busy`; the rest wait in the kernel's queue.
_REFUSING_AT_ONCE = 64
BACKLOG = 512
FRAME_SECONDS = 10.0
_CHUNK = 64 << 10
# Who has connected and not asked yet when the daemon is told to stop may do so for this long.
_NEWCOMERS_SECONDS = 1.0
SEND_SECONDS = 10.0
REQUEST_SECONDS = 30.0
# Small messages always pass. Larger ones of all connections together may hold this much, unfinished requests and
# answers that wait to be read each.
_SMALL_BYTES = 16 << 10
_BUFFERED_BYTES = 16 << 20
# A new connection is not waited for longer than this before its error is given up.
_FAREWELL_SECONDS = 1.0

_ACCEPT_PAUSE_SECONDS = 0.05

#: A request's answer; or a stream that the connection becomes.
Answer = messages.AnyAnswer | Heard | AsyncGenerator[messages.AnyAnswer, None]
#: Answers at once when it can, else returns something to wait for.
Handler = Callable[[messages.AnyRequest], Answer | Awaitable[messages.AnyAnswer | Heard]]

log = structlog.get_logger()


class _Frame(NamedTuple):
    """An answer's bytes, and who wants to know whether the peer has taken them."""

    bytes: bytes
    heard: Callable[[bool], None]


class Server:
    """Serves a listener until cancelled."""

    def __init__(self, handler: Handler, max_connections: int = MAX_CONNECTIONS) -> None:
        self._handler = handler
        self._max_connections = max_connections
        self._connections = 0
        self._refusing = 0
        self._buffered = 0
        self._unsent = 0
        # Whoever is waited for to ask; True: it has been answered before.
        self._waited_for: dict[socket.socket, bool] = {}
        self._streams: set[anyio.CancelScope] = set()
        self._accepting = anyio.CancelScope()
        self._draining = False
        self._newcomers_too = False
        self._all_gone = anyio.Event()

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return self._connections

    async def serve(self, listening: socket.socket) -> None:
        """Accept connections of a listening, non-blocking socket until told to stop; then serve those there are.

        There is no wait inside of accepting: a connection is either ours, or still in the kernel's queue, where whoever
        serves the socket next finds it.
        """
        async with anyio.create_task_group() as tasks:
            with self._accepting:
                while True:
                    try:
                        peer, _ = listening.accept()
                    except BlockingIOError:
                        await anyio.wait_readable(listening)
                    except OSError as exc:
                        # Out of descriptors, or the peer has gone already: nobody's fault who is connected.
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
        """Tell every connection to end after its present answer, and wait until all have.

        Nothing that has been sent is lost: a connection ends when nothing of it is left to be read, and one that has
        only just been made when its first request has been answered.
        """
        # Whoever was accepted last is a task that has not begun yet.
        await anyio.lowlevel.checkpoint()
        self._draining = True
        for scope in self._streams:
            scope.cancel()
        self._end(newcomers=False)
        with anyio.move_on_after(_NEWCOMERS_SECONDS):
            await self._gone()
        self._newcomers_too = True
        self._end(newcomers=True)
        await self._gone()

    def _end(self, *, newcomers: bool) -> None:
        for raw, was_answered in tuple(self._waited_for.items()):
            if was_answered or newcomers:
                anyio.notify_closing(raw)

    async def _gone(self) -> None:
        if self._connections:
            await self._all_gone.wait()

    async def _connection(self, stream: anyio.abc.SocketStream, raw: socket.socket) -> None:
        async with stream:
            try:
                refusal = self._refusal(raw)
                if refusal is not None:
                    await self._refuse(stream, refusal)
                    return
                self._connections += 1
                try:
                    await self._converse(stream, raw)
                finally:
                    self._connections -= 1
                    if self._draining and not self._connections:
                        self._all_gone.set()
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                return

    def _refusal(self, raw: socket.socket) -> errors.FluxError | None:
        uid = peer_uid(raw)
        if uid not in (0, os.geteuid()):
            log.warning("peer refused", uid=uid)
            return errors.ForbiddenError(
                f"this daemon serves uid {os.geteuid()}, not {uid}", "start your own fluxbudgetd"
            )
        if self._connections >= self._max_connections:
            return errors.BusyError(f"{self._max_connections} connections are open", "close some, or try again")
        return None

    async def _refuse(self, stream: anyio.abc.SocketStream, refusal: errors.FluxError) -> None:
        if self._refusing >= _REFUSING_AT_ONCE:
            return
        self._refusing += 1
        try:
            await self._say_goodbye(stream, refusal)
        finally:
            self._refusing -= 1

    async def _converse(self, stream: anyio.abc.SocketStream, raw: socket.socket) -> None:
        decoder = FrameDecoder()
        was_answered = False
        while True:
            try:
                body = await self._receive(raw, decoder, was_answered=was_answered)
            except errors.FluxError as exc:
                await self._say_goodbye(stream, exc)
                return
            answer = await self._answer(body)
            if isinstance(answer, bytes):
                taken = await self._send(stream, raw, answer)
            elif isinstance(answer, _Frame):
                taken = await self._deliver(stream, raw, answer)
            else:
                await self._stream(stream, raw, answer)
                return
            if not taken:
                log.warning("peer does not read its answers; connection closed")
                return
            was_answered = True

    async def _deliver(self, stream: anyio.abc.SocketStream, raw: socket.socket, answer: "_Frame") -> bool:
        """Send an answer; tells whether the peer took it in time, also whoever wants to know."""
        taken = False
        try:
            taken = await self._send(stream, raw, answer.bytes)
        finally:
            answer.heard(taken)
        return taken

    async def _stream(
        self, stream: anyio.abc.SocketStream, raw: socket.socket, answers: AsyncGenerator[messages.AnyAnswer, None]
    ) -> None:
        """Send a stream's answers until it ends, the peer goes away or the server drains.

        A peer that reads slowly holds its own connection and one answer, nothing else; so it may take its time.
        """
        async with anyio.create_task_group() as tasks:
            self._streams.add(tasks.cancel_scope)
            tasks.start_soon(_cancel_when_gone, raw, tasks.cancel_scope)
            try:
                async with aclosing(answers):
                    async for answer in answers:
                        await stream.send(encode_frame(messages.encode(answer)))
            except errors.FluxError as exc:
                await self._say_goodbye(stream, exc)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            except Exception:
                # Like a request's: one stream's defect is that stream's error.
                log.exception("request failed")
                await self._say_goodbye(stream, errors.FluxError("the daemon failed on this stream", "see its log"))
            finally:
                self._streams.discard(tasks.cancel_scope)
                tasks.cancel_scope.cancel()

    async def _receive(self, raw: socket.socket, decoder: FrameDecoder, *, was_answered: bool) -> bytes:
        """Return the next message; raises `FluxError` for what is no frame, or comes too slowly."""
        try:
            if (body := decoder.next()) is not None:
                # A peer that sends many requests in one piece takes its turn with the others.
                await anyio.lowlevel.checkpoint()
                return body
            if not decoder.buffered:
                self._waited_for[raw] = was_answered
                try:
                    decoder.feed(
                        await self._bytes(raw, lambda: self._draining and (was_answered or self._newcomers_too))
                    )
                finally:
                    del self._waited_for[raw]
                if (body := decoder.next()) is not None:
                    return body
            with anyio.fail_after(FRAME_SECONDS):
                return await self._rest_of_frame(raw, decoder)
        except FrameError as exc:
            raise errors.TooLargeError(str(exc), "see the protocol's documentation") from exc
        except TimeoutError:
            raise errors.RequestTimeoutError(
                f"a frame was not complete after {FRAME_SECONDS:.0f} s", "send a frame in one piece"
            ) from None

    def _is_over(self, was_answered: bool) -> bool:
        return self._draining and (was_answered or self._newcomers_too)

    async def _bytes(self, raw: socket.socket, is_over: Callable[[], bool] = lambda: False) -> bytes:
        """Return what the peer has sent; raises `EndOfStream` when it has ended, or all is read and it is over.

        (A stream's own `receive` that is ended in the moment in which something comes loses that, and asyncio
        complains.)
        """
        waited = False
        while True:
            try:
                data = raw.recv(_CHUNK)
            except BlockingIOError:
                if is_over():
                    raise anyio.EndOfStream from None
                waited = True
                with suppress(anyio.ClosedResourceError):  # told to look whether it is over
                    await anyio.wait_readable(raw)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
            else:
                if not data:
                    raise anyio.EndOfStream
                if not waited:
                    await anyio.lowlevel.checkpoint()
                return data

    async def _send(self, stream: anyio.abc.SocketStream, raw: socket.socket, frame: bytes) -> bool:
        """Send an answer; tells whether the peer took it in time.

        Nearly always the kernel takes it whole, at once: then no time limit needs to be set up, which costs more.
        """
        try:
            sent = raw.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise anyio.BrokenResourceError from exc
        left = len(frame) - sent
        if not left:
            return True
        self._unsent += left
        try:
            with anyio.move_on_after(SEND_SECONDS):
                await stream.send(frame[sent:])
                return True
        finally:
            self._unsent -= left
        return False

    async def _rest_of_frame(self, raw: socket.socket, decoder: FrameDecoder) -> bytes:
        held = 0
        try:
            while True:
                self._buffered += decoder.buffered - held
                held = decoder.buffered
                if held > _SMALL_BYTES and self._buffered > _BUFFERED_BYTES:
                    raise errors.BusyError("too many large messages are under way", "try again")
                decoder.feed(await self._bytes(raw))
                if (body := decoder.next()) is not None:
                    return body
        finally:
            self._buffered -= held

    async def _answer(self, body: bytes) -> "bytes | _Frame | AsyncGenerator[messages.AnyAnswer, None]":
        heard = None
        try:
            answer = self._handler(decode(body))
            # Nearly always it is an answer: that is asked first, for the rest takes longer to tell.
            if not isinstance(answer, messages.Answer):
                if isinstance(answer, AsyncGenerator):
                    return answer
                if not isinstance(answer, Heard):
                    with anyio.fail_after(REQUEST_SECONDS):
                        answer = await answer
            if isinstance(answer, Heard):
                answer, heard = answer
            frame = self._admitted(encode_frame(messages.encode(answer)))
            return frame if heard is None else _Frame(frame, heard)
        except errors.FluxError as exc:
            error = exc
        except FrameError:
            error = errors.AnswerTooLargeError("the answer is larger than a frame may be", "ask for less")
        except TimeoutError:
            error = errors.RequestTimeoutError(f"no answer within {REQUEST_SECONDS:.0f} s", "see the daemon's log")
        except Exception:
            # The border that survives anything: one request's defect is that request's error.
            log.exception("request failed")
            error = errors.FluxError("the daemon failed on this request", "the daemon's log has the details")
        if heard is not None:
            heard(False)
        return error_frame(error)

    def _admitted(self, frame: bytes) -> bytes:
        """Return the frame; raises `BusyError` for a large one when too much waits for its readers already."""
        if len(frame) > _SMALL_BYTES and self._unsent > _BUFFERED_BYTES:
            raise errors.BusyError("too many large answers wait to be read", "try again")
        return frame

    async def _say_goodbye(self, stream: anyio.abc.SocketStream, error: errors.FluxError) -> None:
        with anyio.move_on_after(_FAREWELL_SECONDS):
            await stream.send(error_frame(error))
            await stream.send_eof()


async def _cancel_when_gone(raw: socket.socket, scope: anyio.CancelScope) -> None:
    """Cancel when the peer closes its end; what it sends until then means nothing.

    (A stream's own `receive` that is cancelled in the moment in which something comes makes asyncio complain.)
    """
    with suppress(OSError, anyio.ClosedResourceError):
        while True:
            await anyio.wait_readable(raw)
            with suppress(BlockingIOError):
                if not raw.recv(_SMALL_BYTES):
                    break
    scope.cancel()


def peer_uid(peer: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def error_frame(error: errors.FluxError) -> bytes:
    """Return the frame that tells an error."""
    info = messages.ErrorInfo(code=error.code, message=error.message, hint=error.hint)
    return encode_frame(messages.encode(messages.ErrorAnswer(error=info)))


def decode(body: bytes) -> messages.AnyRequest:
    """Return the request; raises a `FluxError` that says what is wrong with it."""
    try:
        request = messages.decode_request(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        reason = str(exc)
    else:
        if request.v == codes.VERSION:
            return request
        reason = ""
    try:
        envelope = messages.decode_envelope(body)
    except (msgspec.DecodeError, RecursionError):
        raise errors.BadRequestError(f"not a request: {reason}", "a MessagePack map with at least v and op") from None
    if envelope.v != codes.VERSION:
        raise errors.UnsupportedVersionError(
            f"protocol version {envelope.v} is not served; served: {codes.VERSION}",
            "use a client of the daemon's version",
        )
    if envelope.op not in messages.OPERATIONS:
        raise errors.UnknownOpError(f"operation {envelope.op!r} is not known", "is the daemon older than the client?")
    raise errors.BadRequestError(f"operation {envelope.op}: {reason}", "see the protocol's documentation")
