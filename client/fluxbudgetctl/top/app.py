"""The main loop: keys, signals and new snapshots in, lines out."""

import math
import os
import select
import signal
import time

from fluxbudgetctl.top import view
from fluxbudgetctl.top.feed import Feed, Snapshot
from fluxbudgetctl.top.keys import Keys
from fluxbudgetctl.top.terminal import Signals, Terminal, require_terminal
from fluxbudgetd.wire import codes

_INPUT = 0
_READ = 1024
_KILLED = 128
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: An escape that nothing follows for this long is the Esc key.
_ESCAPE_SECONDS = 0.1


def show(path: str, seconds: float, run: str | None) -> int:
    """Show the runs until a key or a signal ends the view; return the exit code. `run` is selected at the start."""
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
        feed.select(run)

    def run(self) -> int:
        """Return the exit code."""
        while True:
            snapshot = self._feed.snapshot()
            self._keep_selection(snapshot)
            size = self._terminal.size()
            screen = view.Screen(size.columns, size.lines, self._index, unicode=self._terminal.unicode)
            self._page = view.visible_runs(snapshot, screen)
            self._terminal.show(view.lines(snapshot, screen, time.strftime("%H:%M:%S")))
            code = self._wait(snapshot)
            if code is not None:
                return code

    def _keep_selection(self, snapshot: Snapshot) -> None:
        """Keep the selected run selected while others come and go; if it is gone, select the run at its position."""
        ids = [line.run.id for line in snapshot.runs]
        if self._run in ids:
            self._index = ids.index(self._run)
        elif snapshot.polled and (ids or not snapshot.away):
            self._select(snapshot, self._index)

    def _select(self, snapshot: Snapshot, index: int) -> None:
        self._index = max(min(index, len(snapshot.runs) - 1), 0)
        self._run = snapshot.runs[self._index].run.id if snapshot.runs else None
        self._feed.select(self._run)

    def _wait(self, snapshot: Snapshot) -> int | None:
        """Wait for a reason to draw again; return an exit code if it is a reason to end."""
        until_next_second = 1 - time.time() % 1  # when the clock on the screen changes
        left = _ESCAPE_SECONDS if self._keys.is_pending else until_next_second
        ready = dict(self._poll.poll(math.ceil(left * 1000)))
        if self._signals.fd in ready:
            received = self._signals.take()
            for number in _ENDING_SIGNALS:
                if number in received:
                    return _KILLED + number
            if signal.SIGTSTP in received:
                self._terminal.suspend()
            if signal.SIGWINCH in received:
                self._terminal.redraw()
        if _INPUT not in ready:
            return self._press(self._keys.end_of_sequence() if self._keys.is_pending and not ready else [], snapshot)
        data = os.read(_INPUT, _READ)
        if not data:
            return _KILLED + signal.SIGHUP  # the terminal is gone
        return self._press(self._keys.feed(data), snapshot)

    def _press(self, keys: list[str], snapshot: Snapshot) -> int | None:
        for key in keys:
            match key:
                case "quit":
                    return codes.OK
                case "refresh":
                    self._terminal.redraw()
                    self._feed.refresh()
                case _:
                    steps = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page}
                    every = len(snapshot.runs)
                    steps |= {"home": -every, "end": every}
                    self._select(snapshot, self._index + steps[key])
        return None
