"""Adopt runs from the labels of beads, and follow changes of the beads' `token_budget`.

No request waits for this: when a request names a bead without a run, the bead is read in the background, and the
request is answered as if there were no run. If `bd` fails, the bead is read again when another request names it.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import anyio
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.adopted_runs import AdoptedRuns
from fluxbudgetd.decisions.attachments import SessionAttachments
from fluxbudgetd.decisions.lifecycle import Lifecycle
from fluxbudgetd.errors import FluxError
from fluxbudgetd.model import Bead, Run
from fluxbudgetd.policy import bead_labels
from fluxbudgetd.policy.adoption import Changed
from fluxbudgetd.sources.beads import BeadsError, BeadsSource
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import Hints

log = structlog.get_logger()

# A name that is not a bead's is looked up again after this time.
_PAUSE_SECONDS = 60.0
# If a bead's label names an unknown intercore run, the run is looked for again after this time.
_MISSING_SECONDS = 10.0
# While a run's numbers change, its label is read again after this time.
_FOLLOW_SECONDS = 600.0
# No request waits this long.
_LOOKUP_SECONDS = 5.0
_START_SECONDS = 20.0
# How many beads may wait to be read, and how many are remembered.
_MOST_WAITING, _MOST_KNOWN = 64, 1000


class _Unknown(NamedTuple):
    """A bead without a run: where it was named, by which session, and when that was first (microseconds)."""

    directory: str
    session: str | None
    at: int


class _Followed(NamedTuple):
    """A run's phase when its label was last read, and when the label is read again in this phase (loop time)."""

    phase: str
    again_at: float


