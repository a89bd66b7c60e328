"""Keep all markers in one place: move those that the last daemon has left beside another socket.

Otherwise a hook that gets no answer might rely on the old ones, which are no longer updated.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from fluxbudgetd.notify.atomic import Failures, link, private_directories, remove, write
from fluxbudgetd.wire.state_names import RUNS, SCOPES, SESSIONS, hard_directory, state_directory

_LARGEST = 64 * 1024


def move_markers(old: str, new: str) -> None:
    """Move the markers beside the socket `old`, and the files of their runs, to beside the socket `new`. Blocks.

    Does nothing if another daemon serves `old`. Raises `ChannelError` for the first file that cannot be moved.
    """
    markers, old_state, new_state = hard_directory(old), state_directory(old), state_directory(new)
    if old_state == new_state:
        return
    failures = Failures()
    with failures.at(markers, "moved"), _free(f"{old}.lock") as is_free:
        for name in sorted(os.listdir(markers)) if is_free and os.path.isdir(markers) else ():
            if not name.startswith("."):
                with failures.at(os.path.join(markers, name), "moved"):
                    _move_state(name, old_state, new_state)
                    _move_marker(name, markers, hard_directory(new))
    failures.raise_first()


@contextmanager
def _free(lock: str) -> Iterator[bool]:
    """Hold a socket's lock if no daemon does, so that none starts there meanwhile; yield whether it was free."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def _move_state(name: str, old: str, new: str) -> None:
    """Move a run's file and the links to it; raises `OSError`. A run without a file has nothing to move."""
    path = os.path.join(old, RUNS, name)
    try:
        content = _content(path)
    except FileNotFoundError:
        return
    for directory in (RUNS, SESSIONS, SCOPES):
        private_directories(os.path.join(new, directory))
    write(os.path.join(new, RUNS, name), content, new)
    for directory in (SESSIONS, SCOPES):
        place = os.path.join(old, directory)
        for entry in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            linked = os.path.join(place, entry)
            if os.path.islink(linked) and os.readlink(linked) == f"../{RUNS}/{name}":
                link(os.path.join(new, directory, entry), f"../{RUNS}/{name}", new)
                remove(linked)
    remove(path)


def _move_marker(name: str, old: str, new: str) -> None:
    private_directories(new)
    write(os.path.join(new, name), b"", new)
    remove(os.path.join(old, name))


def _content(path: str) -> bytes:
    """Return what is in a file of this user; raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise FileNotFoundError(path)
        return file.read(_LARGEST)
