"""Removals in directories, as the kernel reports them (`inotify(7)`). Waiting for them causes no wake-ups.

watchfiles, which follows the sources, wakes up every 50 ms to look for events. The standard library does not have
inotify, so this calls libc's functions.
"""

import ctypes
import os
from contextlib import suppress

import anyio

#: Something in the directory was removed.
REMOVED = 0x200
#: Something in the directory was renamed away.
MOVED = 0x40
#: The directory itself was removed, or renamed.
GONE = 0x400 | 0x800

_ONLY_DIRECTORIES = 0x01000000
_MOST_BYTES = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Watches directories. Raises `OSError` if the user has no inotify instances left."""

    def __init__(self) -> None:
        # inotify's flags have the same values as those of open(2).
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: str, events: int) -> None:
        """Watch a directory for these kinds of events; raises `OSError` if it is missing or may not be read. Blocks."""
        path = ctypes.c_char_p(os.fsencode(directory))
        _checked(_libc.inotify_add_watch(self._fd, path, ctypes.c_uint32(events | _ONLY_DIRECTORIES)))

    async def happened(self) -> None:
        """Wait for an event; those since the directories were added, or since the last call, count."""
        while True:
            await anyio.wait_readable(self._fd)
            with suppress(BlockingIOError):
                os.read(self._fd, _MOST_BYTES)
                return

    def close(self) -> None:
        """Close the watch. No task may be waiting for it."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
