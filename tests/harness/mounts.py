"""Commands that see other mounts than everybody else."""

import subprocess
from functools import cache

_APART = ("unshare", "--mount")
_ALONE = 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"'


def with_empty(directory: str, *, options: str = "mode=1777") -> tuple[str, ...]:
    """Return what runs a command that sees an empty file system there, mounted with these options."""
    return (*_APART, "sh", "-c", _ALONE, options, directory)


@cache
def why_not() -> str:
    """Return why root cannot mount anything here; empty if root can."""
    tried = subprocess.run([*with_empty("/proc"), "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""
