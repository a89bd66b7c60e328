"""Start the user's program without a shell, with an event on its standard input.

The program has its own process group, which is killed if it takes too long. Children that outlive it keep
running. Its output is discarded, except the first line of its standard error, which explains a failure.
"""

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, cast

from fluxbudgetd.config.shown import shortened, shown_file
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.worker import Worker
from fluxbudgetd.wire.text import fold, one_line

# How often the program is polled.
_STEP_SECONDS = 0.02
# A program that floods its standard error is slowed down to this rate.
_DRAIN_BYTES = 64 << 10
_DRAIN_SECONDS = 0.05
_GRACE_SECONDS = 0.5
# Starting and reaping a program takes milliseconds, unless its file system hangs.
_SLACK_SECONDS = 2.0
# On shutdown, wait this long for the program; if it is killed, its event is delivered again.
_PATIENCE_SECONDS = 1.0
_MOST_CHARACTERS = 300
_MOST_LINE_BYTES = 4 * _MOST_CHARACTERS

_NOT_FOR_CHILDREN = ("LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET")

_SHORT = "the machine is short of memory or of processes"
_HINTS = {
    errno.ENOENT: "give the program's full path; for a script, check its first line, too",
    errno.EACCES: "make it executable (chmod +x), and check its directories",
    errno.ENOEXEC: "a script needs a first line such as #!/bin/sh",
    errno.E2BIG: "its arguments and the environment are too long",
    errno.ENOMEM: _SHORT,
    errno.EAGAIN: _SHORT,
}


class Command:
    """Runs the user's program, one at a time."""

    def __init__(self) -> None:
        hint = "check the file system that the program is on"
        self._worker = Worker("starting or ending the command", hint, _PATIENCE_SECONDS)

    async def run(self, argv: Sequence[str], payload: bytes, seconds: float) -> None:
        """Start a program with the payload on its standard input, and wait for it to end.

        `argv[0]` is a path (a leading `~/` is expanded) or is searched for in PATH. Raises `ChannelError` if it
        cannot be started, fails, or takes longer than `seconds`. Its process group is killed if it takes too long, or a
        second after the call is cancelled.
        """
        if not argv or not argv[0]:
            raise ChannelError("the command is empty", "name a program")
        program = _Program(tuple(argv), payload, seconds)
        await self._worker.run(program.carry_out, seconds + _SLACK_SECONDS, program.stop)


class _Program:
    """One run of the program, in a worker thread."""

    def __init__(self, argv: tuple[str, ...], payload: bytes, seconds: float) -> None:
        self._argv = argv
        self._name = shortened(shown_file(argv[0]), _MOST_CHARACTERS)
        self._payload = payload
        self._seconds = seconds
        self._is_stopped = False

    def stop(self) -> None:
        """Have the program killed; returns at once, and may be called in any thread."""
        self._is_stopped = True

    def carry_out(self) -> None:
        """Run the program to its end; raises `ChannelError`."""
        with self._start() as process:
            streams = _Streams(process, self._payload)
            deadline = time.monotonic() + self._seconds
            while not (has_ended := _has_ended(process)) and not self._is_stopped and time.monotonic() < deadline:
                streams.serve(_STEP_SECONDS)
            if not has_ended:
                self._kill(process, streams)
            streams.finish()
            code = process.wait()
        if not has_ended:
            raise ChannelError(
                f"{self._name} was killed after {self._seconds:g} s",
                "make it faster, or raise channels.command.timeout",
            )
        if code:
            outcome = f"ended with exit code {code}" if code > 0 else f"was ended by {_signal_name(-code)}"
            reason = f": {streams.first_line}" if streams.first_line else ""
            raise ChannelError(f"{self._name} {outcome}{reason}", "run it by hand to see why")

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(  # noqa: S603  what the user has configured, and no shell
                [_expanded(self._argv[0]), *self._argv[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=_home(),
                env={name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)},
                start_new_session=True,
            )
        except OSError as exc:
            hint = _HINTS.get(exc.errno or 0, "check the program")
            raise ChannelError(f"{self._name} cannot be started: {exc.strerror or exc}", hint) from exc
        except ValueError as exc:  # a null byte, or a character that cannot be encoded
            raise ChannelError(f"{self._name} cannot be started: {exc}", "check the command's arguments") from exc

    def _kill(self, process: subprocess.Popen[bytes], streams: "_Streams") -> None:
        """Kill the process group. Its number stays valid until the process is reaped."""
        if not self._is_stopped:
            _send(process, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < deadline and not self._is_stopped:
                streams.serve(_STEP_SECONDS)
        _send(process, signal.SIGKILL)


class _Streams:
    """A program's standard input and standard error; reading and writing never block."""

    def __init__(self, process: subprocess.Popen[bytes], payload: bytes) -> None:
        self._input = cast("IO[bytes]", process.stdin)
        self._errors = cast("IO[bytes]", process.stderr)
        self._left = memoryview(payload)
        self._line = b""
        self._drain_at: float | None = 0.0  # None: there is nothing left to drain
        self._selector = selectors.PollSelector()  # needs no file descriptor of its own
        for stream in (self._input, self._errors):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._input, selectors.EVENT_WRITE)

    @property
    def first_line(self) -> str:
        """Return the first line of the program's standard error, as printable text of at most 300 characters."""
        return shortened(one_line(fold(self._line.strip().split(b"\n")[0].strip())), _MOST_CHARACTERS)

    def serve(self, seconds: float) -> None:
        """Wait at most `seconds` until data can be passed on, and pass it on."""
        is_due = self._drain_at is not None and time.monotonic() >= self._drain_at
        if is_due:
            self._selector.register(self._errors, selectors.EVENT_READ)
        try:
            ready = {key.fileobj for key, _ in self._selector.select(seconds)}
        finally:
            if is_due:
                self._selector.unregister(self._errors)
        if self._input in ready:
            self._feed()
        if self._errors in ready:
            self._drain()

    def finish(self) -> None:
        """Read the end of the program's standard error."""
        if self._drain_at is not None:
            self._drain()

    def _feed(self) -> None:
        try:
            self._left = self._left[os.write(self._input.fileno(), self._left) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the program has closed its standard input
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self._input)
            self._input.close()

    def _drain(self) -> None:
        try:
            data = os.read(self._errors.fileno(), _DRAIN_BYTES)
        except BlockingIOError:
            return
        self._drain_at = time.monotonic() + _DRAIN_SECONDS if data else None
        if len(self._line) < _MOST_LINE_BYTES and b"\n" not in self._line.lstrip():
            self._line += data[:_MOST_LINE_BYTES]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return True if a process has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the daemon was started with SIGCHLD ignored
        return True


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # a process of another user cannot be killed
        os.killpg(process.pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _expanded(program: str) -> str:
    return os.path.expanduser(program) if program.startswith("~/") else program


def _home() -> str:
    home = os.path.expanduser("~")
    return home if os.path.isdir(home) else "/"
