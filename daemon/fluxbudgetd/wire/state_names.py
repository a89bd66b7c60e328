"""Where the state files are and how they are named, for the daemon (writer) and the client (reader)."""

import os

from fluxbudgetd.wire.text import unfold

#: A file in the state directory that a running daemon holds locked (`flock`, exclusively).
ALIVE = "alive"
#: The state directory's own directories: files of runs, and symbolic links to them.
RUNS = "runs"
SESSIONS = "sessions"
SCOPES = "scopes"
#: The directory beside the state directory with the markers: an empty file for each run that is stopped.
HARD = "hard"

_MOST_CHARACTERS = 200
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
_DOT = ord(".")


def state_directory(socket_path: str) -> str:
    """Return the directory of the state files of the daemon that serves this socket."""
    return os.path.join(os.path.dirname(socket_path), "state")


def hard_directory(socket_path: str) -> str:
    """Return the directory of the markers of the daemon that serves this socket."""
    return os.path.join(os.path.dirname(socket_path), HARD)


def file_name(name: str) -> str | None:
    """Return the name of the file of a run, session or scope; None if it can have no file.

    Bytes outside `A-Za-z0-9._:-`, and a leading dot, are written as `%XX`. So two names never share a file, and no
    name leads out of the directory. An empty name, or one that needs more than 200 characters, has no file.
    """
    try:
        raw = unfold(name)
    except UnicodeEncodeError:  # half of a surrogate pair represents no bytes
        return None
    plain = _PLAIN.issuperset(raw) and not raw.startswith(b".")
    written = raw.decode("ascii") if plain else "".join(map(_written, range(len(raw)), raw))
    return written if 0 < len(written) <= _MOST_CHARACTERS else None


def _written(position: int, byte: int) -> str:
    return chr(byte) if byte in _PLAIN and (position or byte != _DOT) else f"%{byte:02X}"
