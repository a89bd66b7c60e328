"""The loop: keys, signals and news in, lines out."""

import math
import os
import select
import signal
import time

from fluxbudgetctl.top import view
from fluxbudgetctl.top.data import Feed, Shown
from fluxbudgetctl.top.keys import Keys
from fluxbudgetctl.top.terminal import Signals, Terminal, require_terminal
from fluxbudgetd.wire import codes

_INPUT = 0
_READ = 1024
_KILLED = 128
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: So long an escape waits for what makes it a sequence.
_ESCAPE_SECONDS = 0.1


def show(path: str, seconds: float, run: str | None) -> int:
    """Show the runs until a key or a signal ends it; return the exit code. `run` is chosen at first."""
    require_terminal()
    with Signals() as signals, Feed(path, seconds, signals.wake) as feed, Terminal(signals) as terminal:
        return _Loop(signals, feed, terminal, run).run()


class _Loop:
    def __init__(self, signals: Signals, feed: Feed, terminal: Terminal, run: str | None) -> None:
        self._signals = signals
        self._feed = feed
        self._terminal = terminal
        self._keys = Keys()
        self._run = run
        self._index = 0
        self._page = 1
        self._poll = select.poll()
        self._poll.register(_INPUT, select.POLLIN)
        self._poll.register(signals.fd, select.POLLIN)
        feed.choose(run)

    def run(self) -> int:
        """Return the exit code."""
        while True:
            shown = self._feed.shown()
            self._settle(shown)
            size = self._terminal.size()
            place = view.Place(size.columns, size.lines, self._index, unicode=self._terminal.unicode)
            self._page = view.visible_runs(shown, place)
            self._terminal.show(view.lines(shown, place, time.strftime("%H:%M:%S")))
            code = self._wait(shown)
            if code is not None:
                return code

    def _settle(self, shown: Shown) -> None:
        """Stay on the run that was chosen while the others come and go; when it has gone, on its place."""
        ids = [line.run.id for line in shown.runs]
        if self._run in ids:
            self._index = ids.index(self._run)
        elif shown.asked and (ids or not shown.away):
            self._choose(shown, self._index)

    def _choose(self, shown: Shown, index: int) -> None:
        self._index = max(min(index, len(shown.runs) - 1), 0)
        self._run = shown.runs[self._index].run.id if shown.runs else None
        self._feed.choose(self._run)

    def _wait(self, shown: Shown) -> int | None:
        """Wait for the next reason to draw; return an exit code when it is one to end."""
        left = _ESCAPE_SECONDS if self._keys.waiting else 1 - time.time() % 1  # the clock's next second
        ready = dict(self._poll.poll(math.ceil(left * 1000)))
        if self._signals.fd in ready:
            taken = self._signals.taken()
            for number in _ENDING:
                if number in taken:
                    return _KILLED + number
            if signal.SIGTSTP in taken:
                self._terminal.stop()
            if signal.SIGWINCH in taken:
                self._terminal.forget()
        if _INPUT not in ready:
            return self._press(self._keys.alone() if self._keys.waiting and not ready else [], shown)
        data = os.read(_INPUT, _READ)
        if not data:
            return _KILLED + signal.SIGHUP  # the terminal has gone
        return self._press(self._keys.feed(data), shown)

    def _press(self, keys: list[str], shown: Shown) -> int | None:
        for key in keys:
            match key:
                case "quit":
                    return codes.OK
                case "refresh":
                    self._terminal.forget()
                    self._feed.look()
                case _:
                    steps = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page}
                    everything = len(shown.runs)
                    steps |= {"home": -everything, "end": everything}
                    self._choose(shown, self._index + steps[key])
        return None
