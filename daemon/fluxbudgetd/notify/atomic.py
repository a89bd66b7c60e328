"""Files that nobody sees half-written: each is made under another name, and renamed.

What is made here is not waited for until it is on the disk: it is about the present, and made again after a power cut.
All of it blocks: call it in a worker thread.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ChannelError

#: What the names of files that are being made begin with; a kill may leave such a file.
TEMPORARY = ".fluxbudget-"

_NO_ROOM = "make room on its file system"
_NOT_ALLOWED = "check who may write there"
_HINTS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: f"{_NOT_ALLOWED}; as a systemd service: 'systemctl --user restart fluxbudgetd.socket'",
    errno.EISDIR: "move the directory in its place away",
    errno.ENOTDIR: "move the file in the directory's place away",
}


def write(path: str, content: bytes, scratch: str) -> None:
    """Give a file this content and mode 0600; raises `OSError`, and then leaves everything as it was.

    Whatever file has the name is replaced; a symbolic link is, too, and never followed. `scratch` is the directory in
    which the content is written, on the same file system.
    """
    made = _new_name(scratch)
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with _renamed(made, path), open(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # whatever the umask took away
        file.write(content)


def link(path: str, target: str, scratch: str) -> None:
    """Make a symbolic link, or replace what has its name; raises `OSError`."""
    made = _new_name(scratch)
    os.symlink(target, made)
    with _renamed(made, path):
        pass


def private_directories(path: str) -> None:
    """Make a directory, and those above it that are missing, for this user alone; raises `OSError`."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        private_directories(above)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # likewise


class Failures:
    """What went wrong with some of many files. The first is told when all have had their turn."""

    def __init__(self) -> None:
        self._first: ChannelError | None = None

    @contextmanager
    def at(self, path: str, deed: str) -> Iterator[None]:
        """Keep the `OSError` of what is done to a path; `deed` is that, as a participle: written, removed."""
        try:
            yield
        except OSError as exc:
            if self._first is None:
                hint = _HINTS.get(exc.errno or 0, "check the path")
                self._first = ChannelError(f"{shown_file(path)} cannot be {deed}: {exc.strerror or exc}", hint)
                self._first.__cause__ = exc

    def conclude(self) -> None:
        """Raise the first failure as a `ChannelError`, if there was one."""
        if self._first is not None:
            raise self._first


def remove(path: str) -> None:
    """Remove a file that may be missing; raises `OSError`."""
    with suppress(FileNotFoundError):
        os.unlink(path)


@contextmanager
def _renamed(made: str, path: str) -> Iterator[None]:
    try:
        yield
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def _new_name(directory: str) -> str:
    return os.path.join(directory, f"{TEMPORARY}{secrets.token_hex(8)}")
