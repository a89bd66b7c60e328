"""Write files that are never seen half-written: each is created under a temporary name and renamed.

Nothing is synced to disk: these files describe the current state, and are written again after a power failure. All
functions block, so call them in a worker thread.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ChannelError

#: The prefix of temporary names; a killed daemon may leave such a file.
TEMPORARY = ".fluxbudget-"

_NO_ROOM = "make room on its file system"
_NOT_ALLOWED = "check its permissions"
_HINTS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: f"{_NOT_ALLOWED}; as a systemd service: 'systemctl --user restart fluxbudgetd.socket'",
    errno.EISDIR: "a directory has this name: move it away",
    errno.ENOTDIR: "a file or a symbolic link is where a directory must be: move it away",
}


def write(path: str, content: bytes, scratch: str) -> None:
    """Write a file with mode 0600; raises `OSError`, and then nothing has changed.

    A file or symbolic link of that name is replaced; a link is never followed. `scratch` is the directory for the
    temporary file, on the same file system.
    """
    temporary = _new_name(scratch)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with _renamed(temporary, path), open(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # regardless of the umask
        file.write(content)


def link(path: str, target: str, scratch: str) -> None:
    """Create a symbolic link, replacing whatever has its name; raises `OSError`."""
    temporary = _new_name(scratch)
    os.symlink(target, temporary)
    with _renamed(temporary, path):
        pass


def private_directories(path: str, base: str = "/") -> None:
    """Create a directory and its missing parents below `base`, which must exist, with mode 0700.

    Raises `OSError`, in particular if the directory is a symbolic link. Links among existing parents are followed.
    """
    parent = os.path.dirname(path)
    if parent not in (path, base) and not os.path.isdir(parent):
        private_directories(parent, base)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        is_new = False
    else:
        is_new = True
    with directory_at(path) as fd:
        if is_new:
            make_private(fd)


@contextmanager
def directory_at(path: str, *, follows: bool = False) -> Iterator[int]:
    """Yield a descriptor of a directory, whatever its mode is.

    Raises `OSError`, in particular for a symbolic link, unless `follows` is true.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follows else os.O_NOFOLLOW))
    try:
        yield fd
    finally:
        os.close(fd)


def make_private(fd: int) -> None:
    """Give a directory the mode 0700, regardless of the umask; raises `OSError`. `fd` is from `directory_at`."""
    os.chmod(f"/proc/self/fd/{fd}", 0o700)  # `fchmod` refuses such a descriptor


def is_directory(path: str) -> bool:
    """Return True if there is a directory of this name; a link to one does not count."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


class Failures:
    """Collects failures while many files are handled, to raise the first at the end."""

    def __init__(self) -> None:
        self._first: ChannelError | None = None

    @contextmanager
    def at(self, path: str, participle: str) -> Iterator[None]:
        """Collect an `OSError` of the block. `participle` completes "PATH cannot be …": written, removed."""
        try:
            yield
        except OSError as exc:
            if self._first is None:
                hint = _HINTS.get(exc.errno or 0, "check the path")
                self._first = ChannelError(f"{shown_file(path)} cannot be {participle}: {exc.strerror or exc}", hint)
                self._first.__cause__ = exc

    def raise_first(self) -> None:
        """Raise the first failure, if there was one, as a `ChannelError`."""
        if self._first is not None:
            raise self._first


def remove(path: str) -> None:
    """Remove a file that may be missing; raises `OSError`."""
    with suppress(FileNotFoundError):
        os.unlink(path)


@contextmanager
def _renamed(temporary: str, path: str) -> Iterator[None]:
    try:
        yield
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _new_name(directory: str) -> str:
    return os.path.join(directory, f"{TEMPORARY}{secrets.token_hex(8)}")
