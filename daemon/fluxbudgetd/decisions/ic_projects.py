"""The projects of intercore's runs: where they are, and whether their rules demand a hard limit."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.adopted_runs import Candidate
from fluxbudgetd.errors import RequestTimeoutError
from fluxbudgetd.model import IcRun
from fluxbudgetd.sources import intercore
from fluxbudgetd.totals.places import Places
from fluxbudgetd.wire.text import shown_path, unfold

# No request waits for this.
_SECONDS = 2.0
_MOST_THREADS = 8

T = TypeVar("T")


class _Call:
    """A call in a worker thread. `is_abandoned`: no one waits for it any more."""

    is_running = False
    is_abandoned = False


class IcProjects:
    """Examines projects in a few worker threads.

    A place that hangs blocks one thread, and is not examined again until it answers.
    """

    def __init__(self, places: Places, settings: Settings) -> None:
        self._places = places
        self._settings = settings
        self._limiter = anyio.CapacityLimiter(_MOST_THREADS)
        # The abandoned calls that are running, by place. Threads remove their own.
        self._abandoned: dict[str, _Call] = {}
        self._lock = threading.Lock()

    async def candidate(self, database: str, ic: IcRun, other: str | None) -> Candidate:
        """Return an active row with its project; raises `RequestTimeoutError` if that cannot be examined in time.

        If a project was moved or copied together with its database, its directory is the database's. The same holds for
        a row that names a directory above the database's: `ic` creates no such row, and it would attract the sessions
        of other projects. `other` is another database that has had this run, if there is one.
        """
        root = os.path.dirname(os.path.dirname(database))
        with anyio.CancelScope(deadline=anyio.current_time() + _SECONDS):
            directory = await self._call(ic.project_dir, _resolved, ic.project_dir, root)
            is_hard, elsewhere = await self.demands_hard(directory), None
            if directory != root and not directory.startswith(f"{root.rstrip('/')}/"):
                places = await self._places.of(directory, anyio.current_time() + _SECONDS)
                found = await self._call(directory, intercore.find, places)
                elsewhere = None if found is None or found.path == database else found.path
            is_moved = other is not None and await self._call(other, _is_gone, other)
            return Candidate(ic, directory, is_hard, elsewhere, other if is_moved else None)
        raise _timeout(ic.project_dir)

    async def _call(self, place: str, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that may hang on this place, and return its result."""
        if place in self._abandoned:
            raise _timeout(place)
        state = _Call()

        def call() -> T:
            with self._lock:
                if state.is_abandoned:
                    raise _timeout(place)
                state.is_running = True
            try:
                return function(*arguments)
            finally:
                with self._lock:
                    state.is_running = False
                    if self._abandoned.get(place) is state:
                        del self._abandoned[place]

        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            with self._lock:
                state.is_abandoned = True
                if state.is_running:
                    self._abandoned[place] = state

    async def demands_hard(self, directory: str) -> bool:
        """Return True if the configuration or a file of the project demands a hard limit.

        Raises `RequestTimeoutError`.
        """
        if self._settings.config.runs.enforcement == "hard":
            return True
        deadline = anyio.current_time() + _SECONDS
        with anyio.CancelScope(deadline=deadline):
            return (await self._settings.demand(await self._places.of(directory, deadline))).hard_by is not None
        raise RequestTimeoutError(f"the rules of {directory} could not be read in time", "check its disk")


def _timeout(place: str) -> RequestTimeoutError:
    return RequestTimeoutError(f"the project {place} could not be examined in time", "check its disk")


def _is_gone(database: str) -> bool:
    """Return True if a database's file certainly does not exist; False if it may only be inaccessible."""
    try:
        os.lstat(os.fsdecode(unfold(database)))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _resolved(directory: str, root: str) -> str:
    real = os.path.realpath(os.fsdecode(unfold(directory)))
    found = shown_path(real) if os.path.isdir(real) else root
    return root if root.startswith(f"{found.rstrip('/')}/") else found