class Beads:
    """Reads one bead at a time.

    `refresh` reads the directory's intercore database, so that no second run is started for an intercore run.
    """

    def __init__(
        self,
        source: BeadsSource,
        accounts: Accounts,
        totals: Totals,
        settings: Settings,
        clock: Callable[[], int],
        lifecycle: Lifecycle,
        attachments: SessionAttachments,
        adopted_runs: AdoptedRuns,
        refresh: Callable[[str, float], Awaitable[object]],
    ) -> None:
        self._source = source
        self._accounts = accounts
        self._places = totals.places
        self._refresher = totals.refresher
        self._settings = settings
        self._clock = clock
        self._lifecycle = lifecycle
        self._attachments = attachments
        self._adopted_runs = adopted_runs
        self._refresh_runs = refresh
        self._unknown: dict[str, _Unknown] = {}
        self._outdated: dict[str, None] = {}
        self._has_requests = anyio.Event()
        # When a name may be looked up again in a directory, by the event loop's clock.
        self._paused_until: dict[tuple[str, str], float] = {}
        self._first_named: dict[str, int] = {}
        self._followed: dict[str, _Followed] = {}
        #: For each bead whose label names an unknown intercore run: that run's id.
        self.missing: dict[str, str] = {}

    def note_unknown(self, scope: str, hints: Hints) -> None:
        """Request that a bead without a run is read, because a request has named it; returns at once."""
        if not self._settings.config.beads.read or hints.cwd is None or scope in self._unknown:
            return
        is_paused = anyio.current_time() < self._paused_until.get((scope, hints.cwd), 0.0)
        if is_paused or len(self._unknown) >= _MOST_WAITING:
            return
        if max(len(self._first_named), len(self._paused_until), len(self.missing)) >= _MOST_KNOWN:
            self._first_named.clear()
            self._paused_until.clear()
            self.missing.clear()
        at = self._first_named.setdefault(scope, self._clock())
        self._unknown[scope] = _Unknown(hints.cwd, hints.sessions[0] if hints.sessions else None, at)
        self._has_requests.set()

    def request(self, run: str) -> None:
        """Request that an adopted run's label is read again; returns at once. Other runs follow no label."""
        account = self._accounts.runs[run]
        if self._settings.config.beads.read and _follows(account):
            self._outdated[run] = None
            self._has_requests.set()

    def note_change(self, run: str) -> None:
        """Request that a changed run's label is read again if the run's phase has changed, or the last read is old."""
        account = self._accounts.runs[run]
        if not _follows(account):
            return
        last = self._followed.get(run)
        if last is None or last.phase != account.run.phase or anyio.current_time() >= last.again_at:
            self.request(run)

    async def serve(self) -> None:
        """Read beads as requested, until cancelled."""
        while True:
            await self._has_requests.wait()
            self._has_requests = anyio.Event()
            while self._unknown or self._outdated:
                for scope, named in list(self._unknown.items()):
                    await self._attempt(scope, partial(self._adopt, scope, named))
                    del self._unknown[scope]
                for run in list(self._outdated):
                    del self._outdated[run]
                    await self._attempt(run, partial(self._follow, self._accounts.runs[run]))

    async def _attempt(self, name: str, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except FluxError as exc:
            # The ledger or the project's rules failed. The next request that names the bead tries again.
            log.warning("bead not adopted or followed", bead_or_run=name, error=exc.message)
        except Exception:
            # A label may contain anything. A failure must not affect other beads.
            log.exception("bead not adopted or followed", bead_or_run=name)

    async def _adopt(self, scope: str, named: _Unknown) -> None:
        """Start a run for a bead, or give the bead to intercore's run if its label names one."""
        self._pause(scope, named, anyio.current_time() + _PAUSE_SECONDS)
        directory = await self._directory(named.directory)
        if directory is None or self._accounts.scopes.get(scope):
            return
        try:
            bead = await self._source.read(scope, directory)
        except BeadsError:
            self._pause(scope, named, self._source.retry_at(directory))
            return
        if bead is None or bead_labels.is_over(bead):
            self._first_named.pop(scope, None)
            return
        if bead.run is not None and self._settings.config.intercore.adopt:
            self._pause(scope, named, anyio.current_time() + _MISSING_SECONDS)
            self.missing[scope] = bead.run
            if await self._link(bead, bead.run, named.directory):
                self.missing.pop(scope, None)
            return
        account = await self._lifecycle.adopt(
            bead_labels.request(bead, directory),
            partial(self._adopted, bead=bead),
            named.at,
            anyio.current_time() + _START_SECONDS,
        )
        if account is not None:
            log.info("run adopted", run=account.run.id, bead=scope)
            await self._attach(account, named.session)

    def _adopted(self, run: Run, bead: Bead) -> Run:
        """Return a new run as the run of a bead, and note that its label was just read."""
        adopted = bead_labels.adopted(run, bead)
        self._note_followed(adopted, _FOLLOW_SECONDS)
        return adopted

    def _pause(self, scope: str, named: _Unknown, until: float) -> None:
        self._paused_until[scope, named.directory] = until

    async def _link(self, bead: Bead, run_id: str, directory: str) -> bool:
        """Make intercore's run of a bead follow the bead's label. Return True if the run is known.

        It is unknown if its database has not been read yet.
        """
        await self._refresh_runs(directory, anyio.current_time() + _LOOKUP_SECONDS)
        for account in self._accounts.active():
            known = account.run.adopted
            if known is not None and known.run_id == run_id:
                self._note_followed(account.run, _FOLLOW_SECONDS)
                await self._save(account, partial(bead_labels.linked, bead=bead))
                return True
        return False

    async def _follow(self, account: RunAccount) -> None:
        run = account.run
        self._note_followed(run, _PAUSE_SECONDS)
        directory = await self._directory(run.project_dir)
        if directory is not None and run.scope is not None:
            try:
                bead = await self._source.read(run.scope, directory)
            except BeadsError:
                return
            if bead is not None:
                await self._save(account, partial(bead_labels.with_label, bead=bead))
        self._note_followed(run, _FOLLOW_SECONDS)

    def _note_followed(self, run: Run, seconds: float) -> None:
        self._followed[run.id] = _Followed(run.phase, anyio.current_time() + seconds)

    async def _save(self, account: RunAccount, change: Callable[[Run], Changed]) -> None:
        if change(account.run).run != account.run:
            # Thresholds are compared with the new budget, so the run's numbers must be known.
            deadline = anyio.current_time() + _START_SECONDS
            await self._refresher.refresh([account.run.id], deadline=deadline)
            await self._adopted_runs.save(account, change, bead_labels.VIA)

    async def _attach(self, account: RunAccount, session: str | None) -> None:
        """Attach the session that first named the bead, unless it has ever belonged to a run."""
        if session is None:
            return
        known = self._accounts.sessions.get(session)
        if known is None or not known.current:
            await self._attachments.attach(session, account, anyio.current_time() + _START_SECONDS)

    async def _directory(self, directory: str) -> str | None:
        """Return the nearest directory with beads; for a git worktree, it may be in the main checkout."""
        return await self._source.find(await self._places.of(directory, anyio.current_time() + _LOOKUP_SECONDS))


def _follows(account: RunAccount) -> bool:
    run = account.run
    return run.adopted is not None and run.scope is not None and run.status == "active"
