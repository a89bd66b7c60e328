"""Where intercore's databases are, and which of them may be used."""

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from fluxbudgetd.wire.text import shown_path, unfold

_PLACE = os.path.join(".clavain", "intercore.db")
_ROOT = 0


class Found(NamedTuple):
    """A database: its real path, and why it must not be used, or None."""

    path: str
    fault: str | None


def find(directories: Iterable[str]) -> Found | None:
    """Return the database in the first of these directories that has one, as `ic` finds it. Never calls `ic`."""
    for directory in directories:
        try:
            path = os.path.join(os_path(directory), _PLACE)
        except UnicodeEncodeError:  # no path: a session may report any text as its directory
            continue
        if os.path.exists(path):
            return _found(path)
    return None


def found_at(path: str) -> Found:
    """Return the database at a configured path. It may be absent, which is not a fault here."""
    return _found(os_path(path))


def fault_at(path: str) -> str | None:
    """Return why the database at this path of the operating system must not be used, or None. Raises `OSError`."""
    directory = os.path.dirname(path)
    if os.path.islink(directory):
        return f"{shown_path(directory)} is a symbolic link"
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    if info.st_uid not in (os.geteuid(), _ROOT):
        return f"it belongs to another user (uid {info.st_uid})"
    return None


def os_path(path: str) -> str:
    """Return the path, as the operating system takes it, that a folded text stands for."""
    return os.fsdecode(unfold(path))


def _found(path: str) -> Found:
    directory = os.path.dirname(path)
    real = os.path.realpath(path)
    # `ic` refuses such a directory, and so do we: another project's database would be found here.
    if os.path.islink(directory):
        return Found(shown_path(real), f"{shown_path(directory)} is a symbolic link")
    try:
        return Found(shown_path(real), fault_at(real))
    except FileNotFoundError:
        return Found(shown_path(real), None)
    except OSError as exc:
        return Found(shown_path(real), exc.strerror or str(exc))
