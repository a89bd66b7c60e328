"""Commands in a mount namespace of their own."""

import subprocess
from functools import cache

_APART = ("unshare", "--mount")
_ALONE = 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"'


def with_empty(directory: str, *, options: str = "mode=1777") -> tuple[str, ...]:
    """Return a command prefix under which this directory is an empty file system, mounted with these options."""
    return (*_APART, "sh", "-c", _ALONE, options, directory)


@cache
def why_not() -> str:
    """Return why root cannot mount anything here, or an empty string."""
    tried = subprocess.run([*with_empty("/proc"), "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""
