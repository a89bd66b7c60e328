"""Lock files, which decide who serves a socket and a state directory, and the directories that they lie in."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fluxbudgetd.errors import StartError


@contextmanager
def lock(path: str, purpose: str) -> Iterator[None]:
    """Hold a `flock`ed file that says who holds it; raise `StartError` naming the holder if another process does.

    The kernel releases the lock when the process ends, however it ends. The file stays: if it were removed, two
    processes could lock two files of the same name.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise StartError(f"the lock {path} cannot be opened: {exc.strerror}", "check the directory") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.read(fd, 1024).decode(errors="replace").strip() or "another process"
            raise StartError(f"{purpose} is served by {holder} (lock {path})", "use it, or stop it first") from exc
        except OSError as exc:
            raise StartError(f"the lock {path} cannot be taken: {exc.strerror}", "check its file system") from exc
        with suppress(OSError):  # on a full disk the file is empty, and the lock holds all the same
            os.ftruncate(fd, 0)
            os.write(fd, f"fluxbudgetd pid {os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def private_directory(path: str, *, ours: bool) -> None:
    """Create a directory for this user alone; raise `StartError` if others could write to it.

    `ours`: only fluxbudget's files belong there, so an existing directory is closed to others. A directory that a
    person has chosen keeps its mode.
    """
    try:
        existed = os.path.isdir(path)
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path)
        if found.st_uid != os.geteuid():
            raise StartError(f"{path} belongs to uid {found.st_uid}, not to you ({os.geteuid()})", "use your own")
        if (ours and not found.st_mode & stat.S_IWOTH) or not existed:
            os.chmod(path, 0o700)
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StartError(f"{path} is writable by others", f"chmod go-w {path}, or use another directory")
        above = os.stat(os.path.dirname(path)).st_mode
        if above & stat.S_IWOTH and not above & stat.S_ISVTX:
            raise StartError(f"{os.path.dirname(path)} is writable by everyone", "use a directory of your own")
    except OSError as exc:
        # The service's sandbox can only write to directories that existed when it was set up; the socket unit
        # creates the missing ones.
        is_sealed = exc.errno == errno.EROFS
        hint = (
            "as a systemd service: 'systemctl --user restart fluxbudgetd.socket'" if is_sealed else "check its parent"
        )
        raise StartError(f"the directory {path} cannot be made: {exc.strerror}", hint) from exc
