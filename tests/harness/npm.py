"""Programs from npm that the tests run. `make` installs those of requirements/npm in build/npm."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_MODULES = Path(__file__).parents[2] / "build" / "npm" / "node_modules"


@cache
def claude_code() -> Path | None:
    """Return the program `claude`: the one that $FLUXBUDGET_CLAUDE names, else the locked one, else the user's own."""
    if named := os.environ.get("FLUXBUDGET_CLAUDE"):
        return Path(named)
    users = [Path(found)] if (found := shutil.which("claude")) else []
    return _first_that_runs([*_locked("@anthropic-ai/claude-code-linux-*/claude"), *users])


@cache
def ccusage() -> Path | None:
    """Return the locked program `ccusage`."""
    return _first_that_runs(_locked("@ccusage/ccusage-linux-*/bin/ccusage"))


def _locked(pattern: str) -> list[Path]:
    # (npm before version 9.6 installs the packages for both C libraries.)
    return sorted(_MODULES.glob(pattern))


def _first_that_runs(programs: Iterable[Path]) -> Path | None:
    return next(filter(_runs, programs), None)


def _runs(program: Path) -> bool:
    program.chmod(0o755)  # not every package does it
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
