"""`statusline`: one line for Claude Code's status line, made by the daemon; without a socket, from the state file."""

from __future__ import annotations

import os
import time

from fluxbudgetctl import environment, pipes
from fluxbudgetctl.asking import ask
from fluxbudgetctl.connection import NO_SOCKET, not_understood
from fluxbudgetctl.failure import Failure, one_line, say
from fluxbudgetd.wire import codes

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetctl.hot import Options
    from fluxbudgetd.wire.packed import Value


def run(options: Options, seconds: float) -> int:
    """Carry out `statusline`; return the exit code. Raises `Failure`."""
    deadline = time.monotonic() + seconds
    given = pipes.read(deadline)
    left = deadline - time.monotonic()
    if not given.ended or left <= 0:
        raise Failure(f"stdin did not end within {seconds:g} s", "give it </dev/null", codes.NO_ANSWER)
    width = options.width or environment.columns()
    colour = options.colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    fields: dict[str, Value | bytes] = {**options.naming(), "input": given.data, "width": width, "colour": colour}
    try:
        answer = ask("statusline", fields, left)
    except Failure as failure:
        if failure.code != NO_SOCKET:
            raise
        from fluxbudgetctl import state_file  # noqa: PLC0415  only who may not open a socket needs it

        found = state_file.look(options, failure)
        pipes.write(state_file.line(found, width, colour=colour))
        return codes.OK
    line, why = answer.get("line"), answer.get("stale_why")
    if not isinstance(line, str):
        raise not_understood("it has no line")
    pipes.write(line)
    if why:
        say(f"fluxbudgetctl: last known numbers: {one_line(str(why))}")
    return codes.OK
