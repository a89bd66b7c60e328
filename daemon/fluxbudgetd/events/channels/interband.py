"""Interband's side-band: a file per session, which an existing status line reads."""

from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from fluxbudgetd.config.schema import ChannelConfig
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ChannelError, RequestTimeoutError
from fluxbudgetd.events.channels.threshold_channel import ThresholdChannel
from fluxbudgetd.model import Balance, BudgetThreshold, Event, Run
from fluxbudgetd.notify.interband import Alert, Interband
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

#: Events that may change a run's passed thresholds or its sessions.
_RUN_EVENTS = frozenset(("run.started", "run.changed", "run.finished", "phase.advanced"))


class _Alerts(NamedTuple):
    """What the files say about a run: the sessions that have a file, and the passed thresholds."""

    sessions: frozenset[str]
    passed: frozenset[BudgetThreshold]


_NO_ALERTS = _Alerts(frozenset(), frozenset())


class InterbandChannel(ThresholdChannel):
    """Keeps the files correct at all times, because their reader ignores how old they are.

    Events make sure that nothing is missed across a restart. In addition, each refresh of a run is compared with its
    files: a row may have added a session, or a number may have been corrected.
    """

    name = "interband"
    latest_only = True

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        default_root: str,
        clock: Callable[[], int],
        balance: Callable[[RunAccount], Awaitable[Balance]],
    ) -> None:
        super().__init__(settings, accounts)
        self._default_root = default_root
        self._clock = clock
        self._balance = balance
        self._files: tuple[str, Interband] | None = None
        self._written: dict[str, _Alerts] = {}
        # The runs whose files could not be written, each with the sessions that have left the run.
        self._failed: dict[str, frozenset[str]] = {}

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.interband

    @property
    def _root(self) -> str:
        return self._channels.interband.root or self._default_root

    def wants(self, event: Event) -> bool:
        """Return True if an event may change what the files say."""
        return self.enabled and (super().wants(event) or (event.kind in _RUN_EVENTS and event.run is not None))

    @property
    def is_incomplete(self) -> bool:
        """Return True if some files could not be written; those of other runs do not wait for them."""
        return bool(self._failed)

    def is_outdated(self, account: RunAccount) -> bool:
        """Return True if a run's files do not match its last known numbers."""
        if not self.enabled or account.run.status != "active" or not account.is_loaded:
            return False
        if account.run.id in self._failed:
            return False  # retried after a pause
        written = self._written.get(account.run.id)
        # After a start, the files' content is unknown, but a run that never passed a threshold has none.
        return bool(account.fired) if written is None else self._wanted(account) != written

    async def deliver(self, event: Event) -> None:
        """Write or remove the files of the run's sessions; failures are left for `reconcile`."""
        detached = event.data.get("detached")
        left = {detached} if isinstance(detached, str) else set()
        run = event.run or ""
        try:
            await self._write(self._accounts.runs[run], left)
        except ChannelError:
            self._failed[run] = self._failed.get(run, frozenset()) | left

    async def reconcile(self) -> None:
        """Bring all files up to date; remove them if the channel was disabled. Raises `ChannelError`."""
        failure = None
        await self._leave_old_root()
        active = {account.run.id for account in self._accounts.active()}
        for run in self._written.keys() | self._failed.keys() | active:
            account = self._accounts.runs[run]
            must_be_removed = not self.enabled and self._written.get(run, _NO_ALERTS) != _NO_ALERTS
            if run in self._failed or must_be_removed or self.is_outdated(account):
                try:
                    await self._write(account, self._failed.get(run, frozenset()))
                except ChannelError as exc:
                    self._failed.setdefault(run, frozenset())
                    failure = exc
        if failure is not None:
            raise failure

    async def _leave_old_root(self) -> None:
        """Remove the files below the previously configured root."""
        if self._files is None or self._files[0] == self._root:
            return
        sessions = {session for alerts in self._written.values() for session in alerts.sessions}
        await self._files[1].put((), sorted(sessions), self._clock())
        self._files = None
        self._written.clear()

    async def _write(self, account: RunAccount, left: Collection[str] = ()) -> None:
        run = account.run
        if self.enabled and run.status == "active" and run.token_budget is not None:
            try:
                await self._balance(account)
            except RequestTimeoutError as exc:
                raise ChannelError(exc.message, exc.hint) from exc
        await self._leave_old_root()
        wanted, balance = self._wanted(account), account.balance()
        alerts = [Alert(session, balance.pct or 0.0, balance.spent) for session in sorted(wanted.sessions)]
        current = {session for written in self._written.values() for session in written.sessions}
        await self._interband().put(alerts, self._to_remove(account, wanted, left), self._clock(), current)
        self._failed.pop(run.id, None)
        self._written[run.id] = wanted
        if run.status != "active":
            del self._written[run.id]

    def _to_remove(self, account: RunAccount, wanted: _Alerts, left: Collection[str]) -> list[str]:
        """Return the sessions whose files must be removed: they were the run's, and no other run has them now."""
        attached = {attachment.session for attachment in account.attachments()}
        sessions = attached.union(left, self._sessions_written(account.run))
        return [name for name in sessions - wanted.sessions if self._accounts.run_of_session(name) in (None, account)]

    def _sessions_written(self, run: Run) -> frozenset[str]:
        return self._written.get(run.id, _NO_ALERTS).sessions

    def _wanted(self, account: RunAccount) -> _Alerts:
        run = account.run
        if not self.enabled or run.status != "active" or run.token_budget is None:
            return _NO_ALERTS
        config = self._settings.config
        percentages = config.warnings.thresholds if self._config.thresholds == "all" else self._config.thresholds
        wanted = {run.warn_pct if pct == "warn_pct" else pct for pct in percentages}
        candidates = [each for each in thresholds.thresholds_of(percentages, run.warn_pct) if each.pct in wanted]
        passed = thresholds.passed(candidates, account.balance())
        if not passed:
            return _NO_ALERTS
        sessions = (name for name in account.sessions if self._accounts.run_of_session(name) is account)
        return _Alerts(frozenset(sessions), passed)

    def _interband(self) -> Interband:
        if self._files is None:
            self._files = self._root, Interband(self._root)
        return self._files[1]
