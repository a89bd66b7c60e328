"""Programs from npm that the tests run. `make` installs those of requirements/npm in build/npm."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

_MODULES = Path(__file__).parents[2] / "build" / "npm" / "node_modules"


@cache
def claude_code() -> Path | None:
    """Return the program `claude`: the one that $FLUXBUDGET_CLAUDE names, else the locked one, else the user's own."""
    if named := os.environ.get("FLUXBUDGET_CLAUDE"):
        return Path(named)
    # (npm before version 9.6 installs the packages for both C libraries.)
    locked = sorted(_MODULES.glob("@anthropic-ai/claude-code-linux-*/claude"))
    users = [Path(found)] if (found := shutil.which("claude")) else []
    return next(filter(_runs, [*locked, *users]), None)


def _runs(program: Path) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
