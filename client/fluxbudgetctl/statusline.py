"""`statusline`: one line for Claude Code's status line, made by the daemon; without a socket, from the state file."""

from __future__ import annotations

import os
import sys
import time

from fluxbudgetctl import environment, fields, pipes
from fluxbudgetctl.asking import ask
from fluxbudgetctl.connection import NO_SOCKET, not_understood
from fluxbudgetctl.failure import Failure, bound, one_line, say
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import fold

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetctl.hot import Options
    from fluxbudgetd.wire.packed import Value


def run(options: Options, seconds: float) -> int:
    """Carry out `statusline`; return the exit code. Raises `Failure`."""
    deadline = time.monotonic() + seconds
    bound(deadline)
    given = pipes.read(deadline)
    left = deadline - time.monotonic()
    if not given.ended or left <= 0:
        raise Failure(f"stdin did not end within {seconds:g} s", "give it </dev/null", codes.NO_ANSWER)
    width = options.width or environment.columns()
    colour = options.colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    asked: dict[str, Value | bytes] = {**options.naming(), "input": given.data, "width": width, "colour": colour}
    try:
        answer = ask("statusline", asked, left)
    except Failure as failure:
        if failure.code != NO_SOCKET:
            raise
        from fluxbudgetctl import state_file  # noqa: PLC0415  only who may not open a socket needs it

        session = fields.text(given.data, b"session_id")
        found = state_file.look(options, failure, None if session is None else fold(session))
        return _print(state_file.line(found, width, colour=colour), deadline)
    line, why = answer.get("line"), answer.get("stale_why")
    if not isinstance(line, str):
        raise not_understood("it has no line")
    if isinstance(why, str) and why:
        say(f"fluxbudgetctl: last known numbers: {one_line(why)}")
    return _print(line, deadline)


def _print(line: str, deadline: float) -> int:
    """Print the line; return the exit code. Raises `Failure` when nobody has read it in time."""
    try:
        pipes.write(line, deadline, sys.stdout)
    except TimeoutError as exc:
        raise Failure(f"the line cannot be written: {exc.strerror}", "read stdout", codes.NO_ANSWER) from None
    return codes.OK
