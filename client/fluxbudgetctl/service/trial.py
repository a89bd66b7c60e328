"""Checks that the daemon's program starts in the manager's environment, which differs from the shell's."""

import subprocess
from collections.abc import Mapping

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line

_SECONDS = 30.0


def require_start(program: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """Raise `Failure` unless the program prints its version when it has only the manager's environment."""
    try:
        result = subprocess.run(  # noqa: S603  no shell, and the service will start the same
            [*program, "--version"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"it did not end within {_SECONDS:g} s"
    except OSError as exc:
        why = str(exc.strerror)
    else:
        if result.returncode == 0:
            return
        why = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    raise Failure(
        f"'{' '.join(program)}' does not start with systemd's environment: {one_line(why)}; nothing was written",
        "install fluxbudget in an environment of its own ('uv tool install', 'pipx install', a venv): systemd does not "
        "know your shell's PYTHONPATH",
        codes.REFUSED,
    )
