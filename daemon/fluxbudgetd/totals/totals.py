"""Where runs stand: every question about totals is answered here, as fresh as the deadline allows.

A database row travels interstat → `InterstatReader` → `Refresher` → `Tallier` → `Accounts`, and from there to the
ledger through `RowStore`. A transcript line travels transcripts → `TranscriptStore` → `Refresher` → `Tallier` →
`Accounts`, and to the ledger through `TranscriptStore`. `UsageSaver` has both stores written: usage is in memory first
and in the ledger soon after, and a failed write is retried. After each batch `Reports.refreshed` has the thresholds
checked.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Counts, SourceStatus, Usage
from fluxbudgetd.policy import burn
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.totals.account import RunAccount, Standing
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.awaited_lines import AwaitedLines
from fluxbudgetd.totals.choosing import Choice, RunChooser, enforced, ids, least_left, no_run, single
from fluxbudgetd.totals.follower import Follower
from fluxbudgetd.totals.freshness import Freshness, Required
from fluxbudgetd.totals.history import History
from fluxbudgetd.totals.instances import Instances
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.later import LaterRefreshes
from fluxbudgetd.totals.lower_bounds import LowerBounds
from fluxbudgetd.totals.places import Places
from fluxbudgetd.totals.records import Records
from fluxbudgetd.totals.refresher import CHUNK_RUNS, Refresher
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.saver import UsageSaver
from fluxbudgetd.totals.source_states import SourceStates
from fluxbudgetd.totals.tallier import Tallier
from fluxbudgetd.totals.transcript_store import TranscriptStore
from fluxbudgetd.totals.turn import Turn
from fluxbudgetd.wire.messages import Hints

_LATER_SECONDS = 60.0


class SourceReport(msgspec.Struct, frozen=True):
    """A source's status, when its state began, and how many of its counts were dropped.

    `is_fault`: it cannot be read and is needed: it was configured, or a session of a followed run is counted from it.
    """

    status: SourceStatus
    since: int
    anomalies: int
    is_fault: bool


class Reports(NamedTuple):
    """What `Totals` calls.

    `refreshed`: with each run whose sources were read. `source_change`: when a source's state changes. `measured`: with
    each session whose sums or sub-agents may have changed, in the same step. `unknown_scope`: with a scope that a
    request names and no run has, and with the request's hints.
    """

    refreshed: Callable[[RunAccount], None]
    source_change: Callable[[], None]
    measured: Callable[[str], None]
    unknown_scope: Callable[[str, Hints], None]


class Totals:
    """Who spent what. `report` has what is called when something has changed."""

    def __init__(
        self,
        source: InterstatSource,
        transcripts: TranscriptSource,
        ledger: Ledger,
        writer: LedgerWriter,
        settings: Settings,
        accounts: Accounts,
        clock: Callable[[], int],
        report: Reports,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self.accounts = accounts
        self.chooser = RunChooser(accounts, report.unknown_scope)
        self.places = Places()
        self.interstat = InterstatReader(source, accounts.has_active)
        self.transcripts = TranscriptStore(transcripts, ledger)
        self.lower_bounds = LowerBounds(self.transcripts)
        self.instances = Instances(self.transcripts)
        rows = RowStore(source.status.name, ledger)
        self.saver = UsageSaver(rows, self.transcripts, writer)
        self.tallier = Tallier(accounts, rows, self.transcripts, self.instances, writer, clock, report.measured)
        #: Requests that are handled in one block of it share one check of the sources.
        self.turn = Turn()
        self.freshness = Freshness(accounts, self.interstat, self.transcripts, writer, self.turn, clock)
        statuses = (self.interstat.status, self.transcripts.status)
        self._states = SourceStates(statuses, ledger, clock, report.source_change)
        self.refresher = Refresher(
            accounts,
            self.interstat,
            self.transcripts,
            self.tallier,
            self.freshness,
            self._states,
            writer,
            self.saver,
            report.refreshed,
        )
        self.follower = Follower(
            accounts, self.interstat, self.transcripts, self.freshness, settings, clock, self._refresh
        )
        #: For hooks that report what is being written.
        self.awaited_lines = AwaitedLines(self.transcripts)
        self._later = LaterRefreshes(self._refresh_if_stale)
        self.history = History(source.path, self.interstat.epoch)
        self._records = Records(accounts, self.interstat, rows, self.tallier, self.refresher)

    async def find(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> RunAccount:
        """Return the run that a request means (see `choosing`).

        Raises `NoRunError`, which is an `AmbiguousRunError` if several runs have the directory.
        A session without a known run may have received a row with a run's bead since, so it is read first.
        """
        await self._read_unsettled(run, scope, session, hints, deadline)
        account = self.chooser.named(run, scope, session, hints) or single(await self._nearest(hints, deadline))
        if account is None:
            raise no_run(hints)
        return account

    async def choose_if_any(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> Choice | None:
        """Return the run whose limit applies to a request, or None if the hints lead to none.

        This is as `find`, but a hard run of several is enforced.

        Raises `NoRunError` for a name that no run has, and `AmbiguousRunError`, because such a request must not be
        answered as if there were no run.
        """
        await self._read_unsettled(run, scope, session, hints, deadline)
        account = self.chooser.named(run, scope, session, hints)
        if account is not None:
            return Choice(account)
        tied = await self._nearest(hints, deadline)
        if len(tied) <= 1:
            return Choice(tied[0]) if tied else None
        hard = enforced(tied)
        if len(hard) > 1:
            await self.standings(hard, deadline)
        return Choice(least_left(hard), ids(tied))

    async def _nearest(self, hints: Hints, deadline: float) -> list[RunAccount]:
        """Return the active runs of the nearest directory that has any."""
        if hints.cwd is None or not self.accounts.has_active():
            return []
        return self.chooser.nearest([hints.cwd], hints) or self.chooser.nearest(
            await self.places.of(hints.cwd, deadline), hints
        )

    async def _read_unsettled(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> None:
        unsettled = self._unsettled(run, scope, session, hints)
        if unsettled:
            seen = self.freshness.unknown_as_of()
            is_read = await self.refresher.refresh([], unsettled, deadline=deadline)
            for name in unsettled:
                if self.accounts.forget_unknown(name) and is_read and self.interstat.status.is_readable:
                    self.freshness.note_unknown(name, seen)

    def _unsettled(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> list[str]:
        if not self.accounts.scopes or run or scope or (hints.run and not session):
            return []
        return self.freshness.unsettled((session,) if session else hints.sessions)

    def standing_now(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> Standing | None:
        """Return where the run that a request means stands; None if that takes waiting.

        Raises `NoRunError` for a name that no run has.
        """
        if self._unsettled(run, scope, session, hints):
            return None
        account = self.chooser.named(run, scope, session, hints)
        if account is None and hints.cwd is not None:
            here = self.chooser.nearest([hints.cwd], hints)
            account = here[0] if len(here) == 1 else None
        if account is None:
            return None
        known = self.turn.standing_of(account)
        if known is not None:
            return known
        required = self.freshness.required((account,))
        if self.freshness.is_stale(account, required):
            return None
        standing = self._standing(account, required)
        self.turn.note_standing(standing)
        return standing

    async def standing(self, account: RunAccount, deadline: float) -> Standing:
        """Return where a run stands: fresh or, at the deadline, the last known numbers and why they are stale.

        Raises `RequestTimeoutError` if not even those are in memory yet.
        """
        return (await self.standings([account], deadline))[0]

    async def standings(self, accounts: Sequence[RunAccount], deadline: float) -> list[Standing]:
        """Return where runs stand, including everything that was written before this call.

        A standing whose run could not be read by the deadline is stale, and says why. Raises `RequestTimeoutError` if
        the last known numbers of one of the runs are not in memory yet.
        """
        required = self.freshness.required(accounts)
        await self._refresh(accounts, required, deadline)
        for account in accounts:
            account.require_loaded()
        return [self._standing(account, required) for account in accounts]

    def standing_known(self, account: RunAccount, before: Standing) -> Standing:
        """Return where a run stands by the last known numbers, which are as fresh as `before`."""
        return Standing(account.run, account.balance(), before.stale_why)

    def burn(self, account: RunAccount) -> int:
        """Return how many tokens of its cost basis an active run has used per minute recently."""
        if account.run.status != "active":
            return 0
        return burn.rate(account.minutes(), self._clock())

    async def records(self, session: str, deadline: float) -> tuple[tuple[Usage, ...], str | None]:
        """Return a session's records, and why they are stale (None: fresh)."""
        return await self._records.of_session(session, deadline)

    def model_of(self, session: str) -> str | None:
        """Return the model of a session's latest response, without its sub-agents'; None if it is not known."""
        account = self.accounts.sessions.get(session)
        return None if account is None or account.latest is None else account.latest.model

    def request_refresh(self, session: str) -> None:
        """Have the run of a session brought up to date, without waiting for it."""
        account = self.accounts.run_of_session(session)
        if account is not None:
            self.refresher.request_refresh({account.run.id})

    def request_later_refresh(self, session: str) -> None:
        """Have the run of a session brought up to date shortly: a hook was called before its line was written."""
        account = self.accounts.run_of_session(session)
        if account is not None:
            self._later.request(account.run.id)

    async def _refresh_if_stale(self, run: str) -> None:
        account = self.accounts.runs[run]
        required = self.freshness.required((account,), in_background=True)
        await self._refresh((account,), required, anyio.current_time() + _LATER_SECONDS)

    @property
    def sources(self) -> tuple[SourceReport, ...]:
        """Return the state of each source."""
        followed = self.followed()
        anomalies = sum(session.anomalies for session in self.accounts.sessions.values())
        return tuple(
            SourceReport(status, self._states.since(status.name), dropped, self.freshness.is_fault(status, followed))
            for status, dropped in (
                (self.interstat.status, anomalies),
                (self.transcripts.status, self.transcripts.anomalies),
            )
        )

    def followed(self) -> list[RunAccount]:
        """Return the runs whose sources are read: the active ones, and those that ended within 48 hours."""
        return self.follower.followed()

    async def unattributed(self, deadline: float) -> tuple[int, Counts]:
        """Return how many sessions have usage that belongs to no run, and how much it is; refresh the sources first.

        This counts the followed sessions' records outside their attachments, without *earlier* usage (`attribution`),
        and the newest rows of all other sessions.
        """
        loose: dict[str, Counts] = {}
        for name, session in self.accounts.sessions.items():
            unattributed = sum(
                (counts for cell, counts in session.cells.items() if cell.run is None and cell.earlier_for is None),
                Counts(),
            )
            if session.is_followed and unattributed.records:
                loose[name] = unattributed
        for recent in await self.interstat.recent(deadline):
            known = self.accounts.sessions.get(recent.session)
            if recent.bead not in self.accounts.scopes and not (known is not None and known.is_followed):
                loose[recent.session] = loose.get(recent.session, Counts()) + recent.counts
        return len(loose), sum(loose.values(), Counts())

    async def refresh_sources(self, deadline: float) -> None:
        """Read the followed runs from their sources, or only the sources' states if there are none."""
        followed = self.followed()
        if followed:
            await self._refresh(followed, self.freshness.required(followed), deadline)
        else:
            await self.refresher.refresh([], deadline=deadline)

    async def load(self) -> None:
        """Read the ledger's runs and attachments; raises `LedgerError`."""
        for run, started_as in await self._ledger.runs.all():
            self.accounts.put_run(run, started_as)
        for run_id, completed in (await self._ledger.runs.completed_phases()).items():
            self.accounts.put_phases(run_id, tuple(completed))
        for run_id, fired in (await self._ledger.runs.passed_thresholds()).items():
            self.accounts.runs[run_id].fired = fired
        self.accounts.put_attachments(await self._ledger.runs.attachments())
        await self.transcripts.load()
        await self._states.load()

    async def serve(self) -> None:
        """Read what is requested, and follow the sources, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.refresher.serve)
            tasks.start_soon(self.history.serve)
            tasks.start_soon(self.follower.serve)
            tasks.start_soon(self._later.serve)

    async def _refresh(self, accounts: Iterable[RunAccount], required: Required, deadline: float) -> None:
        """Refresh the runs whose numbers do not show what is required, as far as the deadline allows."""
        stale = self.freshness.stale(accounts, required)
        for start in range(0, len(stale), CHUNK_RUNS):
            if not await self.refresher.refresh(stale[start : start + CHUNK_RUNS], deadline=deadline):
                return
        if stale:
            self.follower.rewatch()

    def _standing(self, account: RunAccount, required: Required) -> Standing:
        return Standing(account.run, account.balance(), self.freshness.stale_why(account, required))
