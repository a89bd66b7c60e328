"""A cheap check for changes at a path: one `stat`, compared with the previous one."""

import os
import time
from collections.abc import Callable

# Identifies the state of a file or directory. Its time is the inode's change time, which no program can set back, and
# which a change of permissions updates, too.
PathStamp = tuple[int, ...]

#: Nothing is there.
MISSING: PathStamp = ()
#: Equal to no path's stamp: read again.
UNSETTLED: PathStamp = (-1,)

# File times have the granularity of a clock tick: a directory listed this soon after a change may change again within
# the same tick.
_TICK_NANOSECONDS = 50_000_000
# Some file systems keep times in whole seconds, and FAT in steps of two seconds.
_COARSE_NANOSECONDS = 2_000_000_000 + _TICK_NANOSECONDS
_SECOND = 1_000_000_000


def stamp_of(result: os.stat_result) -> PathStamp:
    """Return the stamp of a `stat` result."""
    return result.st_dev, result.st_ino, result.st_size, result.st_ctime_ns


def stamp(path: str) -> PathStamp:
    """Return the current stamp of a path. Never raises; takes microseconds."""
    return _stamp(path, stamp_of)


def content_stamp(path: str) -> PathStamp:
    """Return the current stamp of a file's content, by its modification time. Never raises; takes microseconds.

    For files whose writers do not set their times themselves.
    """
    return _stamp(path, lambda result: (result.st_dev, result.st_ino, result.st_size, result.st_mtime_ns))


def _stamp(path: str, of: Callable[[os.stat_result], PathStamp]) -> PathStamp:
    try:
        return of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as exc:
        return (exc.errno or 0,)


def directory_stamp(path: str) -> PathStamp:
    """Return the stamp of a directory that is about to be listed; `UNSETTLED` if it has just changed."""
    now = time.time_ns()
    return settled(stamp(path), now)


def settled(current: PathStamp, now: int) -> PathStamp:
    """Return a directory's stamp, or `UNSETTLED` if a later change might not change it.

    `now` is the time before the stamp was taken, in nanoseconds.
    """
    if len(current) <= 1:
        return current
    window = _COARSE_NANOSECONDS if _is_coarse(current) else _TICK_NANOSECONDS
    return UNSETTLED if abs(now - current[-1]) < window else current


def file_stamp(result: os.stat_result) -> PathStamp:
    """Return the stamp of a file that is about to be read; `UNSETTLED` if a later change might not change it.

    Appending changes the size. Only rewriting a file in place, with a time in whole seconds, could go unnoticed.
    """
    current = stamp_of(result)
    return settled(current, time.time_ns()) if _is_coarse(current) else current


def _is_coarse(current: PathStamp) -> bool:
    """Return True if the time may come from a file system that keeps whole seconds."""
    return current[-1] % _SECOND == 0
