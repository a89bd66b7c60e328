"""An adopted run in intercore's database, and the part of the daemon that writes its row."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.events.write_back import WriteBack
from fluxbudgetd.ledger import open_ledger
from fluxbudgetd.model import Adoption, Cell, Counts, Event, EventKind, IntercoreReading, SourceStatus
from fluxbudgetd.totals.account import Sums
from fluxbudgetd.totals.accounts import Accounts
from harness.configuration import claude_directory
from harness.intercore import IcProject
from harness.service import until, within
from harness.values import NOW, a_run

#: The run's id in intercore, and ours: a run that was started by hand keeps its own.
THEIRS, OURS = "run00001", "r1"
#: A pace at which nothing is written during a test, unless an event or a sync has it written.
NEVER = 3600.0


class Sprint:
    """An adopted run in intercore's database, and the part that writes its row."""

    def __init__(self, root: Path) -> None:
        self.project = IcProject(root / "project")
        self.project.run_create(run=THEIRS, budget=100)
        self.root = root
        self.accounts = self.new_accounts()
        self.newest = NewestEvents()
        self.settings = Settings(str(root / "config.toml"), required=False, claude_dirs=claude_directory(root))
        self.write_back: WriteBack | None = None

    @property
    def path(self) -> str:
        return str(self.project.database)

    def new_accounts(self) -> Accounts:
        return Accounts(self._on_change)

    def _on_change(self, run: str) -> None:
        if self.write_back is not None:
            self.write_back.request(run)

    def adopt(self, run: str = OURS, theirs: str = THEIRS, project: IcProject | None = None) -> None:
        database = str((project or self.project).database)
        adopted = Adoption(database=database, run_id=theirs)
        account = self.accounts.put_run(a_run(id=run, token_budget=100, adopted=adopted))
        account.has_sessions = True

    def spend(self, tokens: int, run: str = OURS, phase: str = "executing") -> None:
        """Set what the run has measured, as the tally does."""
        cell = Cell(run, phase, "main", "m")
        self.accounts.put_cells(f"s-{run}", {cell: Counts(1, 0, tokens, 1, 2, 40)}, NOW)
        self.accounts.session(f"s-{run}").sums = Sums.WHOLE

    def report(self, kind: EventKind, run: str = OURS) -> None:
        self.newest.add([Event(seq=self.newest.last + 1, at=NOW, run=run, kind=kind, data={})])

    def read(self, own: Counts | None) -> None:
        """Pass on a reading of the database in which the run's row says this."""
        assert self.write_back is not None
        status = SourceStatus(name="intercore", path=self.path, state="ok")
        self.write_back.note_read(self.path, IntercoreReading(status=status, own={THEIRS: own}))

    def row(self, theirs: str = THEIRS, project: IcProject | None = None) -> int | None:
        """Return the input tokens of our row, None without a row."""
        query = "SELECT input_tokens FROM dispatches WHERE id = ?"
        rows = (project or self.project).query(query, f"fluxbudget-{theirs}")
        return int(rows[0]["input_tokens"]) if rows else None

    async def until_row(self, tokens: int | None, theirs: str = THEIRS) -> None:
        await until(lambda: self.row(theirs) == tokens)

    async def configure(self, text: str) -> None:
        (self.root / "config.toml").write_text(text)
        await self.settings.refresh(within(60))

    def run(self, body: Callable[[WriteBack], Awaitable[None]], pace: float = NEVER) -> None:
        """Serve while a test's body runs."""

        async def around() -> None:
            async with self._serving(pace) as write_back:
                await body(write_back)

        anyio.run(around)

    @asynccontextmanager
    async def _serving(self, pace: float) -> AsyncIterator[WriteBack]:
        self.newest = NewestEvents()
        ledger, _ = await open_ledger(str(self.root))
        try:
            events = EventLog(self.newest, ledger.events)
            self.write_back = WriteBack(
                self.accounts, events, self.settings, lambda: NOW, lambda: self.accounts.followed(NOW), pace=pace
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.write_back.serve)
                yield self.write_back
                tasks.cancel_scope.cancel()
        finally:
            self.write_back = None
            with anyio.CancelScope(shield=True):
                await ledger.close()
