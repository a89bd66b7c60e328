"""Where runs stand: the one place that answers questions about totals, as fresh as the deadline allows."""

from collections.abc import Callable, Iterable, Sequence

import anyio
import msgspec

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Balance, Counts, Run, SourceStatus
from fluxbudgetd.policy import burn
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.totals.accounts import Accounts, RunAccount
from fluxbudgetd.totals.follower import Follower
from fluxbudgetd.totals.freshness import Freshness, Required
from fluxbudgetd.totals.history import History
from fluxbudgetd.totals.refresher import Refresher
from fluxbudgetd.totals.tallies import Tallies
from fluxbudgetd.totals.transcripts import Transcripts
from fluxbudgetd.wire.messages import Hints

# Sessions without a run that are remembered as such, so that a hook outside any run is answered at once, too.
_MOST_UNKNOWN = 256


class Standing(msgspec.Struct, frozen=True):
    """A run, where it stands, and why its numbers are not the sources' present ones (None: they are)."""

    run: Run
    balance: Balance
    stale_why: str | None


class Totals:
    """Who spent what.

    `on_refreshed` is called with each run whose sources were read, `on_source_change` when a source's state is another.
    """

    def __init__(
        self,
        source: InterstatSource,
        transcripts: TranscriptSource,
        ledger: Ledger,
        writer: LedgerWriter,
        settings: Settings,
        accounts: Accounts,
        clock: Callable[[], int],
        *,
        on_refreshed: Callable[[RunAccount], None],
        on_source_change: Callable[[], None],
    ) -> None:
        self.accounts = accounts
        self.transcripts = Transcripts(transcripts, ledger)
        self.tallies = Tallies(source.status.name, self.transcripts, ledger, writer, accounts, clock)
        self.refresher = Refresher(
            source, self.transcripts, ledger, writer, accounts, self.tallies, clock, on_refreshed, on_source_change
        )
        self.freshness = Freshness(accounts, self.refresher, self.transcripts, writer, clock)
        self.follower = Follower(
            source.path,
            accounts,
            self.freshness,
            self.refresher,
            self.transcripts,
            settings,
            clock,
            self._refresh,
        )
        self.history = History(source.path)
        self._ledger = ledger
        self._clock = clock
        self._unknown: dict[str, tuple[int, int]] = {}

    async def find(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> RunAccount:
        """Return the run that is meant (see `Accounts.find`); raises `NoRunError`.

        A session that no run is known to have may have got a row with a run's bead meanwhile, so it is read first.
        """
        await self._read_unknown(run, scope, session, hints, deadline)
        return self.accounts.find(run, scope, session, hints)

    async def find_if_any(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> RunAccount | None:
        """Return the run that is meant, or None when none is (see `Accounts.find_if_any`); raises `NoRunError`."""
        await self._read_unknown(run, scope, session, hints, deadline)
        return self.accounts.find_if_any(run, scope, session, hints)

    async def _read_unknown(
        self, run: str | None, scope: str | None, session: str | None, hints: Hints, deadline: float
    ) -> None:
        unknown = self._unknown_sessions(run, scope, session, hints)
        if unknown:
            seen = self._unknown_mark()
            in_time = await self.refresher.refresh([], unknown, deadline=deadline)
            for name in unknown:
                if self.accounts.forget_stranger(name) and in_time and self.refresher.status.readable:
                    self._note_unknown(name, seen)

    def _unknown_sessions(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> list[str]:
        if not self.accounts.scopes or run or scope or (hints.run and not session):
            return []
        mark = self._unknown_mark()
        sessions = (session,) if session else hints.sessions
        return [
            name for name in sessions if not self.accounts.is_settled(name, mark[0]) and self._unknown.get(name) != mark
        ]

    def _unknown_mark(self) -> tuple[int, int]:
        """Return what has to be the same for a session that had no run to have none still."""
        return self.refresher.epoch(), self.accounts.version

    def _note_unknown(self, name: str, mark: tuple[int, int]) -> None:
        while len(self._unknown) >= _MOST_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[name] = mark

    def standing_now(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> Standing | None:
        """Return where the run that is meant stands if that is known without waiting; raises `NoRunError`."""
        if self._unknown_sessions(run, scope, session, hints):
            return None
        account = self.accounts.find(run, scope, session, hints)
        required = self.freshness.required((account,))
        return None if self.freshness.is_behind(account, required) else self._standing(account, required)

    async def standing(self, account: RunAccount, deadline: float) -> Standing:
        """Return where a run stands, fresh, or at the deadline the last known numbers with the reason.

        Raises `RequestTimeoutError` when not even those are there.
        """
        standing = (await self.standings([account], deadline))[0]
        self.accounts.require_loaded(account)
        return standing

    async def standings(self, accounts: Sequence[RunAccount], deadline: float) -> list[Standing]:
        """Return where runs stand, showing whatever was committed before this call, as far as the deadline allows."""
        required = self.freshness.required(accounts)
        await self._refresh(accounts, required, deadline)
        return [self._standing(account, required) for account in accounts]

    def standing_known(self, account: RunAccount, before: Standing) -> Standing:
        """Return where a run stands by the last known numbers, which are as fresh as another standing's."""
        return Standing(account.run, self.accounts.balance(account), before.stale_why)

    def burn(self, account: RunAccount) -> int:
        """Return how many tokens of its cost basis an active run has used per minute of late."""
        if account.run.status != "active":
            return 0
        return burn.rate(self.accounts.minutes(account), self._clock())

    def request_refresh(self, session: str) -> None:
        """Have the run of a session brought up to date, without waiting for it."""
        account = self.accounts.run_of_session(session)
        if account is not None:
            self.refresher.wish({account.run.id})

    @property
    def sources(self) -> tuple[tuple[SourceStatus, int, int], ...]:
        """Return each source's state, when that began, and how many of its counts were dropped."""
        since = self.refresher.since
        interstat, transcripts = self.refresher.status, self.transcripts.status
        anomalies = sum(session.anomalies for session in self.accounts.sessions.values())
        return (
            (interstat, since[interstat.name], anomalies),
            (transcripts, since[transcripts.name], self.transcripts.anomalies),
        )

    def followed(self) -> list[RunAccount]:
        """Return the runs whose sources are read: the active ones, and those that ended within 48 hours."""
        return self.follower.followed()

    async def unattributed(self, deadline: float) -> tuple[int, Counts]:
        """Return how many sessions have usage that belongs to no run, and how much it is; refresh the sources first.

        Counted are the followed sessions' records outside their attachments, and, of sessions that no run knows, the
        source's newest rows.
        """
        loose: dict[str, Counts] = {}
        for name, session in self.accounts.sessions.items():
            outside = sum((counts for cell, counts in session.cells.items() if cell.run is None), Counts())
            if session.followed and outside.records:
                loose[name] = outside
        for one in await self.refresher.recent(deadline):
            known = self.accounts.sessions.get(one.session)
            if one.bead not in self.accounts.scopes and not (known is not None and known.followed):
                loose[one.session] = loose.get(one.session, Counts()) + one.counts
        return len(loose), sum(loose.values(), Counts())

    async def refresh_sources(self, deadline: float) -> None:
        """Read the followed runs from their sources, or at least the sources' state when no run needs them."""
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
        await self.refresher.prepare()

    async def serve(self) -> None:
        """Read what is asked for, and follow the sources, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.refresher.serve)
            tasks.start_soon(self.history.serve)
            tasks.start_soon(self.follower.serve)

    async def _refresh(self, accounts: Iterable[RunAccount], required: Required, deadline: float) -> None:
        if await self.freshness.refresh(accounts, required, deadline):
            self.follower.rewatch()

    def _standing(self, account: RunAccount, required: Required) -> Standing:
        return Standing(account.run, self.accounts.balance(account), self.freshness.stale_why(account, required))
