"""`hook --print-settings`: what to merge into Claude Code's settings.json so that it calls `hook` and `statusline`."""

import json
import os
import shlex
import shutil
import sys

from fluxbudgetd.wire import codes

_NAME = "fluxbudgetctl"
#: Claude Code's events that fluxbudget answers or records, each with a matcher for the tools (None: no matcher).
_EVENTS = {
    "SessionStart": None,
    "UserPromptSubmit": None,
    "PreToolUse": "Agent|Task",
    "PostToolBatch": None,
    "SubagentStart": None,
    "SubagentStop": None,
    "SessionEnd": None,
}
# Seconds. A hook takes at most 0.2 unless the machine is very busy. Claude Code itself gives SessionEnd less.
_TIMEOUT = 2
_TIMEOUTS = {"SessionEnd": 1}


def print_settings() -> int:
    """Print the settings as JSON; return the exit code."""
    print(json.dumps(settings(command()), indent=2))
    return codes.OK


def settings(program: str) -> dict[str, object]:
    """Return the settings with which Claude Code calls this program, given as a shell word."""
    hooks: dict[str, object] = {}
    for event, matcher in _EVENTS.items():
        call = {"type": "command", "command": f"{program} hook", "timeout": _TIMEOUTS.get(event, _TIMEOUT)}
        entry: dict[str, object] = {} if matcher is None else {"matcher": matcher}
        hooks[event] = [{**entry, "hooks": [call]}]
    return {"hooks": hooks, "statusLine": {"type": "command", "command": f"{program} statusline"}}


def command() -> str:
    """Return how a shell calls this program: by name if $PATH leads to it, else by its absolute path.

    That is `fluxbudgetctl`, which passed the command line on to this Python client and is installed beside it.
    """
    called = os.path.realpath(sys.argv[0])
    if os.path.basename(called) == "__main__.py":  # python -m
        return f"{shlex.quote(sys.executable)} -m {_NAME}"
    program = os.path.join(os.path.dirname(called), _NAME)
    found = shutil.which(_NAME)
    if found is not None and os.path.isabs(found) and os.path.exists(program) and os.path.samefile(found, program):
        return _NAME
    return shlex.quote(program)
