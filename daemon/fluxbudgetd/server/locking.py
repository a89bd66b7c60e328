"""Lock files, so that only one daemon serves a socket or a state directory; and private directories."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fluxbudgetd.errors import StartError


@contextmanager
def lock(path: str, purpose: str) -> Iterator[None]:
    """Lock a file with `flock` and write this process's pid to it; raise `StartError` if another process holds it.

    The kernel releases the lock when the process ends, even if it is killed. The file stays: if it were removed, two
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
        with suppress(OSError):  # on a full disk the file stays empty, but the lock is held
            os.ftruncate(fd, 0)
            os.write(fd, f"fluxbudgetd pid {os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def private_directory(path: str, *, ours: bool) -> None:
    """Create a directory for this user alone; raise `StartError` if others could write to it.

    `ours`: it is only for fluxbudget's files, so an existing directory is made private. A directory that the user has
    chosen keeps its mode.
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
        parent = os.stat(os.path.dirname(path)).st_mode
        if parent & stat.S_IWOTH and not parent & stat.S_ISVTX:
            raise StartError(f"{os.path.dirname(path)} is writable by everyone", "use a directory of your own")
    except OSError as exc:
        # The service's sandbox can only write to directories that existed when it was set up; the socket unit
        # creates the missing ones.
        is_sealed = exc.errno == errno.EROFS
        hint = (
            "as a systemd service: 'systemctl --user restart fluxbudgetd.socket'" if is_sealed else "check its parent"
        )
        raise StartError(f"the directory {path} cannot be created: {exc.strerror}", hint) from exc
