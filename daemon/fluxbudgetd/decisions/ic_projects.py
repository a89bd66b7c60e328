"""The projects of intercore's runs: where they are, and whether their rules demand a hard limit."""

import os

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


class IcProjects:
    """Examines projects in worker threads. `limiter` limits their number."""

    def __init__(self, places: Places, settings: Settings, limiter: anyio.CapacityLimiter) -> None:
        self._places = places
        self._settings = settings
        self._limiter = limiter

    async def candidate(self, database: str, ic: IcRun, other: str | None) -> Candidate:
        """Return an active row with its project; raises `RequestTimeoutError` if that cannot be examined in time.

        A project that was moved or copied together with its database is where the database is. So is one above it: `ic`
        creates no such row, which would bind the sessions of other projects. `other` is another database that has had
        this run, if there is one.
        """
        root = os.path.dirname(os.path.dirname(database))
        with anyio.CancelScope(deadline=anyio.current_time() + _SECONDS):
            directory = await anyio.to_thread.run_sync(
                _resolved, ic.project_dir, root, abandon_on_cancel=True, limiter=self._limiter
            )
            is_hard, elsewhere = await self.demands_hard(directory), None
            if directory != root and not directory.startswith(f"{root.rstrip('/')}/"):
                places = await self._places.of(directory, anyio.current_time() + _SECONDS)
                found = await anyio.to_thread.run_sync(
                    intercore.find, places, abandon_on_cancel=True, limiter=self._limiter
                )
                elsewhere = None if found is None or found.path == database else found.path
            is_moved = other is not None and await anyio.to_thread.run_sync(
                _is_gone, other, abandon_on_cancel=True, limiter=self._limiter
            )
            return Candidate(ic, directory, is_hard, elsewhere, other if is_moved else None)
        raise RequestTimeoutError(f"the project {ic.project_dir} could not be examined in time", "check its disk")

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
