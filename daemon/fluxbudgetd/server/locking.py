"""Lock files, so that only one daemon serves a socket or a state directory; and private directories."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Self

from fluxbudgetd.errors import StartError
from fluxbudgetd.notify.atomic import directory_at, make_private
from fluxbudgetd.wire.text import shown_path

_MOST_RECORD_BYTES = 8192


class LockFile:
    """A file that one daemon holds with `flock`. It says who serves, and where.

    Its first line is `fluxbudgetd pid N`, its second `socket PATH`: where that daemon listens. Clients that find no
    socket read it, and so does a second daemon for its error message. `purpose` says what the lock protects; `socket`
    is the path to record.

    The kernel releases the lock when the process ends, even if it is killed. The file stays: if it were removed, two
    processes could lock two files of the same name.
    """

    def __init__(self, path: str, purpose: str, socket: str) -> None:
        self.path = path
        #: Where the last process that held the lock listened; None if the file does not say.
        self.last_socket: str | None = None
        self._purpose = purpose
        self._socket = socket
        self._fd: int | None = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def take(self) -> None:
        """Lock the file, and create it if it is missing. Raise `StartError` if another process holds it. Blocks."""
        while not self.is_held():
            fd = self._locked()
            self.release()
            self._fd = fd

    def is_held(self) -> bool:
        """Return True if the locked file is still the one at the path."""
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _locked(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise StartError(f"the lock {self.path} cannot be opened: {exc.strerror}", "check the directory") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):  # on a full disk the lines may be missing or old, but the lock is held
                self.last_socket = _recorded(os.pread(fd, _MOST_RECORD_BYTES, 0))
                _rewrite(fd, _record(self._socket))
        except BlockingIOError as exc:
            holder = _holder(os.pread(fd, _MOST_RECORD_BYTES, 0))
            os.close(fd)
            raise StartError(
                f"{self._purpose} is served by {holder} (lock {self.path})", "use it, or stop it first"
            ) from exc
        except OSError as exc:
            os.close(fd)
            raise StartError(f"the lock {self.path} cannot be taken: {exc.strerror}", "check its file system") from exc
        return fd


class Note:
    """A lock file at a path where this daemon does not listen, which says where it does.

    The lock is not kept, so another daemon can still serve there. A note that a killed daemon has left is harmless,
    because no process listens at the socket that it names. Failures are ignored: clients work without the note.
    """

    def __init__(self, path: str, socket: str) -> None:
        self._path = path
        self._socket = socket

    def leave(self) -> None:
        """Write the note, unless another daemon holds the lock. Creates fluxbudget's directory if its parent exists."""
        directory = os.path.dirname(self._path)
        with suppress(OSError, StartError):
            if os.path.isdir(os.path.dirname(directory)):
                private_directory(directory, ours=True)
                self._write(_record(self._socket))

    def remove(self) -> None:
        """Remove the note, if it is still there."""
        with suppress(OSError):
            self._write(b"")

    def _write(self, record: bytes) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if record else 0), 0o600)
        try:
            # If nothing changes, do not take the lock: a daemon that is starting at that path would find it taken.
            if record and os.pread(fd, _MOST_RECORD_BYTES, 0) == record:
                return
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if record or os.pread(fd, _MOST_RECORD_BYTES, 0) == _record(self._socket):
                _rewrite(fd, record)
        finally:
            os.close(fd)


def _record(socket: str) -> bytes:
    """Return a lock file's lines. A path with a newline in it cannot be recorded."""
    where = b"" if "\n" in socket else b"socket %s\n" % os.fsencode(socket)
    return b"fluxbudgetd pid %d\n%s" % (os.getpid(), where)


def _recorded(record: bytes) -> str | None:
    """Return the socket that a lock file's lines name."""
    where = record.partition(b"\n")[2].partition(b"\n")[0]
    return os.fsdecode(where.removeprefix(b"socket ")) if where.startswith(b"socket /") else None


def _rewrite(fd: int, record: bytes) -> None:
    """Replace a lock file's lines. The file is never empty meanwhile, because clients may read it."""
    os.pwrite(fd, record, 0)
    os.ftruncate(fd, len(record))


def _holder(record: bytes) -> str:
    """Return who holds a lock, in words."""
    who, _, rest = shown_path(os.fsdecode(record)).partition("\n")
    where = rest.partition("\n")[0].removeprefix("socket ")
    return (who or "another process") + (f", which listens at {where}" if where else "")


def private_directory(path: str, *, ours: bool) -> None:
    """Create a directory for this user alone; raise `StartError` if others could write to it.

    `ours`: it is only for fluxbudget's files, so an existing directory is made private, and a symlink is refused, which
    might lead to a directory with other files. A directory that the user has chosen keeps its mode.
    """
    try:
        existed = os.path.lexists(path)
        os.makedirs(path, mode=0o700, exist_ok=True)
        if ours and os.path.islink(path):
            hint = "move it away, or name the directory it leads to (--socket, --state-dir)"
            raise StartError(f"the directory {path} is a symlink", hint)
        with directory_at(path, follows=not ours) as fd:
            _require_private(fd, path, ours=ours, is_new=not existed)
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


def _require_private(fd: int, path: str, *, ours: bool, is_new: bool) -> None:
    """Make an open directory private, or raise `StartError`."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise StartError(f"{path} belongs to uid {found.st_uid}, not to you ({os.geteuid()})", "use your own")
    if (ours and not found.st_mode & stat.S_IWOTH) or is_new:
        make_private(fd)
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"{path} is writable by others", f"chmod go-w {path}, or use another directory")
