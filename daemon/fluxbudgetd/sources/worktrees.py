"""Which project directories a directory belongs to: its parents, and for a git worktree those of its main checkout.

A linked worktree has a file `.git` with a line `gitdir: PATH`. That directory lies in `worktrees/` of the repository,
and its file `commondir` leads there. The main checkout is the repository without its last part `.git`; a repository of
another name (a bare one, a submodule's) stands for itself, as in git. Only these two files are read, and git is never
started.

Everything blocks: call it in a worker thread. What the files contain is not trusted: only small regular files are read,
without waiting for a writer, and whatever is unusual counts as no worktree.
"""

import os
import stat
from collections.abc import Iterator

from fluxbudgetd.wire.text import shown_path, unfold

_GIT = ".git"
_PREFIX = b"gitdir:"
# A path has at most 4 096 bytes.
_LONGEST = 8192
# A main checkout may itself lie in a worktree.
_DEEPEST = 8
_MOST_PLACES = 4096


def places(directory: str) -> tuple[str, ...]:
    """Return the directories whose runs a directory belongs to, nearest first, with symbolic links resolved.

    The directory comes first, then its parents. The root of a worktree is followed by the same directory in the main
    checkout and that one's parents. Never raises because of what the files are or contain.
    """
    try:
        start = os.path.realpath(os.fsdecode(unfold(directory)))
        return tuple(map(shown_path, _climb(start, set(), _DEEPEST)))
    except (OSError, ValueError):
        return parents(directory)


def parents(directory: str) -> tuple[str, ...]:
    """Return a directory and its parents, nearest first, as the path is written."""
    parts = directory.rstrip("/").split("/")
    return tuple("/".join(parts[:length]) or "/" for length in range(len(parts), 0, -1))


def _climb(start: str, seen: set[str], deeper: int) -> Iterator[str]:
    for place in parents(start):
        if place in seen or len(seen) == _MOST_PLACES:
            continue
        seen.add(place)
        yield place
        main = _main_checkout(place) if deeper else None
        if main is not None:
            same = os.path.realpath(os.path.join(main, os.path.relpath(start, place)))
            yield from _climb(same, seen, deeper - 1)


def _main_checkout(directory: str) -> str | None:
    """Return the main checkout of the worktree with this root; None if it is not the root of a linked worktree."""
    try:
        link = _read(os.path.join(directory, _GIT))
        if link is None or not link.startswith(_PREFIX):
            return None
        administrative = os.path.realpath(os.path.join(directory, _path(link.removeprefix(_PREFIX))))
        common = _read(os.path.join(administrative, "commondir"))
        if common is None:
            return None
        repository = os.path.realpath(os.path.join(administrative, _path(common)))
    except (OSError, ValueError):
        return None
    if os.path.dirname(administrative) != os.path.join(repository, "worktrees"):
        return None
    return os.path.dirname(repository) if os.path.basename(repository) == _GIT else repository


def _path(text: bytes) -> str:
    return os.fsdecode(text.strip(b" \t\r\n"))


def _read(path: str) -> bytes | None:
    """Return the contents of a small regular file; None for anything else."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    # The file may have been replaced by a FIFO meanwhile. Without O_NONBLOCK, opening that would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        found = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    return found if len(found) <= _LONGEST else None
