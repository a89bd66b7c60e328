"""Whether anything has changed at a path, cheaply: one `stat`, compared with the one before."""

import os
import time

# What identifies a file's or a directory's present state. The time is that of the inode's last change, which no program
# can set back, and which new permissions change, too.
PathStamp = tuple[int, ...]

#: Nothing is there.
MISSING: PathStamp = ()
#: Equal to no path's stamp: read again.
UNSETTLED: PathStamp = (-1,)

# File times have the granularity of a clock tick: a directory that was listed this soon after a change may have changed
# again within the same tick.
_RACY_NANOSECONDS = 50_000_000


def of(found: os.stat_result) -> PathStamp:
    """Return the stamp of a `stat` result."""
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def stamp(path: str) -> PathStamp:
    """Return the present stamp of a path. Never raises; microseconds."""
    try:
        return of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as exc:
        return (exc.errno or 0,)


def directory_stamp(path: str) -> PathStamp:
    """Return the stamp of a directory before it is listed; unsettled if it has changed only just now."""
    now = time.time_ns()
    found = stamp(path)
    if len(found) > 1 and abs(now - found[-1]) < _RACY_NANOSECONDS:
        return UNSETTLED
    return found
