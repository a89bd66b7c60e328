"""Who serves: the lock files, and the socket: one that was passed to us, or one bound without ever taking a live one.

A socket file that nobody answers on is replaced; one that somebody answers on, or a file that is no socket, never is.
The directory is 0700 and the socket 0600 whatever the umask.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from fluxbudgetd.errors import StartError
from fluxbudgetd.server.server import BACKLOG

_PROBE_SECONDS = 1.0
# struct sockaddr_un has 108 bytes for the path and its closing zero.
_MAX_PATH_BYTES = 107


@contextmanager
def lock(path: str, purpose: str) -> Iterator[None]:
    """Hold a `flock`ed file that says who holds it; raises `StartError` naming the holder when somebody else does.

    The kernel lets go of it when the process dies, however it dies. The file stays: removing it would let two processes
    lock two files of one name.
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
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(fd, 0)
            os.write(fd, f"fluxbudgetd pid {os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def private_directory(path: str, *, ours: bool) -> None:
    """Make a directory for this user alone; raises `StartError` when others could write to it.

    `ours`: nothing but fluxbudget's files belongs there, so an existing one is closed to others. A directory that a
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
            raise StartError(f"{os.path.dirname(path)} is writable by everybody", "use a directory of your own")
    except OSError as exc:
        # The service's sandbox opens what is there when it is made; the socket's unit makes what has gone.
        is_sealed = exc.errno == errno.EROFS
        hint = (
            "as a systemd service: 'systemctl --user restart fluxbudgetd.socket'" if is_sealed else "check its parent"
        )
        raise StartError(f"the directory {path} cannot be made: {exc.strerror}", hint) from exc


class Listener(NamedTuple):
    """A listening socket, and the file that names it. `inode` is that of a file that is ours to remove."""

    socket: socket.socket
    path: str
    inode: int | None = None

    def unlink(self) -> None:
        """Remove the socket's file if it is still the one that was bound."""
        try:
            if self.inode is not None and os.lstat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except OSError:
            return


def given(descriptors: Sequence[int]) -> Listener | None:
    """Return the listening socket that was passed to this process, or None when there is none; raises `StartError`.

    It stays whoever's it is: its file is not removed, and connections wait in its queue for whoever serves it next.
    """
    if not descriptors:
        return None
    hint = "one ListenStream= with a path, as in fluxbudgetd.socket"
    if len(descriptors) > 1:
        raise StartError(f"{len(descriptors)} sockets were passed, one is served", hint)
    try:
        found = socket.socket(fileno=descriptors[0])
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        name = found.getsockname()
    except OSError as exc:
        raise StartError(f"what was passed as a socket is none: {exc.strerror}", hint) from exc
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM or not listens or not _is_path(name):
        found.close()
        raise StartError("the socket that was passed is not a listening Unix stream socket with a path", hint)
    found.setblocking(False)
    return Listener(found, name)


def _is_path(name: object) -> bool:
    return isinstance(name, str) and name.startswith("/")


@contextmanager
def bound(path: str) -> Iterator[Listener]:
    """Listen at the path; enter it with the lock held. Raises `StartError`."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise StartError(
            f"the socket path has {len(os.fsencode(path))} bytes, at most {_MAX_PATH_BYTES} are possible: {path}",
            "give a shorter one with --socket or $FLUXBUDGET_SOCKET",
        )
    _clear(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        before = os.umask(0o177)
        try:
            listening.bind(path)
            os.chmod(path, 0o600)
            listening.listen(BACKLOG)
            listening.setblocking(False)
            listener = Listener(listening, path, os.lstat(path).st_ino)
        except OSError as exc:
            raise StartError(f"the socket {path} cannot be bound: {exc.strerror}", "check its directory") from exc
        finally:
            os.umask(before)
        try:
            yield listener
        finally:
            listener.unlink()


def _clear(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StartError(f"the socket path {path} cannot be looked at: {exc.strerror}", "check its directory") from exc
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} exists and is not a socket", "move it away, or give another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as exc:
            raise StartError(f"the socket {path} may be in use: {exc}", "stop whoever serves it") from exc
        else:
            raise StartError(f"the socket {path} is served by another process", "stop it, or give another --socket")
