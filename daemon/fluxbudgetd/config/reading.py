"""Read files that people and other programs write; refuse what is not a regular, small text file."""

import os
import stat
import time

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ConfigError

LARGEST = 1 << 20
"""The size limit of files, in bytes, unless a smaller one is given."""
_RECENTLY_NS = 2_000_000_000

FileStamp = tuple[int, ...]
"""Differs if the file has changed; empty if there is no file."""


def read_text(path: str, most: int = LARGEST) -> str | None:
    """Return a file's text, or None if it does not exist. Never waits for a FIFO or a device.

    Raises `ConfigError` if the file cannot be read, is not UTF-8, or has more than `most` bytes.
    """
    shown = shown_file(path)
    try:
        data = _read(path, shown, most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as exc:
        raise ConfigError(
            f"{shown}: it cannot be read: {exc.strerror}", f"make it readable: chmod u+r {shown}"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"{shown}: it cannot be read: {exc.strerror}", "check the path and its file system") from exc
    except ValueError as exc:  # a NUL in it, or half a surrogate pair
        raise ConfigError(f"{shown}: this is not a path: {exc}", "give the path of a file") from exc
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{shown}: line {line} has the byte 0x{data[exc.start]:02x}; allowed: UTF-8", "save the file as UTF-8"
        ) from exc


def file_stamp(path: str) -> FileStamp | None:
    """Return the file's stamp, or None if the file must be read again next time.

    That is the case if the file cannot be examined, or was written so recently that another change could leave its
    times the same.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError):
        return None
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _RECENTLY_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: str, shown: str, most: int) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ConfigError(f"{shown}: it is {kind}; allowed: a regular file", "move it away, or give another path")
        data = b""
        while piece := os.read(fd, most + 1 - len(data)):
            data += piece
    finally:
        os.close(fd)
    if len(data) > most:
        size = f"{most >> 20} MiB" if most >= LARGEST else f"{most >> 10} KiB"
        raise ConfigError(
            f"{shown}: it is larger than {size}; allowed: at most {size}", "check that it is the right file"
        )
    return data
