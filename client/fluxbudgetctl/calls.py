"""Typed requests: send a message to the daemon and return its answer. (The pipe does not use this; it imports less.)"""

import os
import time
from contextlib import suppress
from typing import TypeVar

import msgspec

from fluxbudgetctl import environment
from fluxbudgetctl.connection import TooLarge, Unanswered, connect, seconds_until
from fluxbudgetctl.failure import Failure, failure_of
from fluxbudgetctl.unanswered import failure_from, not_understood
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

_CHUNK = 65536

A = TypeVar("A", bound=messages.Answer)


def call(request: messages.AnyRequest, kind: type[A], timeout: float, path: str | None = None) -> A:
    """Send a request and return its answer, which must be of this kind.

    `timeout` is in seconds and covers connecting, sending and receiving. `path` is the socket's, by default the one the
    environment names. Raises `Failure`, including for an error answer.
    """
    request = msgspec.structs.replace(request, wait_ms=int(timeout * 1000))
    path = path or environment.socket()
    try:
        answer = messages.decode_answer(_exchange(path, messages.encode(request), timeout))
    except (OSError, EOFError, ValueError, Unanswered) as exc:
        raise failure_from(exc, path, timeout) from None
    return expect(answer, kind)


def expect(answer: messages.AnyAnswer | messages.ErrorAnswer, kind: type[A]) -> A:
    """Return the answer if it is of this kind; raises `Failure` for an error answer and for any other kind."""
    if isinstance(answer, messages.ErrorAnswer):
        raise failure_of(msgspec.to_builtins(answer.error))
    if not isinstance(answer, kind):
        raise not_understood(f"it is a {type(answer).__name__}")
    return answer


def _exchange(path: str, body: bytes, seconds: float) -> bytes:
    """Send a request and return its answer's body; raises what `failure_from` takes."""
    deadline = time.monotonic() + seconds
    try:
        frame = encode_frame(body)
    except FrameError as exc:
        raise TooLarge(exc) from None
    decoder = FrameDecoder()
    peer = connect(path, deadline)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read: see the answer
            peer.sendall(frame)
        while True:
            peer.settimeout(seconds_until(deadline))
            data = peer.recv(_CHUNK)
            if not data:
                raise EOFError
            decoder.feed(data)
            if (answer := decoder.next()) is not None:
                return answer
    finally:
        peer.close()


class TimeLimit:
    """One time limit for several requests."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Return the remaining seconds; raises `Failure` if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Failure("not all runs arrived within the time limit", "use a longer --timeout", codes.NO_ANSWER)
        return left


def hints() -> messages.Hints:
    """Return what the environment says about which run is meant."""
    return msgspec.convert(environment.Hints(), messages.Hints, from_attributes=True)


def transcript(path: str | None) -> str | None:
    """Return a transcript's path as the daemon expects it: absolute, with its symlinks left to the daemon."""
    return None if path is None else environment.text(os.path.abspath(path))
