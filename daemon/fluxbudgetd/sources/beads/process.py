"""Run a program that may hang, write without end, or leave children.

It has its own process group, which is killed if the program takes too long or writes too much, or if the caller stops
it. If the daemon itself is killed, `timeout` of coreutils kills the group one second after the program's time limit.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Literal, NamedTuple, cast

# How often the program is polled.
_STEP_SECONDS = 0.02
_PIECE = 1 << 16
#: The most that a program may write.
MOST_BYTES = 1 << 18
# `timeout` gives the program this much more time than the daemon does.
_EXTRA_SECONDS = 1.0

Cut = Literal["time", "output", "stopped"]


class Outcome(NamedTuple):
    """How a program ended. `cut` says why it was killed; None if it ended by itself, with this exit code."""

    code: int
    output: bytes
    errors: bytes
    cut: Cut | None


class Call:
    """One run of a program with these arguments, carried out in a worker thread."""

    def __init__(self, arguments: Sequence[str], directory: str, environ: Mapping[str, str], seconds: float) -> None:
        self._arguments = arguments
        self._directory = directory
        self._environ = environ
        self._seconds = seconds
        self._is_stopped = False

    def stop(self) -> None:
        """Request that the program is killed; returns at once. May be called in any thread."""
        self._is_stopped = True

    def carry_out(self, program: str) -> Outcome:
        """Run the program at a path to its end; raises `OSError` or `ValueError` if it cannot be started."""
        if self._is_stopped:
            return Outcome(0, b"", b"", "stopped")
        with self._started(program) as process:
            streams = _Streams(process)
            cut = self._followed(process, streams)
            if cut is not None:
                _kill(process)
            streams.drain()
            code = process.wait()
        return Outcome(code, streams.output, streams.errors, cut)

    def _started(self, program: str) -> subprocess.Popen[bytes]:
        guard = found_in_path("timeout", self._environ)
        guarded = [] if guard is None else [guard, "-s", "KILL", f"{self._seconds + _EXTRA_SECONDS:g}"]
        return subprocess.Popen(  # noqa: S603  a program of the user's, and no shell
            [*guarded, program, *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self._directory,
            env=dict(self._environ),
            start_new_session=True,
            # The daemon's own umask keeps its files private; a project's files may be shared.
            umask=0o022,
        )

    def _followed(self, process: subprocess.Popen[bytes], streams: "_Streams") -> Cut | None:
        """Read what the program writes until it ends; return why it has to be killed, or None."""
        deadline = time.monotonic() + self._seconds
        while not _has_ended(process):
            if self._is_stopped:
                return "stopped"
            if streams.is_flooded:
                return "output"
            if time.monotonic() >= deadline:
                return "time"
            streams.serve(_STEP_SECONDS)
        return None


class _Streams:
    """A program's standard output and standard error; reading never blocks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._read: dict[int, bytearray] = {}
        self._poller = select.poll()
        for stream in (process.stdout, process.stderr):
            fd = cast("IO[bytes]", stream).fileno()
            os.set_blocking(fd, False)
            self._poller.register(fd, select.POLLIN)
            self._read[fd] = bytearray()

    @property
    def output(self) -> bytes:
        """Return what the program has written to its standard output."""
        return bytes(next(iter(self._read.values())))

    @property
    def errors(self) -> bytes:
        """Return what the program has written to its standard error."""
        return bytes(list(self._read.values())[1])

    @property
    def is_flooded(self) -> bool:
        """Return True if the program has written more than it may."""
        return any(len(data) > MOST_BYTES for data in self._read.values())

    def serve(self, seconds: float) -> None:
        """Wait at most `seconds` until there is something to read, and read it."""
        for fd, _ in self._poller.poll(seconds * 1000):
            if self._piece(fd) == b"":
                self._poller.unregister(fd)

    def drain(self) -> None:
        """Read what is left, unless it is too much. Does not wait for a child that keeps the streams open."""
        for fd in self._read:
            while not self.is_flooded and self._piece(fd):
                continue

    def _piece(self, fd: int) -> bytes | None:
        """Read and return a piece; None if there is nothing to read yet."""
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return None
        self._read[fd] += piece
        return piece


def found_in_path(program: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of a program that is on PATH; None if it is not. Blocks.

    Relative entries are skipped: they would mean directories of the project in which the program runs.
    """
    # shutil.which does this, too, but importing shutil takes a megabyte.
    for directory in os.get_exec_path(environ):
        path = os.path.join(directory, program)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return True if a process has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the daemon was started with SIGCHLD ignored
        return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group. Its number stays valid until the process is reaped."""
    with suppress(ProcessLookupError, PermissionError):  # a process of another user cannot be killed
        os.killpg(process.pid, signal.SIGKILL)
