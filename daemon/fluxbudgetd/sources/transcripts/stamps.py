"""A cheap check for changes at a path: one `stat`, compared with the previous one."""

import os
import time

# Identifies the state of a file or directory. Its time is the inode's change time, which no program can set back, and
# which a change of permissions updates, too.
PathStamp = tuple[int, ...]

#: Nothing is there.
MISSING: PathStamp = ()
#: Equal to no path's stamp: read again.
UNSETTLED: PathStamp = (-1,)

# File times have the granularity of a clock tick: a directory listed this soon after a change may change again within
# the same tick.
_RACY_NANOSECONDS = 50_000_000


def stamp_of(result: os.stat_result) -> PathStamp:
    """Return the stamp of a `stat` result."""
    return result.st_dev, result.st_ino, result.st_size, result.st_ctime_ns


def stamp(path: str) -> PathStamp:
    """Return the current stamp of a path. Never raises; takes microseconds."""
    try:
        return stamp_of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as exc:
        return (exc.errno or 0,)


def directory_stamp(path: str) -> PathStamp:
    """Return the stamp of a directory that is about to be listed; `UNSETTLED` if it has just changed."""
    now = time.time_ns()
    current = stamp(path)
    if len(current) > 1 and abs(now - current[-1]) < _RACY_NANOSECONDS:
        return UNSETTLED
    return current
