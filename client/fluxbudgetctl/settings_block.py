"""`hook --print-settings`: what to merge into Claude Code's settings.json so that it calls `hook` and `statusline`."""

import json
import os
import shlex
import shutil
import sys

from fluxbudgetd.wire import codes

_NAME = "fluxbudgetctl"
#: Claude Code's events at which fluxbudget has something to say or to learn, and for which tools.
_EVENTS = {
    "SessionStart": None,
    "UserPromptSubmit": None,
    "PreToolUse": "Agent|Task",
    "PostToolBatch": None,
    "SubagentStart": None,
    "SubagentStop": None,
    "SessionEnd": None,
}
# Seconds; a hook is done within 0.2 unless the machine is very busy. Claude Code itself gives SessionEnd less.
_LIMIT = 2
_LIMITS = {"SessionEnd": 1}


def show() -> int:
    """Print the block as JSON; return the exit code."""
    print(json.dumps(block(command()), indent=2))
    return codes.OK


def block(program: str) -> dict[str, object]:
    """Return the settings in which Claude Code calls this program (a shell's words)."""
    hooks: dict[str, object] = {}
    for event, matcher in _EVENTS.items():
        call = {"type": "command", "command": f"{program} hook", "timeout": _LIMITS.get(event, _LIMIT)}
        entry: dict[str, object] = {} if matcher is None else {"matcher": matcher}
        hooks[event] = [{**entry, "hooks": [call]}]
    return {"hooks": hooks, "statusLine": {"type": "command", "command": f"{program} statusline"}}


def command() -> str:
    """Return how a shell calls this very program: by its name where $PATH leads to it, else by its absolute path.

    Called is what has handed the command line to this Python client, which lies beside it.
    """
    started = os.path.realpath(sys.argv[0])
    if os.path.basename(started) == "__main__.py":  # python -m
        return f"{shlex.quote(sys.executable)} -m {_NAME}"
    program = os.path.join(os.path.dirname(started), _NAME)
    found = shutil.which(_NAME)
    if found is not None and os.path.isabs(found) and os.path.exists(program) and os.path.samefile(found, program):
        return _NAME
    return shlex.quote(program)
