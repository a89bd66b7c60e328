"""Decide what may be followed: symbolic links to regular files and directories of the user or of root."""

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from fluxbudgetd.sources.stamps import PathStamp, stamp, stamp_of
from fluxbudgetd.sources.transcripts.names import SUFFIX
from fluxbudgetd.wire.text import shown_path

_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Target(NamedTuple):
    """What a symbolic link leads to. `refusal` says why it is not followed; empty if it is."""

    real: str
    mode: int
    stamp: PathStamp
    refusal: str


def follow(path: str, why_not: Callable[[os.stat_result], str | None]) -> Target:
    """Return a symbolic link's target. `why_not` says why it may not be followed; None if it may."""
    try:
        info = os.stat(path)
    except OSError as exc:
        why = "broken symbolic link" if exc.errno in _LEADS_NOWHERE else exc.strerror
        return Target(path, 0, stamp(path), f"{shown_path(path)}: {why}")
    real = os.path.realpath(path)
    why = why_not(info)
    refusal = f"{shown_path(path)}: leads to {shown_path(real)}, which {why}" if why else ""
    return Target(real, info.st_mode, stamp_of(info), refusal)


def why_not_named(path: str) -> str | None:
    """Return why the transcript that a hook has named is not read; None if it is read or does not exist yet."""
    if not os.path.isabs(path) or not path.endswith(SUFFIX):
        return f"{shown_path(path)}: is not a transcript: its path is not absolute, or does not end in {SUFFIX}"
    if os.path.islink(path):
        return follow(path, why_no_file).refusal or None
    try:
        why = why_no_file(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        return describe(path, exc)
    return f"{shown_path(path)}: {why}" if why else None


def why_no_file(info: os.stat_result) -> str | None:
    """Return why this may not be followed as a file; None if it may."""
    if stat.S_ISDIR(info.st_mode):
        return "is a directory"
    return _why_foreign(info) if stat.S_ISREG(info.st_mode) else "is not a regular file"


def why_no_directory(info: os.stat_result) -> str | None:
    """Return why this may not be followed as a directory; None if it may."""
    return _why_foreign(info) if stat.S_ISDIR(info.st_mode) else "is not a directory"


def describe(path: str, error: OSError) -> str:
    """Return an error's text for people."""
    return f"{shown_path(path)}: {error.strerror or error}"


def _why_foreign(info: os.stat_result) -> str | None:
    if info.st_uid in (os.geteuid(), 0):
        return None
    return f"belongs to another user (uid {info.st_uid})"
