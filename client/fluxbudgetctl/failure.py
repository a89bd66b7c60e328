"""What ends a command early: one line, a hint, an exit code."""

import os
import sys

from fluxbudgetd.wire import codes


class Failure(Exception):  # noqa: N818  it is no error of the program
    """The command cannot be answered. `code` is the daemon's error code, or the kind of trouble in reaching it."""

    def __init__(self, message: str, hint: str, exit_code: int, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.code = code

    def tell(self) -> int:
        """Write the line and the hint to stderr; return the exit code."""
        say(f"fluxbudgetctl: {one_line(self.message)}")
        if self.hint:
            say(f"hint: {one_line(self.hint)}")
        return self.exit_code


class _Limit:
    """How long a line on stderr waits for somebody who reads: None, for ever; else until then (monotonic seconds)."""

    deadline: float | None = None


def bound(deadline: float) -> None:
    """Have what is said from now on wait until the deadline (monotonic seconds) and no longer; what is late is dropped.

    For the verbs that Claude Code waits for. Every other one waits until somebody reads what it says.
    """
    _Limit.deadline = deadline


def say(line: str) -> None:
    """Write a line to stderr; one that is closed or full changes nothing about the answer and its exit code."""
    try:
        if _Limit.deadline is None:
            sys.stderr.write(line + "\n")
        else:
            from fluxbudgetctl import pipes  # noqa: PLC0415  the verbs with a limit have imported it

            pipes.write(line, _Limit.deadline, sys.stderr)
    except AttributeError:
        return
    except OSError:
        silence(2)


def silence(file: int) -> None:
    """Throw away what else is written to stdout or stderr.

    What is left in the buffer would fail once more at the interpreter's end, and change the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)


def refused(error: object) -> Failure:
    """Return the failure for the `error` of an answer, given as a map or as a struct's fields."""
    given = error if isinstance(error, dict) else {}
    fields = {"code": "internal", "message": "the daemon failed", "hint": ""}
    fields |= {name: value for name, value in given.items() if name in fields and isinstance(value, str)}
    exit_code = codes.ERROR_CODES.get(fields["code"], (codes.INTERNAL, ""))[0]
    return Failure(fields["message"], fields["hint"], exit_code, fields["code"])


def one_line(text: str) -> str:
    """Return text fit for a terminal: what could move the cursor or break the line is written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    if "\uef80" <= character <= "\uefff":  # a foreign byte that is no UTF-8: see fluxbudgetd.wire.text
        return f"\\x{ord(character) - 0xEF00:02x}"
    return character.encode("unicode_escape").decode()
