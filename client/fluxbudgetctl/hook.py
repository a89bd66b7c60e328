"""`hook`: passes Claude Code's JSON to the daemon, and the daemon's answer to Claude Code.

The input is sent unchanged. On any error the hook prints nothing and exits with 0, because a budget must never break a
session. With `$FLUXBUDGET_FAIL_CLOSED` set to 1 it denies the launch of sub-agents instead.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from fluxbudgetctl import json_fields, stdio
from fluxbudgetctl.connection import not_understood
from fluxbudgetctl.failure import Failure, limit_stderr, print_stderr
from fluxbudgetctl.request import ask
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetd.wire.packed import Value

_LAUNCHERS = (b"Agent", b"Task")


def run(naming: dict[str, Value | bytes], seconds: float) -> int:
    """Carry out `hook` within the time limit and return the exit code, which is always 0.

    `naming` holds the fields of the request that say which run is meant.
    """
    deadline = time.monotonic() + seconds
    limit_stderr(deadline)
    stdin = stdio.read_input(deadline)
    if not stdin.data:
        return codes.OK
    output = exports = ""
    try:
        output, exports = _ask(naming, stdin, deadline - time.monotonic())
    except Failure as failure:
        _debug(failure.message)
        if os.environ.get("FLUXBUDGET_FAIL_CLOSED") == "1" and _is_launch(stdin.data):
            output = _denial(failure.message)
    try:
        if exports:
            _export(exports)
    except OSError as exc:
        _debug(f"the file named by $CLAUDE_ENV_FILE cannot be written: {exc.strerror}")
    try:
        if output:
            stdio.write_line(output, deadline, sys.stdout)
    except OSError as exc:
        _debug(f"the output cannot be written: {exc.strerror}")
    return codes.OK


def _ask(naming: dict[str, Value | bytes], stdin: stdio.Input, left: float) -> tuple[str, str]:
    """Return what to print and what to export; raises `Failure`."""
    if not stdin.ended or left <= 0:
        raise Failure("the hook's input did not end in time", "", codes.NO_ANSWER)
    fields: dict[str, Value | bytes] = {**naming, "input": stdin.data, "whole": stdin.whole}
    answer = ask("hook", fields, left)
    output, exports = answer.get("output", ""), answer.get("exports", "")
    if answer.get("op") != "hook" or not isinstance(output, str) or not isinstance(exports, str):
        raise not_understood("it is not a hook's answer")
    return output, exports


def _export(lines: str) -> None:
    """Append lines to the file that Claude Code reads environment variables from; raises `OSError`."""
    path = os.environ.get("CLAUDE_ENV_FILE")
    if not path:
        return
    # O_NONBLOCK: the path may lead to a FIFO or a device, which would block the hook.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        size = status.st_size
        before = "" if size == 0 or os.pread(file, 1, size - 1) == b"\n" else "\n"
        after = "" if lines.endswith("\n") else "\n"
        os.write(file, f"{before}{lines}{after}".encode())
    finally:
        os.close(file)


def _is_launch(data: bytes) -> bool:
    """Return True if this is the PreToolUse event of a sub-agent's launch."""
    return json_fields.text_field(data, b"hook_event_name") == b"PreToolUse" and (
        json_fields.text_field(data, b"tool_name") in _LAUNCHERS
    )


def _denial(why: str) -> str:
    import json  # noqa: PLC0415  5 ms, which only a denial costs

    reason = f"fluxbudget: the daemon gave no answer ({one_line(why)}), and FLUXBUDGET_FAIL_CLOSED=1"
    decision = {
        "hookEventName": "PreToolUse",
        "permissionDecision": "deny",
        "permissionDecisionReason": reason,
    }
    return json.dumps({"hookSpecificOutput": decision})


def _debug(message: str) -> None:
    if os.environ.get("FLUXBUDGET_DEBUG"):
        print_stderr(f"fluxbudgetctl hook: {one_line(message)}")
