"""fluxbudget as users have it: wheels from this tree, installed into environments of their own."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from common import ROOT


def install(place: Path, native: bool) -> Path | None:
    """Install the client, native or as without a C compiler; return its directory of programs, None when impossible.

    What hot verbs do not import is not there: an environment without it starts as one with it.
    """
    setting = {"FLUXBUDGET_NATIVE": "1" if native else "0"}
    wheels = place / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    built = subprocess.run(build, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        # Of all that can go wrong, only this is the machine's.
        assert "no C compiler" in built.stdout + built.stderr, built
        return None
    venv.create(place, symlinks=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        str(place / "bin" / "python"),
    ]
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    return place / "bin"
