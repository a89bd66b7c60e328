"""`statusline`: one line for Claude Code's status line, from the daemon or, without a socket, from the state file."""

from __future__ import annotations

import os
import sys
import time

from fluxbudgetctl import environment, json_fields, stdio
from fluxbudgetctl.connection import NO_SOCKET, not_understood
from fluxbudgetctl.failure import Failure, limit_stderr, print_stderr
from fluxbudgetctl.request import ask
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import fold, one_line

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetd.wire.packed import Value


def run(naming: dict[str, Value | bytes], seconds: float, *, width: int | None, colour: bool) -> int:
    """Carry out `statusline` within the time limit and return the exit code; raises `Failure`.

    `naming` holds the fields of the request that say which run is meant. `width` is in cells.
    """
    deadline = time.monotonic() + seconds
    limit_stderr(deadline)
    stdin = stdio.read_input(deadline)
    left = deadline - time.monotonic()
    if not stdin.ended or left <= 0:
        raise Failure(f"stdin did not end within {seconds:g} s", "redirect stdin from /dev/null", codes.NO_ANSWER)
    width = width or environment.columns()
    colour = colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    fields: dict[str, Value | bytes] = {**naming, "input": stdin.data, "width": width, "colour": colour}
    try:
        answer = ask("statusline", fields, left)
    except Failure as failure:
        if failure.code != NO_SOCKET:
            raise
        from fluxbudgetctl import state_file  # noqa: PLC0415  only needed without a socket

        session = json_fields.text_field(stdin.data, b"session_id")
        state = state_file.read_state(naming, failure, None if session is None else fold(session))
        return _print(state_file.line(state, width, colour=colour), deadline)
    line, why = answer.get("line"), answer.get("stale_why")
    if not isinstance(line, str):
        raise not_understood("it has no line")
    if isinstance(why, str) and why:
        print_stderr(f"fluxbudgetctl: last known numbers: {one_line(why)}")
    return _print(line, deadline)


def _print(line: str, deadline: float) -> int:
    """Print the line and return the exit code; raises `Failure` if it is not read by the deadline."""
    try:
        stdio.write_line(line, deadline, sys.stdout)
    except TimeoutError as exc:
        raise Failure(
            f"the line cannot be written: {exc.strerror}", "make sure that stdout is read", codes.NO_ANSWER
        ) from None
    return codes.OK
