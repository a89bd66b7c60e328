"""Writes and removes the files of the units and of their drop-ins."""

import os
import tempfile
from contextlib import suppress

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service.units import File, State
from fluxbudgetd.wire import codes

_MODE = 0o644


def write(directory: str, texts: dict[str, str]) -> None:
    """Write files, each one atomically: the units, and drop-ins by their relative paths; raises `Failure`."""
    temporaries: list[tuple[str, str]] = []
    try:
        for name, text in texts.items():  # one by one, so that those written can be removed after an error
            path = os.path.join(directory, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporaries.append((_write_temporary(os.path.dirname(path), text), path))
        for temporary, path in temporaries:
            os.replace(temporary, path)
            _sync(os.path.dirname(path))
    except OSError as exc:
        for temporary, _ in temporaries:
            with suppress(OSError):
                os.unlink(temporary)
        message = f"{exc.filename or directory} cannot be written: {exc.strerror}"
        raise Failure(message, "check the directory's permissions and free space", codes.REFUSED) from None


def remove(path: str) -> None:
    """Remove a unit's file, if it is there; raises `Failure`."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failure(f"{path} cannot be removed: {exc.strerror}", "check its permissions", codes.REFUSED) from None


def require_no_directory(file: File) -> None:
    """Raise `Failure` if a directory is in the file's place."""
    if os.path.isdir(file.path) and not os.path.islink(file.path):
        raise Failure(f"{file.path} is a directory; nothing was changed", "move it away", codes.REFUSED)


def not_ours(file: File) -> str:
    """Return why a file may only be replaced or removed with `--force`."""
    return f"{file.path} was {'edited by hand' if file.state is State.EDITED else 'not written by this command'}"


def _write_temporary(directory: str, text: str) -> str:
    """Write a text durably to a new file in the directory and return its path; raises `OSError` and leaves nothing."""
    fd, path = tempfile.mkstemp(prefix=".fluxbudgetd-", dir=directory)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(fd, _MODE)
            os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    return path


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
