"""A stream of the daemon's events that outlives the connection: every event once, in order, none missed."""

import math
import select
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple, TypeVar

import msgspec

from fluxbudgetctl.connection import NO_SOCKET, away, dial, no_answer, not_understood
from fluxbudgetctl.failure import Failure, refused
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, FrameError, encode_frame

_CHUNK = 65536
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: So long a daemon that has taken the connection may think before the next attempt.
_PATIENCE = 5.0
_SILENT_HEARTBEATS = 3
#: However short the heartbeats are: a busy machine is no dead daemon.
_SHORTEST_SILENCE = 2.0
#: What passes by itself, when the daemon was there before.
_PASSING = {NO_SOCKET, "unreachable", "no_answer", "busy", "timeout"}

Received = messages.AnyAnswer | messages.ErrorAnswer
A = TypeVar("A", bound=messages.Answer)


class Lost(NamedTuple):
    """The connection is gone; the stream waits for the daemon."""

    why: str


class Again(NamedTuple):
    """The daemon is there again, and the stream goes on behind this number."""

    since: int


class Anew(NamedTuple):
    """The daemon's ledger is a new one: its numbers begin again, and the stream goes on behind this one."""

    since: int


Told = messages.EventAnswer | messages.HeartbeatAnswer | messages.LaggedAnswer | Lost | Again | Anew


class Until(NamedTuple):
    """A descriptor, and the events of it (as `select.poll` has them) that end all waiting; its errors always do."""

    fd: int
    events: int


class Stopped(Exception):  # noqa: N818  it is no error
    """What `Until` names has happened."""


