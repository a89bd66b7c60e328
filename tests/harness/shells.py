"""Real shells with Clavain's functions, our own and a library like upstream's."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import native
from harness.daemon import CTL, PATIENCE, Home

#: A library like Clavain's, with upstream's faults, and scripts like those that call it.
CLAVAIN = Path(__file__).parent / "clavain"
LIBRARY = CLAVAIN / "lib-sprint.sh"
#: Loads our functions.
INIT = 'eval "$(fluxbudgetctl shell-init)"'
STRICT = "set -euo pipefail"

_ARGUMENTS = {"bash": ("--norc", "--noprofile", "-c"), "zsh": ("-f", "-c"), "dash": ("-c",)}


class Ended(NamedTuple):
    """What a script has printed, and its exit code."""

    code: int
    out: str
    err: str = ""


class Shell:
    """A shell with programs of its own on PATH: `fluxbudgetctl`, and those that a test adds."""

    def __init__(self, home: Home, name: str, factory: pytest.TempPathFactory) -> None:
        program = shutil.which(name)
        if program is None:
            pytest.skip(f"{name} is not installed")
        self.command = (program, *_ARGUMENTS[name])
        self.home = home
        self.name = name
        self.bin = home.root / "bin"
        self.state = home.root / "clavain"
        self.state.mkdir(exist_ok=True)
        client = [str(native.native_client(factory))] if native.is_available() else CTL
        self.program("fluxbudgetctl", "exec " + " ".join(f"'{word}'" for word in client) + ' "$@"')

    def program(self, name: str, text: str) -> None:
        """Install a program, a script for sh."""
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(
        self,
        script: str,
        *words: str | bytes,
        environ: Mapping[str, str] | None = None,
        stdin: str = "",
        init: str = INIT,
    ) -> Ended:
        """Run a script with arguments after `init`, strictly, in the project's directory."""
        environment = {
            **self.home.environ,
            # Leaves out everything that the user who runs the tests has installed, such as Clavain.
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "FLUXBUDGET_TIMEOUT": f"{PATIENCE:g}",
            "CLAVAIN_STATE": str(self.state),
            **(environ or {}),
        }
        text = script if self.name == "dash" else f"{STRICT}\n{init}\n{script}"
        result = subprocess.run(
            [*self.command, text, self.name, *words],
            env=environment,
            cwd=self.home.project,
            input=stdin.encode(),
            capture_output=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        return Ended(result.returncode, result.stdout.decode(), result.stderr.decode())

    def lines(
        self, script: str, *words: str | bytes, environ: Mapping[str, str] | None = None, init: str = INIT
    ) -> list[str]:
        """Run a script, require that it succeeds and that stderr is silent, and return its lines."""
        ended = self.run(script, *words, environ=environ, init=init)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.out.splitlines()
