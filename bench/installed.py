"""fluxbudget as users install it: wheels of this tree, each in an environment of its own."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from common import ROOT


def install(place: Path, native: bool, compiler: str | None = None) -> Path | None:
    """Install the native client, or the one for machines without a C compiler; return the directory of its programs.

    `compiler` is the C compiler to use, by default the best one here. Return None if there is no C compiler here. The
    dependencies are left out: hot verbs do not import them, so they start just as fast without them.
    """
    setting = {"FLUXBUDGET_NATIVE": "1" if native else "0", **({} if compiler is None else {"CC": compiler})}
    wheels = place / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    built = subprocess.run(build, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        # Any other failure is a bug of ours.
        assert "no working C compiler" in built.stdout + built.stderr, built
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
