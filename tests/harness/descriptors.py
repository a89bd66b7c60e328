"""Which files a process has open."""

import os
from contextlib import suppress


def open_files(pid: int | str = "self") -> list[str]:
    """Return the targets of a process's descriptors. A descriptor that is closed meanwhile is left out."""
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return found
