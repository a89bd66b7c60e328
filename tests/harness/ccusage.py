"""ccusage, another counter of the same transcripts."""

import json
import os
import subprocess
from pathlib import Path

from harness.transcript_recount import Tokens


def sessions(program: Path, claude_dir: Path) -> dict[str, Tokens]:
    """Return the sessions that ccusage finds in a Claude directory, and what it counts for each."""
    environ = {"HOME": str(claude_dir), "CLAUDE_CONFIG_DIR": str(claude_dir), "TZ": "UTC", "PATH": os.defpath}
    command: list[str | Path] = [program, "claude", "session", "--json", "--offline"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    fields = ("inputTokens", "outputTokens", "cacheReadTokens", "cacheCreationTokens")
    found: dict[str, Tokens] = {}
    for one in json.loads(result.stdout)["sessions"]:
        first, second, third, fourth = (one[name] for name in fields)
        found[one["sessionId"]] = (first, second, third, fourth)
    return found
