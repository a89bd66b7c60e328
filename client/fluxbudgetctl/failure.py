"""Failures that end a command early (a message, a hint, an exit code), and writing lines to stderr."""

import os
import sys

from fluxbudgetctl import stdio
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line


class Failure(Exception):  # noqa: N818  not an error of the program
    """The command cannot be answered.

    `code` is the daemon's error code, or the kind of problem in reaching the daemon.
    """

    def __init__(self, message: str, hint: str, exit_code: int, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.code = code

    def report(self) -> int:
        """Write the message and the hint to stderr; return the exit code."""
        print_stderr(f"fluxbudgetctl: {one_line(self.message)}")
        if self.hint:
            print_stderr(f"hint: {one_line(self.hint)}")
        return self.exit_code


class _Stderr:
    """The deadline (monotonic seconds) until which output on stderr may wait for a reader; None: no limit."""

    deadline: float | None = None


def limit_stderr(deadline: float | None) -> None:
    """Drop what cannot be written to stderr by the deadline (monotonic seconds); None: wait until it is read.

    The verbs that Claude Code waits for set one.
    """
    _Stderr.deadline = deadline


def print_stderr(line: str) -> None:
    """Write a line to stderr. If stderr is closed or full, the answer and the exit code stay the same."""
    try:
        if _Stderr.deadline is None:
            sys.stderr.write(line + "\n")
        else:
            stdio.write(f"{line}\n".encode(), sys.stderr, _Stderr.deadline)
    except AttributeError:
        return
    except OSError:
        discard(2)


def discard(fd: int) -> None:
    """Send the rest of stdout or stderr to /dev/null.

    Otherwise Python would try to write the rest of the buffer at exit, fail again, and change the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def failure_of(error: object) -> Failure:
    """Return the failure for the `error` of an answer, which should be a map."""
    answered = error if isinstance(error, dict) else {}
    fields = {"code": "internal", "message": "the daemon failed", "hint": "see 'fluxbudgetctl doctor'"}
    fields |= {name: value for name, value in answered.items() if name in fields and isinstance(value, str)}
    exit_code = codes.ERROR_CODES.get(fields["code"], (codes.INTERNAL, ""))[0]
    return Failure(fields["message"], fields["hint"], exit_code, fields["code"])
