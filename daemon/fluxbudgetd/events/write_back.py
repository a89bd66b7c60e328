"""Write what adopted runs have used into intercore's databases.

The numbers are what was measured in the run's own sessions, without provisional estimates and without other programs'
dispatches, which intercore has already. Only `sync` waits for a write.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ChannelError, LedgerError
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.own_rows import PACE, OwnRows, WriteState
from fluxbudgetd.model import Counts, EventKind, IntercoreReading
from fluxbudgetd.notify.intercore_faults import NotWrittenError
from fluxbudgetd.notify.intercore_rows import OwnRow, PhaseTokens
from fluxbudgetd.policy.runs import is_followed
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts

#: After these events, a run's row is written at once.
_AT_ONCE: tuple[EventKind, ...] = (
    *("run.started", "run.changed", "run.finished", "phase.advanced"),
    *("budget.threshold", "budget.warning", "budget.exceeded"),
)


class WriteBack:
    """Keeps our rows in intercore's databases up to date. `followed` returns the runs whose sources are read.

    `pace` is the time between two writes of a run that keeps changing, in seconds.
    """

    def __init__(
        self,
        accounts: Accounts,
        events: EventLog,
        settings: Settings,
        clock: Callable[[], int],
        followed: Callable[[], Iterable[RunAccount]],
        *,
        pace: float = PACE,
    ) -> None:
        self._accounts = accounts
        self._events = events
        self._settings = settings
        self._clock = clock
        self._followed = followed
        self._pace = pace
        self._databases: dict[str, OwnRows] = {}
        self._tasks: TaskGroup | None = None

    def request(self, run: str, *, at_once: bool = False) -> None:
        """Request that an adopted run's row is written soon if it has changed; returns without waiting.

        Other runs have no row.
        """
        account = self._accounts.runs.get(run)
        if account is not None and (path := _database_of(account)) and is_followed(account.run, self._clock()):
            self._rows_in(path).request(run, at_once=at_once)

    def request_all(self) -> None:
        """Request that the rows of all followed runs are compared with their databases."""
        for account in self._followed():
            if path := _database_of(account):
                self._rows_in(path).forget(account.run.id)
                self.request(account.run.id, at_once=True)

    def note_read(self, path: str, reading: IntercoreReading) -> None:
        """Request that rows are written again which a reading shows to be missing or different."""
        rows = self._databases.get(path)
        if rows is None or not reading.status.is_readable:
            return
        for account in self._followed():
            adopted = account.run.adopted
            if adopted is None or adopted.database != path:
                continue
            if adopted.run_id in reading.own:
                rows.note_read(account.run.id, reading.own[adopted.run_id])
            if self._must_rearm(account):
                rows.request(account.run.id, at_once=True)

    def state_of(self, path: str) -> WriteState:
        """Return the result of the last write to a database."""
        if not self._settings.config.intercore.write_back:
            return WriteState("off", detail="[intercore] write_back is false")
        rows = self._databases.get(path)
        return WriteState("waiting") if rows is None else rows.state

    def faults(self) -> dict[str, ChannelError]:
        """Return, by path, why the last writes to databases of followed runs failed."""
        if not self._settings.config.intercore.write_back:
            return {}
        paths = {path for account in self._followed() if (path := _database_of(account))}
        found = {path: rows.fault for path, rows in sorted(self._databases.items()) if path in paths}
        return {path: fault for path, fault in found.items() if fault is not None}

    async def sync(self, accounts: Sequence[RunAccount], deadline: float) -> list[ChannelError]:
        """Write the rows of adopted runs now, and wait until the deadline. Return what could not be written."""
        if not self._settings.config.intercore.write_back:
            return []
        runs: dict[str, list[str]] = {}
        for account in accounts:
            if path := _database_of(account):
                runs.setdefault(path, []).append(account.run.id)
        faults: list[ChannelError] = []

        async def sync_one(path: str) -> None:
            rows = self._rows_in(path)
            fault = await rows.sync(runs[path], deadline)
            if fault is not None and not self._is_deleted(fault, runs[path]):
                faults.append(fault)
            if fault is None:
                faults.extend(_not_there(path, run) for run in runs[path] if run in rows.missing)

        async with anyio.create_task_group() as tasks:
            for path in runs:
                tasks.start_soon(sync_one, path)
        return faults

    def _is_deleted(self, fault: ChannelError, runs: Iterable[str]) -> bool:
        """Return True if a database does not exist, and all of its runs have ended: the project was deleted."""
        is_absent = isinstance(fault, NotWrittenError) and fault.state == "absent"
        return is_absent and all(self._accounts.runs[run].run.ended_at is not None for run in runs)

    async def serve(self) -> None:
        """Write rows until cancelled; then write the last changes."""
        try:
            async with anyio.create_task_group() as self._tasks:
                for rows in self._databases.values():
                    self._tasks.start_soon(rows.serve)
                # The last daemon may not have written everything, so all rows are compared with the databases.
                self.request_all()
                await self._follow_events()
        finally:
            self._tasks = None

    async def _follow_events(self) -> None:
        position = self._events.last
        while True:
            await self._events.wait(position)
            last = self._events.last
            with suppress(LedgerError):  # the rows are written a little later anyway
                while position < last and (events := await self._events.after(position)):
                    for event in events:
                        if event.run is not None and event.kind in _AT_ONCE:
                            self.request(event.run, at_once=True)
                    position = events[-1].seq
            position = max(position, last)

    def _rows_in(self, path: str) -> OwnRows:
        rows = self._databases.get(path)
        if rows is None:
            rows = OwnRows(path, lambda run: self._row_of(path, run), self._clock, pace=self._pace)
            self._databases[path] = rows
            if self._tasks is not None:
                self._tasks.start_soon(rows.serve)
        return rows

    def _row_of(self, path: str, run: str) -> OwnRow | None:
        account = self._accounts.runs.get(run)
        if account is None or not account.is_loaded or not self._settings.config.intercore.write_back:
            return None
        adopted = account.run.adopted
        if adopted is None or adopted.database != path:
            return None
        return _row(adopted.run_id, account, rearm=self._must_rearm(account))

    def _must_rearm(self, account: RunAccount) -> bool:
        config = self._settings.config.intercore
        return config.write_back and config.rearm and account.is_loaded and account.balance().state == "exceeded"


def _database_of(account: RunAccount) -> str:
    """Return the path of intercore's database that has the run; empty if there is none."""
    return account.run.adopted.database if account.run.adopted is not None else ""


def _row(name: str, account: RunAccount, *, rearm: bool) -> OwnRow:
    """Return what the row of a run, `name` in intercore, must say."""
    whole, by_phase = Counts(), dict[str, Counts]()
    for _, cell, counts in account.own_cells():
        whole += counts
        by_phase[cell.phase] = by_phase.get(cell.phase, Counts()) + counts
    capped = whole.capped()
    return OwnRow(
        run=name,
        project_dir=account.run.project_dir,
        input=capped.input,
        output=capped.output,
        cache=capped.cache_read,
        phases=tuple(
            PhaseTokens(phase, counts.capped().input, counts.capped().output)
            for phase, counts in sorted(by_phase.items())
        ),
        rearm=rearm,
    )


def _not_there(path: str, run: str) -> ChannelError:
    return ChannelError(f"{path} no longer has run {run}", "the run still counts, but its usage is not written back")
