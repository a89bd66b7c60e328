"""The terminal: prepared for the view, written to, and always restored."""

import contextlib
import io
import os
import select
import signal
import sys
import termios
from collections.abc import Sequence
from types import FrameType
from typing import Self

from rich.console import Console
from rich.text import Text

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes

#: Switch to the alternate screen, hide the cursor, do not wrap at the right edge; and undo that.
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = b"\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l"
_INPUT, _OUTPUT = 0, 1
_LFLAG, _CC = 3, 6
_DEFAULT_SIZE = os.terminal_size((80, 24))
_PATIENCE_MS = 500
#: Bytes per write: few, so that a terminal that blocks can be noticed soon.
_CHUNK = 4096
_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGWINCH,
)


class _Interrupted(Exception):  # noqa: N818
    """A signal arrived while a write to the terminal was blocked."""


class Signals:
    """Turns signals into bytes that can be read from `fd`, so that they interrupt nothing; `wake` writes there, too."""

    def __init__(self) -> None:
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.writing = False

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, self._received)) for number in _SIGNALS]
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before:
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._writer)

    def wake(self) -> None:
        """Make `fd` readable; may be called from any thread."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so it is readable
            os.write(self._writer, b"\0")

    def take(self) -> set[int]:
        """Return the signals that have arrived since the last call."""
        with contextlib.suppress(BlockingIOError):
            return {number for number in os.read(self.fd, 65536) if number}
        return set()

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.writing and number != signal.SIGWINCH:
            raise _Interrupted


class Terminal:
    """The terminal as a context manager: inside, the screen is ours, and keys arrive one by one, without echo."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._lines: list[str] = []
        self._console = Console(file=io.StringIO(), force_terminal=True, highlight=False, width=1, height=1)
        self._encoding = sys.stdout.encoding or "ascii"
        self.unicode = self._encoding.lower().startswith("utf")
        self._before = termios.tcgetattr(_INPUT)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Prepare the terminal for the view."""
        self._lines = []
        try:
            ours = termios.tcgetattr(_INPUT)
            ours[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
            ours[_CC][termios.VMIN], ours[_CC][termios.VTIME] = 1, 0
            termios.tcsetattr(_INPUT, termios.TCSANOW, ours)
            with contextlib.suppress(_Interrupted):  # the main loop handles the signal next
                self._write(_ENTER)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Restore the terminal; gives up if it is gone or blocked."""
        poll = select.poll()
        poll.register(_OUTPUT, select.POLLOUT)
        with contextlib.suppress(OSError, _Interrupted):
            if poll.poll(_PATIENCE_MS):
                self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(_INPUT, termios.TCSANOW, self._before)

    def suspend(self) -> None:
        """Restore the terminal and stop, as Ctrl-Z does; prepare it again when the process is continued."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._before = termios.tcgetattr(_INPUT)
        self.enter()

    def size(self) -> os.terminal_size:
        """Return the terminal's current size."""
        size = os.get_terminal_size(_OUTPUT)
        return size if size.columns and size.lines else _DEFAULT_SIZE

    def redraw(self) -> None:
        """Write every line the next time, not only those that have changed."""
        self._lines = []

    def show(self, lines: Sequence[Text]) -> None:
        """Write the lines that have changed. They must fill the terminal exactly."""
        rendered = [self._rendered(line) for line in lines]
        is_new = len(rendered) != len(self._lines)
        out = ["\x1b[2J"] if is_new else []
        for row, text in enumerate(rendered):
            if is_new or text != self._lines[row]:
                out.append(f"\x1b[{row + 1};1H{text}")
        self._lines = rendered
        try:
            self._write("".join(out).encode(self._encoding, "replace"))
        except _Interrupted:
            self.redraw()  # the main loop handles the signal next

    def _rendered(self, line: Text) -> str:
        self._console.width = max(line.cell_len, 1)
        with self._console.capture() as capture:
            self._console.print(line, end="", no_wrap=True, overflow="ignore", crop=False)
        return capture.get()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        self._signals.writing = True
        try:
            while rest:
                rest = rest[os.write(_OUTPUT, rest[:_CHUNK]) :]
        finally:
            self._signals.writing = False


def require_terminal() -> None:
    """Raise `Failure` unless stdin and stdout are a terminal that can show the view."""
    hint = "use 'fluxbudgetctl status' or 'fluxbudgetctl watch'"
    for stream, name in ((sys.stdin, "stdin"), (sys.stdout, "stdout")):
        if stream is None or not stream.isatty():
            raise Failure(f"{name} is not a terminal", hint, codes.USAGE)
    if os.environ.get("TERM") in ("dumb", "unknown"):
        raise Failure("this terminal cannot move its cursor (see $TERM)", hint, codes.USAGE)
