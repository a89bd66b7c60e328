"""Following the sources in the background, so that thresholds fire and the last known numbers are recent."""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing

import anyio
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.sources import watch
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.freshness import Freshness, Required
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.transcript_store import TranscriptStore

log = structlog.get_logger()

# The watcher sees a commit's frames in the -wal file before the commit can be read, so scan once more.
_SECOND_SCAN_SECONDS = 0.2
_REFRESH_SECONDS = 60.0
_SETTINGS_WAIT_SECONDS = 1.0
_ENDED_SECONDS = 3600.0
_REST_SHARE = 4
_LONGEST_REST_SECONDS = 2.0

Refresh = Callable[[Iterable[RunAccount], Required, float], Awaitable[None]]


class Follower:
    """Watches the sources of the active runs, and scans ended runs every hour.

    It rests while there is nothing to follow. `refresh` brings runs up to date by a deadline.
    """

    def __init__(
        self,
        accounts: Accounts,
        interstat: InterstatReader,
        transcripts: TranscriptStore,
        freshness: Freshness,
        settings: Settings,
        clock: Callable[[], int],
        refresh: Refresh,
    ) -> None:
        self._accounts = accounts
        self._interstat = interstat
        self._transcripts = transcripts
        self._freshness = freshness
        self._settings = settings
        self._clock = clock
        self._refresh = refresh
        self._active = anyio.Event()
        self._ended = anyio.Event()
        self._rest = anyio.Event()
        self._watched: tuple[str, ...] = ()

    @property
    def is_active(self) -> bool:
        """Return True if at least one run is active."""
        return self._active.is_set()

    def followed(self) -> list[RunAccount]:
        """Return the runs whose sources are read: the active ones, and those that ended within 48 hours."""
        return self._accounts.followed(self._clock())

    def note_runs(self) -> None:
        """Start or stop following after runs have started or ended."""
        if any(account.run.ended_at is not None for account in self.followed()):
            self._ended.set()
        if self._accounts.has_active():
            self._active.set()
        elif self._active.is_set():
            self._active = anyio.Event()
            self._rest.set()

    def rewatch(self) -> None:
        """Restart the watch if the active runs' transcripts are now in other directories."""
        if self._active.is_set() and self._watched != self._places():
            self._rest.set()

    def forget_old_transcripts(self) -> None:
        """Close the transcripts that followed runs no longer need."""
        self._transcripts.forget_all_but({name for account in self.followed() for name in account.sessions})

    async def serve(self) -> None:
        """Follow until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_active)
            tasks.start_soon(self._follow_ended)

    async def _follow_active(self) -> None:
        while True:
            await self._active.wait()
            self._rest = anyio.Event()
            self._watched = self._places()
            changes = watch.changes(self._interstat.path, self._watched, self._rest)
            async with anyio.create_task_group() as tasks, aclosing(changes):
                tasks.start_soon(watch.set_when_cancelled, self._rest)
                async for _ in changes:
                    busy = await self.scan()
                    await self._settings.refresh(anyio.current_time() + _SETTINGS_WAIT_SECONDS)
                    # Under a heavy write load, following takes at most a fifth of a core.
                    await anyio.sleep(min(_REST_SHARE * busy, _LONGEST_REST_SECONDS))
                tasks.cancel_scope.cancel()
            if not self._active.is_set():
                # The last read may have begun before the last run ended, and have left the file open.
                await self._interstat.reopen()

    def _places(self) -> tuple[str, ...]:
        """Return the directories of the active runs' transcripts."""
        return self._transcripts.directories({name for account in self._accounts.active() for name in account.sessions})

    async def _follow_ended(self) -> None:
        """Scan ended runs every hour while they are followed, so that usage measured late is counted."""
        while True:
            await self._ended.wait()
            await anyio.sleep(_ENDED_SECONDS)
            self.forget_old_transcripts()
            if all(account.run.ended_at is None for account in self.followed()):
                self._ended = anyio.Event()
            else:
                await self.scan()

    async def scan(self) -> float:
        """Refresh the followed runs if they are stale; return how many seconds that took."""
        for delay in (0.0, _SECOND_SCAN_SECONDS):
            await anyio.sleep(delay)
            followed = self.followed()
            required = self._freshness.required(followed, in_background=True)
            if self._freshness.stale(followed, required):
                began = anyio.current_time()
                try:
                    await self._refresh(followed, required, began + _REFRESH_SECONDS)
                except Exception:
                    # No request waits for this; the next one reports the error.
                    log.exception("following the sources failed")
                self.rewatch()
                return anyio.current_time() - began
        return 0.0
