"""Run programs in turns and measure how long each takes."""

import os
import random
import subprocess
import time
from collections.abc import Mapping
from typing import NamedTuple


class Program(NamedTuple):
    """A program to measure: its command with the absolute path, its environment, and the file for stdin."""

    command: list[str]
    environ: Mapping[str, str]
    stdin: str = os.devnull

    def run(self) -> int:
        """Run it to its end, discarding its output; return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self._start(), 0)[1])

    def page_faults(self) -> int:
        """Run it to its end; return how many pages it touched for the first time (starting it takes about two)."""
        return os.wait4(self._start(), 0)[2].ru_minflt

    def _start(self) -> int:
        files = (
            (os.POSIX_SPAWN_OPEN, 0, self.stdin, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        )
        return os.posix_spawn(self.command[0], self.command, self.environ, file_actions=files)

    def output(self) -> str:
        """Run it once and return its output; it must succeed."""
        with open(self.stdin, "rb") as stdin:
            done = subprocess.run(self.command, env=self.environ, stdin=stdin, capture_output=True, check=False)
        assert done.returncode == 0, done
        return done.stdout.decode().strip()


class Turns:
    """Runs programs repeatedly, each time in a new random order."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self.times: dict[str, list[float]] = {name: [] for name in programs}
        self.failed = dict.fromkeys(programs, 0)

    def run(self, rounds: int) -> None:
        names = list(self._programs)
        for _ in range(rounds):
            random.shuffle(names)
            for name in names:
                self._once(name)

    def _once(self, name: str) -> None:
        before = time.perf_counter()
        code = self._programs[name].run()
        self.times[name].append(time.perf_counter() - before)
        self.failed[name] += code != 0
