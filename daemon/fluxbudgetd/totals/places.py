"""Which directories' runs a working directory belongs to, without blocking the event loop.

A lookup costs a few system calls in a worker thread. If a file system does not answer, the lookup is abandoned: the
last known result of that directory is used, or its parents as they are written, and no further lookup of it starts
until the abandoned one has ended. So a directory that hangs blocks one thread, and no other directory is affected.
"""

import anyio
import anyio.to_thread

from fluxbudgetd.sources import worktrees

_MOST_THREADS = 8
_MOST_KNOWN = 1000


class _Lookup:
    """A lookup that requests wait for. `found` is None until it has ended, and if it was abandoned."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.found: tuple[str, ...] | None = None


class Places:
    """Finds the directories whose runs a directory belongs to, nearest first (see `sources.worktrees`)."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, _Lookup] = {}
        # The directories that threads examine. An abandoned thread may examine its directory for ever.
        self._busy: set[str] = set()
        self._limiter = anyio.CapacityLimiter(_MOST_THREADS)

    async def of(self, directory: str, deadline: float) -> tuple[str, ...]:
        """Return the directories, as far as they are known after half of the time until the deadline."""
        now = anyio.current_time()
        found: tuple[str, ...] | None = None
        with anyio.CancelScope(deadline=now + (deadline - now) / 2):
            lookup = self._lookups.get(directory)
            if lookup is not None:
                await lookup.done.wait()
                found = lookup.found
            elif directory not in self._busy and len(self._busy) < _MOST_THREADS:
                found = await self._look_up(directory)
        return found or self._known.get(directory) or worktrees.parents(directory)

    async def _look_up(self, directory: str) -> tuple[str, ...]:
        lookup = self._lookups[directory] = _Lookup()
        try:
            lookup.found = await anyio.to_thread.run_sync(
                self._examine, directory, abandon_on_cancel=True, limiter=self._limiter
            )
        finally:
            del self._lookups[directory]
            lookup.done.set()
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[directory] = lookup.found
        return lookup.found

    def _examine(self, directory: str) -> tuple[str, ...]:
        self._busy.add(directory)
        try:
            return worktrees.places(directory)
        finally:
            self._busy.discard(directory)
