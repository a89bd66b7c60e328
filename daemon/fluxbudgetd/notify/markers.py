"""Markers: an empty file for each run that a hard limit stops.

A hook that gets no answer looks for markers, to find out whether it has to read the state files. So they stay when the
daemon stops or is killed, until the next daemon has the run's numbers.
"""

import os
from collections.abc import Iterable, Mapping

from fluxbudgetd.notify.atomic import Failures, is_directory, private_directories, remove
from fluxbudgetd.wire.state_names import file_name


class Markers:
    """The markers in a directory below `base`. All methods block; failures are collected."""

    def __init__(self, directory: str, base: str) -> None:
        self._directory = directory
        self._base = base
        #: The names of the markers that have to exist.
        self.names: set[str] = set()

    def create_directory(self, failures: Failures) -> None:
        """Create the directory if it is missing, but not `base`."""
        with failures.at(self._directory, "created"):
            private_directories(self._directory, self._base)

    def is_intact(self) -> bool:
        """Return True if the directory exists."""
        return is_directory(self._directory)

    def adopt(self, runs: Iterable[str], failures: Failures) -> None:
        """Keep the markers that an earlier daemon has left for these runs, and remove its other ones."""
        names = {name for run in runs if (name := file_name(run))}
        with failures.at(self._directory, "scanned"):
            found = set(os.listdir(self._directory))
            self.names |= names & found
            for name in found - self.names:
                with failures.at(self._path(name), "removed"):
                    remove(self._path(name))

    def write(self, stopped: Mapping[str, bool], failures: Failures) -> None:
        """Create or remove markers: run → whether it is stopped. Create deleted ones again."""
        for run, is_stopped in stopped.items():
            name = file_name(run)
            if name is not None and is_stopped:
                self.names.add(name)
            elif name is not None:
                self.names.discard(name)
                with failures.at(self._path(name), "removed"):
                    remove(self._path(name))
        for name in self.names:
            with failures.at(self._path(name), "created"):
                if not os.path.lexists(self._path(name)):
                    _create(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
