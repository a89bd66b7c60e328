"""Processes, as /proc shows them. Only `/proc/PID/stat` is read, which every user may read."""

from typing import NamedTuple

# A chain of ancestors is far shorter. This only bounds the work if a process is reparented while it is read.
_MOST_ANCESTORS = 256


class Process(NamedTuple):
    """A process. `started` (clock ticks after boot) and `pid` identify it; `comm` is its name, at most 15 bytes.

    `has_terminal`: it has a controlling terminal.
    """

    pid: int
    parent: int
    comm: str
    started: int
    has_terminal: bool


class Ancestry(NamedTuple):
    """A process and its ancestors, nearest first. `is_complete` is False if the next one cannot be read."""

    processes: tuple[Process, ...]
    is_complete: bool


def read(pid: int) -> Process | None:
    """Return a process; None if it has ended or cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    # The name is in parentheses, and may contain any byte, including parentheses and spaces.
    name_start, name_end = stat.find(b"(") + 1, stat.rfind(b")")
    fields = stat[name_end + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        comm=stat[name_start:name_end].decode("utf-8", "replace"),
        started=int(fields[19]),
        has_terminal=int(fields[4]) != 0,
    )


def ancestry(pid: int) -> Ancestry:
    """Return a process and its ancestors, up to the first process of its PID namespace."""
    found: list[Process] = []
    while pid > 0:
        process = read(pid)
        if process is None or len(found) >= _MOST_ANCESTORS:
            return Ancestry(tuple(found), is_complete=False)
        found.append(process)
        pid = process.parent
    return Ancestry(tuple(found), is_complete=bool(found))
