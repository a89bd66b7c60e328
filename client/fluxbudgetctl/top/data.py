"""What is shown, kept up to date by two threads: one asks about once a second, one listens to the events."""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import msgspec

from fluxbudgetctl.connection import NO_SOCKET
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.stream import A, Again, Anew, Gone, Line, Lost, Stopped, Stream, Told, Until, expected, pause
from fluxbudgetd.wire import messages

_EVENTS = 200
_LOOK_SECONDS = 1.0
#: However many events come: so long between two looks.
_SHORTEST_GAP = 0.1
_RETRY_SECONDS = 1.0
_HEARTBEAT_MS = 5000
_AWAY = {NO_SOCKET, "unreachable", "no_answer"}


class Shown(NamedTuple):
    """What is known now. While `away` says that the daemon does not answer, the rest is what was known last."""

    runs: tuple[messages.RunLine, ...] = ()
    """The active runs, newest first."""
    sources: tuple[messages.SourceInfo, ...] = ()
    detail: messages.RunShowAnswer | None = None
    """The run that was chosen."""
    events: tuple[messages.EventAnswer, ...] = ()
    """The last ones, oldest first."""
    away: str = ""
    """Why there are no new numbers; empty: there are."""
    asked: bool = False
    """There has been an answer, or a failure to get one."""


class Feed:
    """Keeps a `Shown`; calls `wake`, from any thread, when it has changed."""

    def __init__(self, path: str, seconds: float, wake: Callable[[], None]) -> None:
        self._path = path
        self._seconds = seconds
        self._wake = wake
        self._shown = Shown()
        self._chosen: str | None = None
        self._wanted = False
        self._events: deque[messages.EventAnswer] = deque(maxlen=_EVENTS)
        self._changed = threading.Condition()
        self._line: Line | None = None
        self._stop, self._stopper = os.pipe()
        self._until = Until(self._stop, select.POLLIN)
        self._threads = ThreadPoolExecutor(2)
        self._work: list[Future[None]] = []

    def __enter__(self) -> Self:
        for work in (self._ask_again_and_again, self._listen):
            future = self._threads.submit(work)
            future.add_done_callback(lambda _: self._wake())
            self._work.append(future)
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the threads."""
        os.write(self._stopper, b"x")
        self.look()  # waits no longer, and finds that it is over
        self._threads.shutdown()
        os.close(self._stop)
        os.close(self._stopper)

    def shown(self) -> Shown:
        """Return what is known now; raises what a thread has ended with."""
        for work in self._work:
            if work.done():
                work.result()
        with self._changed:
            return self._shown

    def choose(self, run: str | None) -> None:
        """Have this run's details, too."""
        with self._changed:
            if run == self._chosen:
                return
            self._chosen = run
        self.look()

    def look(self) -> None:
        """Ask at once."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def _put(self, **fields: object) -> None:
        with self._changed:
            before, self._shown = self._shown, self._shown._replace(**fields)  # type: ignore[arg-type]
            same = before == self._shown
        if not same:
            self._wake()

    def _ask_again_and_again(self) -> None:
        try:
            while True:
                self._ask_all()
                pause(_SHORTEST_GAP, self._until)
                with self._changed:
                    self._changed.wait_for(lambda: self._wanted, _LOOK_SECONDS - _SHORTEST_GAP)
                    self._wanted = False
        except Stopped:
            return
        finally:
            self._hang_up()

    def _ask_all(self) -> None:
        """Ask for everything once; raises `Stopped`."""
        with self._changed:
            chosen = self._chosen
        try:
            answer = page = self._ask(messages.Status(), messages.StatusAnswer)
            runs = answer.runs
            while page.next is not None:
                page = self._ask(messages.Status(after=page.next), messages.StatusAnswer)
                runs += page.runs
            detail = self._detail(chosen)
        except (Failure, Gone) as exc:
            self._hang_up()
            away = isinstance(exc, Gone) or exc.code in _AWAY
            self._put(away="daemon away, waiting" if away else str(exc), asked=True)
        else:
            self._put(runs=runs, sources=answer.sources, detail=detail, away="", asked=True)

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
        """Ask on the one connection; raises `Failure`, `Gone`, `Stopped`."""
        if self._line is None:
            self._line = Line(self._path, self._seconds, self._until)
        self._line.send(msgspec.structs.replace(request, wait_ms=int(self._seconds * 1000)))
        return expected(self._line.receive(self._seconds)[0], kind)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _listen(self) -> None:
        request = messages.Subscribe(heartbeat_ms=_HEARTBEAT_MS)
        try:
            while True:
                stream = Stream(self._path, request, self._seconds, back=_EVENTS, until=self._until)
                try:
                    for burst in stream.told():
                        self._note(burst)
                except Failure:
                    # The other thread says why; the next stream brings the last events again.
                    pause(_RETRY_SECONDS, self._until)
                    self._events.clear()
                else:
                    return
        except Stopped:
            return

    def _note(self, burst: list[Told]) -> None:
        news = False
        for told in burst:
            if isinstance(told, Anew):
                self._events.clear()
            if isinstance(told, messages.EventAnswer):
                self._events.append(told)
            news = news or isinstance(told, (messages.EventAnswer, Lost, Again, Anew))
        if news:
            self._put(events=tuple(self._events))
            self.look()
