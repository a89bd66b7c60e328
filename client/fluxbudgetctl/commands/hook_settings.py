"""`hook --print-settings`: what to merge into Claude Code's settings.json so that it calls `hook` and `statusline`."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.paths import NoHomeError, home_directory
from fluxbudgetd.wire.state_names import hard_directory, state_directory
from fluxbudgetd.wire.stops import LAUNCH_TOOLS

_NAME = "fluxbudgetctl"
#: Claude Code's events that fluxbudget answers or records, with what their hooks have besides the command.
_EVENTS: dict[str, dict[str, object]] = {
    "SessionStart": {},
    "UserPromptSubmit": {},
    "PreToolUse": {},
    "PostToolBatch": {},
    "SubagentStart": {},
    # Nothing waits for the answers of these two.
    "SubagentStop": {"async": True},
    "Stop": {},
    "StopFailure": {},
    # Claude Code gives it less time.
    "SessionEnd": {"async": True, "timeout": 1},
}
_MATCHERS = {"PreToolUse": "|".join(LAUNCH_TOOLS)}
# Seconds. A hook takes at most 0.2 unless the machine is very busy; a launch may wait for a transcript's last line.
_TIMEOUT = 2
_FLAGS = {"PreToolUse": ("--timeout", "0.5")}
_REFRESH_SECONDS = 10
#: What asks for the person's consent: commands that lift limits, and changes to the files that limits depend on.
_GUARDED_COMMANDS = ("run", "allow", "service")


def print_settings(*, guard: bool) -> int:
    """Print the settings as JSON; return the exit code. Raises `Failure`."""
    print(json.dumps(settings(command(), guard=guard), indent=2))
    return codes.OK


def settings(program: Sequence[str], *, guard: bool = False) -> dict[str, object]:
    """Return the settings with which Claude Code calls this program, given as words. Raises `Failure`.

    Hooks have their arguments apart, so that Claude Code starts no shell. `guard` adds permission rules.
    """
    line = shlex.join([*program, "statusline"])
    found: dict[str, object] = {
        "hooks": {event: [_hook(program, event, more)] for event, more in _EVENTS.items()},
        "statusLine": {"type": "command", "command": line, "refreshInterval": _REFRESH_SECONDS},
    }
    return {**found, "permissions": {"ask": _guarded(program)}} if guard else found


def command() -> list[str]:
    """Return the words that call this program: its name if $PATH leads to it, else its absolute path.

    That is `fluxbudgetctl`, which passed the command line on to this Python client and is installed beside it.
    """
    called = os.path.realpath(sys.argv[0])
    if os.path.basename(called) == "__main__.py":  # python -m
        return [sys.executable, "-m", _NAME]
    program = os.path.join(os.path.dirname(called), _NAME)
    found = shutil.which(_NAME)
    if found is not None and os.path.isabs(found) and os.path.exists(program) and os.path.samefile(found, program):
        return [_NAME]
    return [program]


def _hook(program: Sequence[str], event: str, more: dict[str, object]) -> dict[str, object]:
    first, *rest = program
    arguments = [*rest, "hook", *_FLAGS.get(event, ())]
    call = {"type": "command", "command": first, "args": arguments, "timeout": _TIMEOUT, **more}
    matcher = {"matcher": _MATCHERS[event]} if event in _MATCHERS else {}
    return {**matcher, "hooks": [call]}


def _guarded(program: Sequence[str]) -> list[str]:
    """Return the permission rules. Those for `Edit` also cover Claude Code's other tools that change files."""
    names = dict.fromkeys((_NAME, shlex.join(program)))
    commands = [f"Bash({name} {verb}:*)" for name in names for verb in _GUARDED_COMMANDS]
    socket = environment.socket()
    try:
        home = home_directory(os.environ, os.geteuid())
    except NoHomeError as exc:
        raise Failure(str(exc), exc.hint, codes.BAD_CONFIG) from exc
    claude = os.environ.get("CLAUDE_CONFIG_DIR", "").partition(",")[0].strip() or os.path.join(home, ".claude")
    files = (
        os.path.join(_xdg("XDG_CONFIG_HOME", home, ".config"), "fluxbudget", "**"),
        os.path.join(_xdg("XDG_STATE_HOME", home, ".local/state"), "fluxbudget", "**"),
        os.path.join(hard_directory(socket), "**"),
        os.path.join(state_directory(socket), "**"),
        os.path.join(claude, "settings*.json"),
    )
    # An absolute path starts with two slashes; any other is relative to the project.
    absolute = [f"Edit(/{os.path.abspath(path)})" for path in files]
    return [*commands, *absolute, "Edit(.claude/settings*.json)", "Edit(.claude/flux-drive-budget.yaml)"]


def _xdg(variable: str, home: str, default: str) -> str:
    """Return a directory of the XDG specification, which says that relative values are ignored."""
    given = os.environ.get(variable, "")
    return given if given.startswith("/") else os.path.join(home, default)
