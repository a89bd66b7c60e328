"""Keeps what is shown up to date, with two threads: one polls about once a second, one follows the events."""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import msgspec

from fluxbudgetctl.calls import A, expect
from fluxbudgetctl.event_stream import Disconnected, EventStream, LedgerReplaced, Notice, Reconnected
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.live_connection import ConnectionLost, LiveConnection, StopOn, Stopped, pause
from fluxbudgetctl.unanswered import NO_SOCKET
from fluxbudgetd.wire import messages

_EVENTS = 200
#: Minimum seconds between polls.
_SHORTEST_GAP = 0.1
_RETRY_SECONDS = 1.0
_AWAY = {NO_SOCKET, "unreachable", "no_answer"}


class Snapshot(NamedTuple):
    """What is known now. While `away` is set, the other fields are the last known ones."""

    runs: tuple[messages.RunLine, ...] = ()
    """The active runs, newest first."""
    sources: tuple[messages.SourceInfo, ...] = ()
    detail: messages.RunShowAnswer | None = None
    """The selected run."""
    events: tuple[messages.EventAnswer, ...] = ()
    """The latest events, oldest first."""
    away: str = ""
    """Why there are no new numbers; empty if there are."""
    polled: bool = False
    """True after the first answer, or the first failure to get one."""


class Feed:
    """Keeps a `Snapshot`; calls `wake`, from any thread, when it has changed.

    `seconds` is the time limit of a request. It polls every `poll_seconds` if nothing happens, and expects a heartbeat
    of the event stream every `heartbeat_ms`.
    """

    def __init__(
        self,
        path: str,
        seconds: float,
        wake: Callable[[], None],
        *,
        poll_seconds: float = 1.0,
        heartbeat_ms: int = 5000,
    ) -> None:
        self._path = path
        self._seconds = seconds
        self._wake = wake
        self._poll_seconds = poll_seconds
        self._subscribe = messages.Subscribe(heartbeat_ms=heartbeat_ms)
        self._snapshot = Snapshot()
        self._selected: str | None = None
        self._refresh_requested = False
        self._events: deque[messages.EventAnswer] = deque(maxlen=_EVENTS)
        self._changed = threading.Condition()
        self._connection: LiveConnection | None = None
        self._stop_read, self._stop_write = os.pipe()
        self._stop_on = StopOn(self._stop_read, select.POLLIN)
        self._threads = ThreadPoolExecutor(2)
        self._work: list[Future[None]] = []

    def __enter__(self) -> Self:
        for work in (self._poll, self._follow_events):
            future = self._threads.submit(work)
            future.add_done_callback(lambda _: self._wake())
            self._work.append(future)
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the threads."""
        os.write(self._stop_write, b"x")
        self.refresh()  # ends the polling thread's wait
        self._threads.shutdown()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def snapshot(self) -> Snapshot:
        """Return what is known now; raises the exception that has ended a thread, if any."""
        for work in self._work:
            if work.done():
                work.result()
        with self._changed:
            return self._snapshot

    def select(self, run: str | None) -> None:
        """Include the details of this run in the next snapshots."""
        with self._changed:
            if run == self._selected:
                return
            self._selected = run
        self.refresh()

    def refresh(self) -> None:
        """Poll at once."""
        with self._changed:
            self._refresh_requested = True
            self._changed.notify_all()

    def _update(self, **fields: object) -> None:
        with self._changed:
            before, self._snapshot = self._snapshot, self._snapshot._replace(**fields)  # type: ignore[arg-type]
            is_same = before == self._snapshot
        if not is_same:
            self._wake()

    def _poll(self) -> None:
        try:
            while True:
                self._poll_once()
                pause(_SHORTEST_GAP, self._stop_on)
                with self._changed:
                    self._changed.wait_for(lambda: self._refresh_requested, self._poll_seconds - _SHORTEST_GAP)
                    self._refresh_requested = False
        except Stopped:
            return
        finally:
            self._disconnect()

    def _poll_once(self) -> None:
        """Ask for everything once; raises `Stopped`."""
        with self._changed:
            selected = self._selected
        try:
            answer = page = self._ask(messages.Status(), messages.StatusAnswer)
            runs = answer.runs
            while page.next is not None:
                page = self._ask(messages.Status(after=page.next), messages.StatusAnswer)
                runs += page.runs
            detail = self._detail(selected)
        except (Failure, ConnectionLost) as exc:
            self._disconnect()
            is_away = isinstance(exc, ConnectionLost) or exc.code in _AWAY
            self._update(away="daemon away, waiting" if is_away else str(exc), polled=True)
        else:
            self._update(runs=runs, sources=answer.sources, detail=detail, away="", polled=True)

    def _detail(self, run: str | None) -> messages.RunShowAnswer | None:
        if run is None:
            return None
        try:
            return self._ask(messages.RunShow(run=run), messages.RunShowAnswer)
        except Failure as failure:
            if failure.code != "no_run":
                raise
            return None

    def _ask(self, request: messages.AnyRequest, kind: type[A]) -> A:
        """Ask on the open connection; raises `Failure`, `ConnectionLost`, `Stopped`."""
        if self._connection is None:
            self._connection = LiveConnection(self._path, self._seconds, self._stop_on)
        self._connection.send(msgspec.structs.replace(request, wait_ms=int(self._seconds * 1000)))
        return expect(self._connection.receive(self._seconds)[0], kind)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _follow_events(self) -> None:
        try:
            while True:
                stream = EventStream(self._path, self._subscribe, self._seconds, back=_EVENTS, stop_on=self._stop_on)
                try:
                    for burst in stream.bursts():
                        self._take(burst)
                except Failure:
                    # The polling thread reports the reason. The next stream starts with the latest events again.
                    pause(_RETRY_SECONDS, self._stop_on)
                    self._events.clear()
                else:
                    return
        except Stopped:
            return

    def _take(self, burst: list[Notice]) -> None:
        is_news = False
        for notice in burst:
            if isinstance(notice, LedgerReplaced):
                self._events.clear()
            if isinstance(notice, messages.EventAnswer):
                self._events.append(notice)
            is_news = is_news or isinstance(notice, (messages.EventAnswer, Disconnected, Reconnected, LedgerReplaced))
        if is_news:
            self._update(events=tuple(self._events))
            self.refresh()
