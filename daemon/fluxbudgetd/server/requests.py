"""Turn a request's bytes into its answer's: decode, call the handler, encode. No socket is used here.

Every failure becomes an error answer. A defect affects only its own request; the daemon continues.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import anyio
import msgspec

from fluxbudgetd import errors
from fluxbudgetd.server.limited_log import LimitedLog
from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.framing import FrameError, encode_frame

A_co = TypeVar("A_co", covariant=True)


class TrackedAnswer(NamedTuple, Generic[A_co]):
    """An answer whose delivery matters: `on_delivered` is called once, with True if the peer has received it."""

    answer: A_co
    on_delivered: Callable[[bool], None]


class TrackedFrame(NamedTuple):
    """The bytes of a `TrackedAnswer`."""

    frame: bytes
    on_delivered: Callable[[bool], None]


class MoreInput(NamedTuple):
    """What a handler returns if its command needs more of its stdin.

    `resume` is called with the connection's next message, or with None at the deadline (by the event loop's clock); it
    raises `FluxError` as a handler does. `held` is the number of bytes of stdin that have arrived so far.
    """

    deadline: float
    held: int
    resume: "Callable[[messages.Stdin | None], Handled | Awaitable[Handled]]"


#: A stream of answers, sent on its connection until it ends.
Stream = AsyncGenerator[messages.AnyAnswer, None]
#: What a handler returns in the end.
Handled = messages.AnyAnswer | TrackedAnswer[messages.AnyAnswer] | MoreInput
#: Returns the answer if it is available at once, otherwise an awaitable of it; or a stream. Its arguments are the
#: request and the id of the process that sent it.
Handler = Callable[[messages.AnyRequest, int], Handled | Stream | Awaitable[Handled]]
#: What a connection does next: send a frame (b"": nothing), send a stream, or read more input.
Response = bytes | TrackedFrame | Stream | MoreInput

# A message may quote what the client has sent, which may be as long as a frame.
_LONGEST_TEXT = 1000

log = LimitedLog()


class Responder:
    """Answers requests. `unsent` counts the bytes of answers that peers have not read yet."""

    def __init__(self, handler: Handler, limits: Limits, unsent: ByteCount) -> None:
        self._handler = handler
        self._limits = limits
        self._unsent = unsent

    def respond(self, body: bytes, pid: int) -> Response | Awaitable[Response]:
        """Return the response to a process's request, as an awaitable if it has to wait. Never raises."""
        try:
            request = decode(body)
            if isinstance(request, messages.Stdin):
                return b""  # the command it belongs to has been answered already
            return self._now_or_later(self._handler(request, pid))
        except Exception as exc:  # noqa: BLE001  `_error` logs it
            return self._error(exc)

    def resume(self, more: MoreInput, body: bytes | None) -> Response | Awaitable[Response]:
        """Return the response to a command after its connection's next message, or after its deadline (None)."""
        try:
            return self._now_or_later(more.resume(None if body is None else _stdin(body)))
        except Exception as exc:  # noqa: BLE001  `_error` logs it
            return self._error(exc)

    def _now_or_later(self, answer: Handled | Stream | Awaitable[Handled]) -> Response | Awaitable[Response]:
        # Test the usual case first, because the other checks take longer.
        if isinstance(answer, messages.Answer):
            return self._frame(answer)
        return self._later(answer) if isinstance(answer, Awaitable) else self._response(answer)

    async def _later(self, answer: Awaitable[Handled]) -> Response:
        try:
            with anyio.fail_after(self._limits.request_seconds):
                return self._response(await answer)
        except Exception as exc:  # noqa: BLE001  `_error` logs it
            return self._error(exc)

    def _response(self, answer: Handled | Stream) -> Response:
        if isinstance(answer, messages.Answer):
            return self._frame(answer)
        return self._tracked(answer) if isinstance(answer, TrackedAnswer) else answer

    def _tracked(self, tracked: TrackedAnswer[messages.AnyAnswer]) -> TrackedFrame:
        try:
            return TrackedFrame(self._frame(tracked.answer), tracked.on_delivered)
        except Exception:
            tracked.on_delivered(False)
            raise

    def _frame(self, answer: messages.AnyAnswer) -> bytes:
        frame = encode_frame(messages.encode(answer))
        if self._unsent.is_too_much(len(frame)):
            raise errors.BusyError("too many large answers are waiting to be read", "try again")
        return frame

    def _error(self, exc: Exception) -> bytes:
        """Return the error answer for an exception."""
        if isinstance(exc, errors.FluxError):
            error = exc
        elif isinstance(exc, FrameError):
            error = errors.AnswerTooLargeError("the answer does not fit into a frame", "ask for less")
        elif isinstance(exc, TimeoutError):
            seconds = self._limits.request_seconds
            error = errors.RequestTimeoutError(f"no answer within {seconds:.0f} s", "see the daemon's log")
        else:
            log.failure("request failed", exc)
            error = errors.FluxError("the daemon failed on this request", "the daemon's log has the details")
        return error_frame(error)


def _stdin(body: bytes) -> messages.Stdin:
    request = decode(body)
    if not isinstance(request, messages.Stdin):
        raise errors.BadRequestError(
            "a command's stdin was expected, not another request", "end it with a stdin request without more"
        )
    return request


def decode(body: bytes) -> messages.AnyRequest:
    """Return the request; raise a `FluxError` that says what is wrong with it."""
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
        raise errors.BadRequestError(f"not a request: {reason}", "send a MessagePack map with v and op") from None
    if envelope.v != codes.VERSION:
        raise errors.UnsupportedVersionError(
            f"protocol version {envelope.v} is not supported; this daemon speaks version {codes.VERSION}",
            "use the client that was installed with this daemon",
        )
    if envelope.op not in messages.OPERATIONS:
        raise errors.UnknownOpError(
            f"operation {envelope.op!r} is not known", "the daemon may be older than the client: restart it"
        )
    raise errors.BadRequestError(f"operation {envelope.op}: {reason}", "see docs/protocol.md")


def error_frame(error: errors.FluxError) -> bytes:
    """Return an error answer's frame. Long texts are cut, so this always succeeds."""
    info = messages.ErrorInfo(code=error.code, message=_sendable(error.message), hint=_sendable(error.hint))
    return encode_frame(messages.encode(messages.ErrorAnswer(error=info)))


def _sendable(text: str) -> str:
    """Return a text that can be encoded and is short enough."""
    cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()
