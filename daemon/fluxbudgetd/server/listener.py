"""The listening socket: one that was passed to this process, or one that it binds itself.

A dead socket is replaced; a socket that a process serves, or a file that is not a socket, never is. The
directory is 0700 and the socket 0600, whatever the umask.
"""

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fluxbudgetd.errors import StartError
from fluxbudgetd.server.limits import BACKLOG
from fluxbudgetd.server.peer import credentials_of

_PROBE_SECONDS = 1.0
# struct sockaddr_un has 108 bytes for the path and its closing zero.
_MAX_PATH_BYTES = 107


class Listener(NamedTuple):
    """A listening socket and its path. `identity` is the device and inode of its file, or None if there was no file."""

    socket: socket.socket
    path: str
    identity: tuple[int, int] | None
    is_passed: bool = False

    def is_reachable(self) -> bool:
        """Return True if the file at the path is still this socket's."""
        return self.identity is not None and _identity(self.path) == self.identity

    def close(self) -> None:
        """Close the socket. Remove its file first, if this process has bound it."""
        self.unlink()
        self.socket.close()

    def unlink(self) -> None:
        """Remove the socket's file if this process has bound it, and no other file has its name now."""
        with suppress(OSError):
            if not self.is_passed and self.is_reachable() and self._is_served_here():
                os.unlink(self.path)

    def _is_served_here(self) -> bool:
        """Return True if this process listens at the path. (A new file may have the inode of a removed one.)"""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except BlockingIOError:  # the queue of a listening socket is full
                return True
            except OSError:
                return False
            return credentials_of(probe)[0] == os.getpid()


def passed_listener(descriptors: Sequence[int]) -> Listener | None:
    """Return the listening socket that was passed to this process, or None; raise `StartError` if it cannot be served.

    It belongs to the process that passed it: its file is not removed, and connections that are still in its queue
    wait for the next daemon.
    """
    if not descriptors:
        return None
    hint = "one ListenStream= with a path, as in fluxbudgetd.socket"
    if len(descriptors) > 1:
        raise StartError(f"{len(descriptors)} sockets were passed, but only one can be served", hint)
    try:
        found = socket.socket(fileno=descriptors[0])
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        name = found.getsockname()
    except OSError as exc:
        raise StartError(f"the descriptor that was passed is not a socket: {exc.strerror}", hint) from exc
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM or not listens or not _is_path(name):
        found.close()
        raise StartError("the socket that was passed is not a listening Unix stream socket with a path", hint)
    found.setblocking(False)
    return Listener(found, name, _identity(name), is_passed=True)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_path(name: object) -> bool:
    return isinstance(name, str) and name.startswith("/")


def bind(path: str) -> Listener:
    """Listen at the path. The caller holds the lock. Raise `StartError` if the path cannot be bound. Blocks."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise StartError(
            f"the socket path is {len(os.fsencode(path))} bytes long, the limit is {_MAX_PATH_BYTES}: {path}",
            "give a shorter one with --socket or $FLUXBUDGET_SOCKET",
        )
    try:
        _clear(path)
        return _listen(path)
    except OSError as exc:
        raise StartError(f"the socket {path} cannot be bound: {exc.strerror}", "check its directory") from exc


def _listen(path: str) -> Listener:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        os.chmod(path, 0o600)  # before `listen`: until then no one can connect
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return Listener(listening, path, _identity(path))


def _clear(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StartError(f"the socket path {path} cannot be checked: {exc.strerror}", "check its directory") from exc
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} exists and is not a socket", "move it away, or give another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as exc:
            raise StartError(f"the socket {path} may be in use: {exc}", "stop the process that serves it") from exc
        else:
            raise StartError(f"the socket {path} is served by another process", "stop it, or give another --socket")
