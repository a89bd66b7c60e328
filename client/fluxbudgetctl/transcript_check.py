"""Check whether the client's environment or settings tell Claude Code to write no transcripts."""

import json
import os
from collections.abc import Iterator, Mapping

from fluxbudgetd.wire.messages import Finding
from fluxbudgetd.wire.transcript_switch import SWITCH, is_switched_off

_HINT = "remove it: sessions without a transcript are counted only from interstat, or not at all"
_MANAGED = "/etc/claude-code/managed-settings.json"
_NAMES = ("settings.json", "settings.local.json")
# A settings file is small; anything else there is not read.
_MOST_BYTES = 1 << 20


def transcript_findings(environ: Mapping[str, str], cwd: str | None) -> Iterator[Finding]:
    """Yield where transcripts are switched off: in the environment, or in Claude Code's settings that apply here."""
    if is_switched_off(environ.get(SWITCH)):
        yield Finding(what=f"{SWITCH} is set in your environment: Claude Code writes no transcripts", hint=_HINT)
    for path in _settings_files(environ, cwd):
        if is_switched_off(_variable(path)):
            yield Finding(what=f"{path} sets {SWITCH}: Claude Code writes no transcripts", hint=_HINT)


def _settings_files(environ: Mapping[str, str], cwd: str | None) -> Iterator[str]:
    directories = [path.strip() for path in environ.get("CLAUDE_CONFIG_DIR", "").split(",") if path.strip()]
    if not directories:
        given = environ.get("XDG_CONFIG_HOME", "")
        config = given if given.startswith("/") else "~/.config"
        directories = ["~/.claude", os.path.join(config, "claude")]
    if cwd is not None:
        directories.append(os.path.join(cwd, ".claude"))
    for directory in dict.fromkeys(map(os.path.expanduser, directories)):
        yield from (os.path.join(directory, name) for name in _NAMES)
    yield _MANAGED


def _variable(path: str) -> object:
    """Return the variable's value in the `env` of a settings file; None if it has none or is not a settings file."""
    try:
        # O_NONBLOCK: the path may lead to a FIFO.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            settings = json.loads(file.read(_MOST_BYTES))
        return settings["env"][SWITCH]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
