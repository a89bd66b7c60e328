"""The cheap question whether anything has changed at a path: one `stat`, compared with the one before."""

import os
import time

# What identifies a file's or a directory's present state. The time is that of the inode's last change, which no program
# can set back, and which also tells of new permissions.
Stamp = tuple[int, ...]

#: Nothing is there.
MISSING: Stamp = ()
#: Equal to no path's stamp: look again.
UNSETTLED: Stamp = (-1,)

# File times have the granularity of a clock tick: what was listed so soon after a change may have changed again since
# without its time showing it.
_RACY_NANOSECONDS = 50_000_000


def of(found: os.stat_result) -> Stamp:
    """Return the stamp of what was looked at."""
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def stamp(path: str) -> Stamp:
    """Return the present stamp of a path. Never raises; microseconds."""
    try:
        return of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as exc:
        return (exc.errno or 0,)


def directory_stamp(path: str) -> Stamp:
    """Return the stamp of a directory that is listed next; unsettled when it has changed only just now."""
    now = time.time_ns()
    found = stamp(path)
    if len(found) > 1 and abs(now - found[-1]) < _RACY_NANOSECONDS:
        return UNSETTLED
    return found
