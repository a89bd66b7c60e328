"""The units' files: written whole or not at all, and removed."""

import os
import tempfile
from contextlib import suppress

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service.units import UNITS
from fluxbudgetd.wire import codes

_MODE = 0o644


def write(directory: str, texts: dict[str, str]) -> None:
    """Write both units, each whole or not at all; raises `Failure`."""
    made: list[tuple[str, str]] = []
    try:
        os.makedirs(directory, exist_ok=True)
        for name in UNITS:  # each one at once: they are to be removed
            made += [(_temporary(directory, texts[name]), os.path.join(directory, name))]
        for temporary, path in made:
            os.replace(temporary, path)
        _sync(directory)
    except OSError as exc:
        for temporary, _ in made:
            with suppress(OSError):
                os.unlink(temporary)
        what = f"{exc.filename or directory} cannot be written: {exc.strerror}"
        raise Failure(what, "look at the directory's permissions and room", codes.REFUSED) from None


def remove(path: str) -> None:
    """Remove a unit's file, which may be missing; raises `Failure`."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failure(f"{path} cannot be removed: {exc.strerror}", "look at its permissions", codes.REFUSED) from None


def _temporary(directory: str, text: str) -> str:
    """Write a text beside where it belongs, on disk when this returns; raises `OSError` and leaves nothing."""
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