class Gone(Exception):  # noqa: N818  it is no error of the program
    """The connection is of no use any more. `silent`: nothing came in time."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.silent = silent


class Line:
    """A connection to the daemon that waits for answers, and for something else that ends the waiting."""

    def __init__(self, path: str, seconds: float, until: Until | None) -> None:
        """Connect; raises `Failure` as `connection.exchange` does."""
        try:
            self._peer = dial(path, time.monotonic() + seconds)
        except TimeoutError:
            raise no_answer(path, seconds) from None
        except OSError as exc:
            raise away(path, exc.strerror or str(exc)) from None
        self._until = until
        self._decoder = FrameDecoder()
        self._broken: Failure | None = None
        self._poll = select.poll()
        self._poll.register(self._peer.fileno(), select.POLLIN)
        if until is not None:
            self._poll.register(*until)

    def send(self, request: messages.AnyRequest) -> None:
        """Send a request; raises `Gone`."""
        try:
            self._peer.sendall(encode_frame(messages.encode(request)))
        except BrokenPipeError:
            return  # refused before it was read: the answer says why
        except OSError as exc:
            raise Gone(exc.strerror or str(exc)) from None

    def receive(self, seconds: float) -> list[Received]:
        """Return what has come, at least one answer.

        Raises `Gone` (also when nothing comes for so many seconds), `Failure` for what is no answer, `Stopped`.
        """
        while not (answers := list(self._decoded())):
            if self._broken is not None:
                raise self._broken
            self._wait(seconds)
            try:
                data = self._peer.recv(_CHUNK)
            except OSError as exc:
                raise Gone(exc.strerror or str(exc)) from None
            if not data:
                raise Gone("the daemon closed the connection")
            self._decoder.feed(data)
        return answers

    def close(self) -> None:
        """Let go of it."""
        self._peer.close()

    def _decoded(self) -> Iterator[Received]:
        # What came whole before something that is not understood is still told.
        try:
            while self._broken is None and (body := self._decoder.next()) is not None:
                yield messages.decode_answer(body)
        except (FrameError, msgspec.DecodeError) as exc:
            self._broken = not_understood(str(exc))

    def _wait(self, seconds: float) -> None:
        ready = self._poll.poll(math.ceil(seconds * 1000))
        if self._until is not None and any(fd == self._until.fd for fd, _ in ready):
            raise Stopped
        if not ready:
            raise Gone(f"nothing came for {seconds:g} s", silent=True)


class Stream:
    """One subscription. `told` yields what happens, in bursts, until `until`; it may be asked for once.

    `request` says what is subscribed to and how often heartbeats come. With `back`, it begins so many events before
    the last one, whatever `request.since` says. `seconds` is the time limit of the first attempt, for connecting and
    the answer together.
    """

    def __init__(
        self,
        path: str,
        request: messages.Subscribe,
        seconds: float,
        *,
        back: int | None = None,
        until: Until | None = None,
    ) -> None:
        self._path = path
        self._request = request
        self._seconds = seconds
        self._back = back
        self._until = until
        self._silence = max(_SILENT_HEARTBEATS * request.heartbeat_ms / 1000, _SHORTEST_SILENCE)
        self._pause = _FIRST_PAUSE
        self._last = request.since

    def told(self) -> Iterator[list[Told]]:
        """Yield what happens; raises `Failure` when there is no daemon at first, and for errors that do not pass."""
        try:
            if self._back is not None:
                line, subscribed, _ = self._subscribed(self._seconds)
                line.close()
                self._last = max(subscribed.last - self._back, 0)
            line, subscribed, early = self._subscribed(self._seconds)
            beginning = self._begun(subscribed)
            while True:
                with closing(line):
                    if beginning:
                        yield beginning
                    try:
                        while True:
                            told, error = self._sorted(early or line.receive(self._silence))
                            early = []
                            if told:
                                self._pause = _FIRST_PAUSE
                                yield told
                            if error is not None:
                                raise error
                    except Gone as exc:
                        lost = Lost(exc.why)
                yield [lost]
                line, subscribed, early = self._subscribed_again()
                asked = self._begun(subscribed)
                beginning = [Again(subscribed.since), *asked]
        except Stopped:
            return

    def _begun(self, subscribed: messages.SubscribedAnswer) -> list[Told]:
        """Go on from where the daemon says; return what is to be told of that."""
        asked, self._last = self._last, subscribed.since
        return [Anew(subscribed.since)] if asked is not None and subscribed.since < asked else []

    def _sorted(self, answers: list[Received]) -> tuple[list[Told], Failure | Gone | None]:
        """Return what is new, and what ends the connection behind it."""
        told: list[Told] = []
        for answer in answers:
            match answer:
                case messages.EventAnswer():
                    if answer.seq > (self._last or 0):
                        told.append(answer)
                case messages.HeartbeatAnswer() | messages.LaggedAnswer():
                    told.append(answer)
                case messages.ErrorAnswer():
                    failure = refused(msgspec.to_builtins(answer.error))
                    return told, Gone(failure.message) if failure.code in _PASSING else failure
                case _:
                    return told, not_understood(f"it is a {type(answer).__name__}")
            self._last = max(self._last or 0, answer.seq)
        return told, None

    def _subscribed(self, seconds: float) -> tuple[Line, messages.SubscribedAnswer, list[Received]]:
        """Connect and subscribe; return the connection, the answer, and what came with it; raises `Failure`."""
        deadline = time.monotonic() + seconds
        line = Line(self._path, seconds, self._until)
        try:
            line.send(msgspec.structs.replace(self._request, since=self._last))
            answer, *early = line.receive(max(deadline - time.monotonic(), 0))
            return line, expected(answer, messages.SubscribedAnswer), early
        except Gone as exc:
            line.close()
            raise (no_answer(self._path, seconds) if exc.silent else away(self._path, exc.why)) from None
        except BaseException:
            line.close()
            raise

    def _subscribed_again(self) -> tuple[Line, messages.SubscribedAnswer, list[Received]]:
        """Try until the daemon is there again, with growing pauses; raises `Failure` for what does not pass."""
        while True:
            pause(self._pause, self._until)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            try:
                return self._subscribed(max(self._seconds, _PATIENCE))
            except Failure as failure:
                if failure.code not in _PASSING:
                    raise


def expected(answer: Received, kind: type[A]) -> A:
    """Return an answer of the kind that was asked for; raises `Failure` for an error answer and any other."""
    if isinstance(answer, messages.ErrorAnswer):
        raise refused(msgspec.to_builtins(answer.error))
    if not isinstance(answer, kind):
        raise not_understood(f"it is a {type(answer).__name__}")
    return answer


def pause(seconds: float, until: Until | None) -> None:
    """Wait; raises `Stopped`."""
    poll = select.poll()
    if until is not None:
        poll.register(*until)
    if poll.poll(math.ceil(seconds * 1000)):
        raise Stopped
