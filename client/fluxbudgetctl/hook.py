"""`hook`: Claude Code's JSON to the daemon, the daemon's answer to Claude Code. It never disturbs the session.

The input is passed on as it is. Whatever goes wrong, nothing is printed and the exit code is 0, since a budget must not
break a session; who wants it otherwise sets `$FLUXBUDGET_FAIL_CLOSED`, and sub-agents are then refused.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from fluxbudgetctl import fields, pipes
from fluxbudgetctl.asking import ask
from fluxbudgetctl.connection import not_understood
from fluxbudgetctl.failure import Failure, bound, one_line, say
from fluxbudgetd.wire import codes

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetctl.hot import Options
    from fluxbudgetd.wire.packed import Value

_LAUNCHERS = (b"Agent", b"Task")


def run(options: Options, seconds: float) -> int:
    """Carry out `hook`; return the exit code, which is 0."""
    deadline = time.monotonic() + seconds
    bound(deadline)
    given = pipes.read(deadline)
    if not given.data:
        return codes.OK
    output = exports = ""
    try:
        output, exports = _answer(options, given, deadline - time.monotonic())
    except Failure as failure:
        _debug(failure.message)
        if os.environ.get("FLUXBUDGET_FAIL_CLOSED") == "1" and _launches(given.data):
            output = _deny(failure.message)
    try:
        if exports:
            _export(exports)
    except OSError as exc:
        _debug(f"the file that $CLAUDE_ENV_FILE names cannot be written: {exc.strerror}")
    try:
        if output:
            pipes.write(output, deadline, sys.stdout)
    except OSError as exc:
        _debug(f"the output cannot be written: {exc.strerror}")
    return codes.OK


def _answer(options: Options, given: pipes.Input, left: float) -> tuple[str, str]:
    """Return what to print and what to export; raises `Failure`."""
    if not given.ended or left <= 0:
        raise Failure("the hook's input did not end in time", "", codes.NO_ANSWER)
    asked: dict[str, Value | bytes] = {**options.naming(), "input": given.data, "whole": given.whole}
    answer = ask("hook", asked, left)
    output, exports = answer.get("output", ""), answer.get("exports", "")
    if answer.get("op") != "hook" or not isinstance(output, str) or not isinstance(exports, str):
        raise not_understood("it is no hook's")
    return output, exports


def _export(lines: str) -> None:
    """Append lines to the file that Claude Code reads environment variables from; raises `OSError`."""
    path = os.environ.get("CLAUDE_ENV_FILE")
    if not path:
        return
    # Not blocking: something else than a file may stand there, which would keep the hook waiting.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        size = about.st_size
        before = "" if size == 0 or os.pread(file, 1, size - 1) == b"\n" else "\n"
        after = "" if lines.endswith("\n") else "\n"
        os.write(file, f"{before}{lines}{after}".encode())
    finally:
        os.close(file)


def _launches(data: bytes) -> bool:
    """Tell whether this is the question before a sub-agent's start."""
    return fields.text(data, b"hook_event_name") == b"PreToolUse" and fields.text(data, b"tool_name") in _LAUNCHERS


def _deny(reason: str) -> str:
    import json  # noqa: PLC0415  5 ms, when there was no answer

    words = f"fluxbudget: the daemon gave no answer ({one_line(reason)}), and FLUXBUDGET_FAIL_CLOSED=1"
    decision = {
        "hookEventName": "PreToolUse",
        "permissionDecision": "deny",
        "permissionDecisionReason": words,
    }
    return json.dumps({"hookSpecificOutput": decision})


def _debug(message: str) -> None:
    if os.environ.get("FLUXBUDGET_DEBUG"):
        say(f"fluxbudgetctl hook: {one_line(message)}")
