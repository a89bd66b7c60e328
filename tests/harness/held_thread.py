"""Stop threads of another process, as a hanging file system would."""

import ctypes
import os
from pathlib import Path
from typing import Self

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_THREAD = 0x40000000  # __WALL
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def threads(pid: int) -> list[int]:
    """Return the process's threads, in the order in which they were started."""
    return sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())


class Held:
    """Threads that are stopped until the end of the block, while the rest of their process runs."""

    def __init__(self) -> None:
        self._threads: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.reap()
        for thread in self._threads:
            _ptrace(_DETACH, thread)

    def add(self, *more: int) -> None:
        """Stop further threads."""
        for thread in set(more) - self._threads:
            _ptrace(_SEIZE, thread)
            _ptrace(_INTERRUPT, thread)
            os.waitpid(thread, _THREAD)
            self._threads.add(thread)

    def reap(self) -> None:
        """Wait for the threads that have ended, without which a killed process does not disappear."""
        for thread in tuple(self._threads):
            if os.waitpid(thread, _THREAD | os.WNOHANG)[0]:
                self._threads.discard(thread)


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
