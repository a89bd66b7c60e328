"""Whether a run's numbers show everything that was written before a question was asked, and if not, why not."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.model import SourceStatus
from fluxbudgetd.policy import runs
from fluxbudgetd.totals.accounts import Accounts, RunAccount
from fluxbudgetd.totals.refresher import CHUNK_RUNS, Refresher
from fluxbudgetd.totals.transcripts import Transcripts


class Required(NamedTuple):
    """What runs' numbers must show to be fresh: interstat's epoch and, by run, the transcripts' clock."""

    epoch: int
    live: dict[str, int]


#: What is required of numbers that were not asked for: nothing beyond what is known already.
NOTHING = Required(-1, {})


class Freshness:
    """Compares what a run's numbers show with what a question requires, and has them refreshed."""

    def __init__(
        self,
        accounts: Accounts,
        refresher: Refresher,
        transcripts: Transcripts,
        writer: LedgerWriter,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._refresher = refresher
        self._transcripts = transcripts
        self._writer = writer
        self._clock = clock

    def required(self, accounts: Iterable[RunAccount], *, asked: bool = True) -> Required:
        """Return what the numbers of these runs must show to be fresh as of this call."""
        now = self._clock()
        live = {
            account.run.id: self._refresher.live_needed(account, asked=asked)
            for account in accounts
            if runs.is_followed(account.run, now)
        }
        return Required(self._refresher.epoch(), live)

    async def refresh(self, accounts: Iterable[RunAccount], required: Required, deadline: float) -> bool:
        """Bring the runs that are behind up to date, as far as the deadline allows. True if any was refreshed."""
        behind = [account.run.id for account in accounts if self.is_behind(account, required)]
        for start in range(0, len(behind), CHUNK_RUNS):
            if not await self._refresher.refresh(behind[start : start + CHUNK_RUNS], deadline=deadline):
                return False
        return bool(behind)

    def is_behind(self, account: RunAccount, required: Required) -> bool:
        """Return True if a run's numbers do not show what is required."""
        if runs.is_followed(account.run, self._clock()):
            is_old = account.epoch < required.epoch or account.live < required.live.get(account.run.id, 0)
            return is_old or not self._accounts.is_loaded(account) or not self._accounts.is_summed(account)
        return not account.touched

    def stale_why(self, account: RunAccount, required: Required) -> str | None:
        """Return why a run's numbers do not show what is required; None if they do."""
        if not runs.is_followed(account.run, self._clock()):
            return None
        if not self._accounts.is_loaded(account):
            return f"{self._refresher.status.name}: not read yet since fluxbudgetd started"
        if not self._accounts.is_summed(account):
            return f"ledger: {self._writer.fault or 'it could not be read a moment ago'}"
        return self._transcripts_stale_why(account, required) or self._interstat_stale_why(account, required)

    def is_known_stale(self, account: RunAccount) -> bool:
        """Return True if a run's last known numbers are known to be stale, without looking at the sources."""
        return self.stale_why(account, NOTHING) is not None

    def _transcripts_stale_why(self, account: RunAccount, required: Required) -> str | None:
        if account.live < required.live.get(account.run.id, 0):
            return "transcripts: slow: the present numbers were not there in time"
        found = (self._transcripts.statuses.get(name) for name in account.sessions)
        bad = next((one for one in found if one is not None and one.state == "unreadable"), None)
        return None if bad is None else f"{bad.name}: {bad.state}: {bad.detail}"

    def _interstat_stale_why(self, account: RunAccount, required: Required) -> str | None:
        status = account.status
        if self._counts_transcripts_only(account, status):
            return None
        if status is not None and not status.readable:
            return f"{status.name}: {status.state}: {status.detail}"
        if account.epoch < required.epoch:
            return f"{self._refresher.status.name}: slow: the present numbers were not there in time"
        return None

    def _counts_transcripts_only(self, account: RunAccount, status: SourceStatus | None) -> bool:
        """Return True if a run counts by transcripts alone, so that interstat cannot make its numbers stale."""
        if not account.sessions or not all(self._accounts.session(name).live for name in account.sessions):
            return False
        return account.run.scope is None or (status is not None and status.state == "absent")
