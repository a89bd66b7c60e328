"""A process in a real pseudo-terminal, and what its screen shows."""

import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyte

from harness.daemon import CTL, Home, wait_for

MAIN_SCREEN = b"\x1b[?1049l"
ALTERNATE_SCREEN = b"\x1b[?1049h"


class InTerminal:
    """A program with a controlling terminal of its own: Ctrl-C and resizes reach it as signals.

    It is the client, unless `program` is another command.
    """

    def __init__(
        self,
        home: Home,
        *arguments: str,
        size: tuple[int, int] = (80, 24),
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = CTL,
    ) -> None:
        self._master, self.slave = os.openpty()
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self._set_size(size)
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""
        self.process = subprocess.Popen(
            [*program, *arguments],
            env={**home.environ, "TERM": "xterm-256color", "TZ": "UTC", **(environ or {})},
            cwd=home.project,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  one call
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        self._reader.join(timeout=60)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    def _set_size(self, size: tuple[int, int]) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self.screen.resize(rows, columns)
            self.screen.reset()
        self._set_size((columns, rows))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def lines(self) -> list[str]:
        with self._lock:
            return list(self.screen.display)

    def text(self) -> str:
        return "\n".join(self.lines())

    def wait_for(self, *texts: str) -> list[str]:
        """Return the screen once it shows all of these texts."""
        try:
            wait_for(lambda: all(text in self.text() for text in texts), str(texts))
        except AssertionError:
            raise AssertionError(f"{texts} not on the screen:\n{self.text()}") from None
        return self.lines()

    def wait_until_gone(self, text: str) -> None:
        wait_for(lambda: text not in self.text(), f"{text} to be gone from:\n{self.text()}")

    def style(self, text: str) -> Any:
        """Return the first cell of a text on the screen (fg, bg, bold, reverse …)."""
        for row, line in enumerate(self.lines()):
            if text in line:
                return self.screen.buffer[row][line.index(text)]
        raise AssertionError(f"{text} not on the screen")

    def end(self) -> int:
        """Wait until the process ends, require that it has restored the terminal, and return its exit code."""
        code = self.process.wait(timeout=60)
        assert termios.tcgetattr(self.slave) == self.before
        wait_for(lambda: self.raw.count(MAIN_SCREEN) == self.raw.count(ALTERNATE_SCREEN), "the main screen")
        assert self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
        assert self.raw.rfind(b"\x1b[?7h") > self.raw.rfind(b"\x1b[?7l")
        return code

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
