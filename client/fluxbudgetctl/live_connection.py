"""A connection that stays open for many answers, and whose waits can be interrupted."""

import math
import select
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from fluxbudgetctl.connection import Unanswered, connect
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.unanswered import failure_from, not_understood
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

_CHUNK = 65536

Received = messages.AnyAnswer | messages.ErrorAnswer


class StopOn(NamedTuple):
    """A descriptor, and the poll events on it that end every wait; an error on it always does."""

    fd: int
    events: int


class Stopped(Exception):  # noqa: N818  not an error
    """The event that `StopOn` names has occurred."""


class ConnectionLost(Exception):  # noqa: N818  not an error of the program
    """The connection is no longer usable. `timed_out` if nothing arrived in time."""

    def __init__(self, why: str, *, timed_out: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.timed_out = timed_out


class LiveConnection:
    """A connection to the daemon that sends requests and waits for answers."""

    def __init__(self, path: str, seconds: float, stop_on: StopOn | None) -> None:
        """Connect within the time limit; raises `Failure`."""
        try:
            self._peer = connect(path, time.monotonic() + seconds)
        except (OSError, Unanswered) as exc:
            raise failure_from(exc, path, seconds) from None
        self._stop_on = stop_on
        self._decoder = FrameDecoder()
        self._broken: Failure | None = None
        self._poll = select.poll()
        self._poll.register(self._peer.fileno(), select.POLLIN)
        if stop_on is not None:
            self._poll.register(*stop_on)

    def send(self, request: messages.AnyRequest) -> None:
        """Send a request; raises `ConnectionLost`."""
        try:
            self._peer.sendall(encode_frame(messages.encode(request)))
        except BrokenPipeError:
            return  # refused before it was read; the answer says why
        except OSError as exc:
            raise ConnectionLost(exc.strerror or str(exc)) from None

    def receive(self, seconds: float) -> list[Received]:
        """Return what has arrived, at least one answer.

        Raises `ConnectionLost` if the connection ends or nothing arrives for `seconds`; `Failure` if what arrives is
        not an answer; `Stopped`.
        """
        while not (answers := list(self._decoded())):
            if self._broken is not None:
                raise self._broken
            self._wait(seconds)
            try:
                data = self._peer.recv(_CHUNK)
            except OSError as exc:
                raise ConnectionLost(exc.strerror or str(exc)) from None
            if not data:
                raise ConnectionLost("the daemon closed the connection")
            self._decoder.feed(data)
        return answers

    def close(self) -> None:
        """Close the connection."""
        self._peer.close()

    def _decoded(self) -> Iterator[Received]:
        # Whole answers that arrived before the broken data are returned first.
        try:
            while self._broken is None and (body := self._decoder.next()) is not None:
                yield messages.decode_answer(body)
        except (FrameError, msgspec.DecodeError) as exc:
            self._broken = not_understood(str(exc))

    def _wait(self, seconds: float) -> None:
        ready = self._poll.poll(math.ceil(seconds * 1000))
        if self._stop_on is not None and any(fd == self._stop_on.fd for fd, _ in ready):
            raise Stopped
        if not ready:
            raise ConnectionLost(f"nothing arrived for {seconds:g} s", timed_out=True)


def pause(seconds: float, stop_on: StopOn | None) -> None:
    """Wait; raises `Stopped`."""
    poll = select.poll()
    if stop_on is not None:
        poll.register(*stop_on)
    if poll.poll(math.ceil(seconds * 1000)):
        raise Stopped
