"""Whether the daemon's program starts at all when it is the manager that starts it, and not a shell."""

import subprocess
from collections.abc import Mapping

from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetd.wire import codes

_SECONDS = 30.0


def require_start(program: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """Raise `Failure` unless the program, with the manager's environment and no other, says its version."""
    try:
        ended = subprocess.run(  # noqa: S603  no shell, and it is what the service will start
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
        if ended.returncode == 0:
            return
        why = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    raise Failure(
        f"'{' '.join(program)}' does not start with systemd's environment: {one_line(why)}; nothing was written",
        "install fluxbudget in an environment of its own ('uv tool install', 'pipx install', a venv): systemd does not "
        "know your shell's PYTHONPATH",
        codes.REFUSED,
    )
