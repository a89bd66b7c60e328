"""Who serves: the lock files, and binding the socket without ever taking a live one.

A socket file that nobody answers on is replaced; one that somebody answers on, or a file that is no socket, never is.
The directory is 0700 and the socket 0600 whatever the umask.
"""

import fcntl
import os
import socket
import stat

from fluxbudgetd.errors import StartError
from fluxbudgetd.server import BACKLOG

_PROBE_SECONDS = 1.0
# struct sockaddr_un has 108 bytes for the path and its closing zero.
_MAX_PATH_BYTES = 107


class Lock:
    """A `flock`ed file that says who holds it. The kernel lets go of it when the process dies, however it dies."""

    def __init__(self, path: str, purpose: str) -> None:
        """Take the lock; raises `StartError` naming the holder when somebody else has it."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise StartError(f"the lock {path} cannot be opened: {exc.strerror}", "check the directory") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.read(self._fd, 1024).decode(errors="replace").strip() or "another process"
            os.close(self._fd)
            raise StartError(f"{purpose} is in use by {holder} (lock {path})", "stop it first, or use it") from exc
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"fluxbudgetd pid {os.getpid()}, {purpose}\n".encode())

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        os.close(self._fd)


def private_directory(path: str) -> None:
    """Make a directory that only this user can enter; raises `StartError` when it is not ours or anybody may write."""
    try:
        existed = os.path.isdir(path)
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path)
        if found.st_mode & stat.S_IWOTH:
            raise StartError(f"{path} is writable by everybody", "use a directory of your own")
        if found.st_uid != os.geteuid():
            raise StartError(f"{path} belongs to uid {found.st_uid}, not to you ({os.geteuid()})", "use your own")
        if not existed or os.path.basename(path) == "fluxbudget":
            os.chmod(path, 0o700)
    except OSError as exc:
        raise StartError(f"the directory {path} cannot be made: {exc.strerror}", "check its parent") from exc


def bind(path: str) -> socket.socket:
    """Return a listening socket at the path; call it with the lock held. Raises `StartError`."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise StartError(
            f"the socket path has {len(os.fsencode(path))} bytes, at most {_MAX_PATH_BYTES} are possible: {path}",
            "give a shorter one with --socket or $FLUXBUDGET_SOCKET",
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise StartError(f"the socket {path} cannot be bound: {exc.strerror}", "check its directory") from exc
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def unlink_own(path: str, listener_inode: int) -> None:
    """Remove the socket file if it is still the one that was bound."""
    try:
        if os.lstat(path).st_ino == listener_inode:
            os.unlink(path)
    except OSError:
        return


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
