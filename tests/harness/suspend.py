"""Suspend a process, and know that it is suspended."""

import os
import signal
from pathlib import Path

from harness.daemon import wait_for


def suspend(pid: int) -> None:
    """Stop a process with SIGSTOP, and return once none of its threads runs.

    The signal alone is not enough: kill(2) returns before the process has stopped, and until then each thread can go on
    with what it is doing, such as binding a socket again.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: _states(pid) == {"T"}, f"process {pid} to stop")


def _states(pid: int) -> set[str]:
    """Return the states of a process's threads, each a letter of proc(5)."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            status = (thread / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # This thread has ended.
        states.add(status.rpartition(")")[2].split()[0])
    return states
