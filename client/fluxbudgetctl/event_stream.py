"""A stream of the daemon's events that survives reconnects: every event once, in order, without gaps."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import msgspec

from fluxbudgetctl.calls import expect
from fluxbudgetctl.failure import Failure, failure_of
from fluxbudgetctl.live_connection import ConnectionLost, LiveConnection, Received, StopOn, Stopped, pause
from fluxbudgetctl.unanswered import NO_SOCKET, no_answer, not_understood, unreachable
from fluxbudgetd.wire import messages

# Seconds between attempts to reconnect; each pause is twice the one before.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Minimum time limit of a reconnect attempt, in seconds.
_RECONNECT_SECONDS = 5.0
#: The connection counts as lost after this many missing heartbeats…
_MISSING_HEARTBEATS = 3
#: … but not before this many seconds, because the machine may be busy.
_SHORTEST_SILENCE = 2.0
#: Failures after which reconnecting may succeed.
_TRANSIENT = {NO_SOCKET, "unreachable", "no_answer", "busy", "timeout"}


class Disconnected(NamedTuple):
    """The connection is lost; the stream waits for the daemon."""

    why: str


class Reconnected(NamedTuple):
    """The connection is back; the stream continues after this event."""

    since: int


class LedgerReplaced(NamedTuple):
    """The daemon has a new ledger, whose events are numbered from the start; the stream continues after this one."""

    since: int


Notice = (
    messages.EventAnswer
    | messages.HeartbeatAnswer
    | messages.LaggedAnswer
    | Disconnected
    | Reconnected
    | LedgerReplaced
)


class EventStream:
    """One subscription. Call `bursts` once; it yields until `stop_on` ends it.

    `request` says what to subscribe to and how often heartbeats come. With `back`, the stream starts that many events
    before the latest one, whatever `request.since` says. `seconds` is the time limit of the first attempt, for
    connecting and the answer together.
    """

    def __init__(
        self,
        path: str,
        request: messages.Subscribe,
        seconds: float,
        *,
        back: int | None = None,
        stop_on: StopOn | None = None,
    ) -> None:
        self._path = path
        self._request = request
        self._seconds = seconds
        self._back = back
        self._stop_on = stop_on
        self._silence = max(_MISSING_HEARTBEATS * request.heartbeat_ms / 1000, _SHORTEST_SILENCE)
        self._pause = _FIRST_PAUSE
        self._last = request.since

    def bursts(self) -> Iterator[list[Notice]]:
        """Yield what happens; raises `Failure` if the first attempt fails, and for errors that are not transient."""
        try:
            if self._back is not None:
                connection, subscribed, _ = self._subscribe(self._seconds)
                connection.close()
                self._last = max(subscribed.last - self._back, 0)
            connection, subscribed, early = self._subscribe(self._seconds)
            first = self._started(subscribed)
            while True:
                with closing(connection):
                    if first:
                        yield first
                    try:
                        yield from self._until_lost(connection, early)
                    except ConnectionLost as exc:
                        lost = Disconnected(exc.why)
                yield [lost]
                connection, subscribed, early = self._resubscribe()
                first = [Reconnected(subscribed.since), *self._started(subscribed)]
        except Stopped:
            return

    def _until_lost(self, connection: LiveConnection, early: list[Received]) -> Iterator[list[Notice]]:
        """Yield what arrives; `early` has arrived already. Raises `ConnectionLost`, `Failure`, `Stopped`."""
        while True:
            notices, error = self._sorted(early or connection.receive(self._silence))
            early = []
            if notices:
                self._pause = _FIRST_PAUSE
                yield notices
            if error is not None:
                raise error

    def _started(self, subscribed: messages.SubscribedAnswer) -> list[Notice]:
        """Continue from where the daemon says; return what the caller must know about that."""
        requested, self._last = self._last, subscribed.since
        is_replaced = requested is not None and subscribed.since < requested
        return [LedgerReplaced(subscribed.since)] if is_replaced else []

    def _sorted(self, answers: list[Received]) -> tuple[list[Notice], Failure | ConnectionLost | None]:
        """Return what is new, and the error that follows it, if any."""
        notices: list[Notice] = []
        for answer in answers:
            match answer:
                case messages.EventAnswer():
                    if answer.seq > (self._last or 0):
                        notices.append(answer)
                case messages.HeartbeatAnswer() | messages.LaggedAnswer():
                    notices.append(answer)
                case messages.ErrorAnswer():
                    failure = failure_of(msgspec.to_builtins(answer.error))
                    return notices, ConnectionLost(failure.message) if failure.code in _TRANSIENT else failure
                case _:
                    return notices, not_understood(f"it is a {type(answer).__name__}")
            self._last = max(self._last or 0, answer.seq)
        return notices, None

    def _subscribe(self, seconds: float) -> tuple[LiveConnection, messages.SubscribedAnswer, list[Received]]:
        """Connect and subscribe; return the connection, the answer, and what came after it; raises `Failure`."""
        deadline = time.monotonic() + seconds
        connection = LiveConnection(self._path, seconds, self._stop_on)
        try:
            connection.send(msgspec.structs.replace(self._request, since=self._last))
            answer, *early = connection.receive(max(deadline - time.monotonic(), 0))
            return connection, expect(answer, messages.SubscribedAnswer), early
        except ConnectionLost as exc:
            connection.close()
            raise (no_answer(self._path, seconds) if exc.timed_out else unreachable(self._path, exc.why)) from None
        except BaseException:
            connection.close()
            raise

    def _resubscribe(self) -> tuple[LiveConnection, messages.SubscribedAnswer, list[Received]]:
        """Retry, with growing pauses, until the daemon is back; raises `Failure` for what is not transient."""
        while True:
            pause(self._pause, self._stop_on)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            try:
                return self._subscribe(max(self._seconds, _RECONNECT_SECONDS))
            except Failure as failure:
                if failure.code not in _TRANSIENT:
                    raise
