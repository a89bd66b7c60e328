"""Files that say where the active runs stand, and which are stopped, for shells and sandboxes without a socket."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import anyio
import structlog

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.model import to_text
from fluxbudgetd.notify.state_files import StateFiles
from fluxbudgetd.notify.state_text import State
from fluxbudgetd.policy import limits, statusline
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import ChannelState

log = structlog.get_logger()

# Changes within this time are written together.
_COALESCE_SECONDS = 0.05
_PAUSE_SECONDS = 5.0


class StateFileWriter:
    """Keeps the state files and the markers of stopped runs up to date, in directories of these names.

    `is_stale` returns True for a run whose numbers are known to be stale.
    """

    name = "state files"

    def __init__(
        self,
        accounts: Accounts,
        directory: str,
        markers: str,
        clock: Callable[[], int],
        is_stale: Callable[[RunAccount], bool],
    ) -> None:
        self.detail = self.hint = ""
        self.state: ChannelState = "ok"
        self.since = clock()
        self._accounts = accounts
        self._files = StateFiles(directory, markers)
        self._clock = clock
        self._is_stale = is_stale
        self._is_open = False
        self._changed: set[str] = set()
        self._has_changes = anyio.Event()
        # For each run that has a file, the sessions that link to it.
        self._written: dict[str, frozenset[str]] = {}

    def request(self, run: str) -> None:
        """Have a run's file and links written soon; returns at once."""
        self._changed.add(run)
        self._has_changes.set()

    def check(self) -> None:
        """Have all files written again soon if their directory was removed; returns at once."""
        self._has_changes.set()

    async def open(self) -> None:
        """Remove what a killed daemon has left, and lock the file that tells readers that a daemon is running.

        Files of runs that were stopped stay until these runs are loaded.
        """
        hard = [account.run.id for account in self._accounts.active() if account.run.enforcement == "hard"]
        for run in hard:
            self._written.setdefault(run, frozenset())
        self._is_open = await self._try(partial(self._files.open, hard))

    async def serve(self) -> None:
        """Write changes until cancelled; then write the last ones, and remove all files but those of stopped runs."""
        try:
            while not self._is_open:
                await anyio.sleep(_PAUSE_SECONDS)
                await self.open()
            while True:
                await self._has_changes.wait()
                await anyio.sleep(_COALESCE_SECONDS)
                self._has_changes = anyio.Event()
                if not await self._write_changed():
                    self._has_changes.set()
                    await anyio.sleep(_PAUSE_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                if self._is_open:  # the markers that stay must be those of the runs that are stopped now
                    await self._write_changed()
                await self._try(self._files.close)

    async def _write_changed(self) -> bool:
        """Write the runs that have changed. Return True if it succeeded; otherwise they still count as changed."""
        changed, self._changed = self._changed, set()
        is_written = False
        try:
            is_written = await self._try(partial(self._write, changed))
        finally:
            if not is_written:
                self._changed |= changed
        return is_written

    async def _write(self, runs: Iterable[str]) -> None:
        changed = [self._accounts.runs[run] for run in runs]
        shown = [account for account in changed if account.run.status == "active" and account.is_loaded]
        gone = [account for account in changed if account.run.status != "active" and account.run.id in self._written]
        # Removals first: a session or a scope may continue in another run.
        scopes = {
            account.run.scope: self._active_run_of_scope(account.run.scope)
            for account in (*gone, *shown)
            if account.run.scope is not None
        }
        sessions = {account.run.id: self._sessions_of(account) for account in shown}
        links: dict[str, str | None] = {}
        for run in [account.run.id for account in (*gone, *shown)]:
            left = self._written.get(run, frozenset()) - sessions.get(run, frozenset())
            links |= {session: self._active_run_of(session) for session in left}
        for run, names in sessions.items():
            links |= dict.fromkeys(names, run)
        # A failed write may be done in part, so both the old and the new links count as written until it succeeds.
        for run, names in sessions.items():
            self._written[run] = self._written.get(run, frozenset()) | names
        # An allowance of time does not remove the marker: no daemon may be there when it ends. Clients know that time.
        marked = {
            account.run.id
            for account in shown
            if account.run.enforcement == "hard" and limits.is_spent(account.run, account.balance())
        }
        await self._files.put([self._content(account) for account in shown], links, scopes, marked)
        await self._files.remove([account.run.id for account in gone])
        self._written |= sessions
        for account in gone:
            del self._written[account.run.id]

    def _sessions_of(self, account: RunAccount) -> frozenset[str]:
        return frozenset(name for name in account.sessions if self._accounts.run_of_session(name) is account)

    def _active_run_of(self, session: str) -> str | None:
        account = self._accounts.run_of_session(session)
        return account.run.id if account is not None and account.run.status == "active" else None

    def _active_run_of_scope(self, scope: str) -> str | None:
        account = self._accounts.run_of_scope(scope)
        return account.run.id if account is not None and account.run.status == "active" else None

    def _content(self, account: RunAccount) -> State:
        balance, is_stale = account.balance(), self._is_stale(account)
        # Without the rate, which may be out of date when the file is read.
        line = statusline.line(run=account.run, balance=balance, rate=0, stale=is_stale, width=None, colour=False)
        return State(
            run=account.run.id,
            phase=account.run.phase,
            state=balance.state,
            budget=balance.budget,
            spent=balance.spent,
            remaining=balance.remaining,
            pct=balance.pct,
            reserved=balance.reserved,
            stale=is_stale,
            cost_basis=account.run.cost_basis,
            enforcement=account.run.enforcement,
            allowed_to=account.run.allowed_to,
            allowed_until="" if account.run.allowed_until is None else to_text(account.run.allowed_until),
            line=line,
            as_of=to_text(self._clock()),
        )

    async def _try(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Run an action on the files. Return True if it succeeded."""
        try:
            await action()
        except ChannelError as exc:
            self._report("failing", exc.message, exc.hint)
            return False
        self._report("ok", "", "")
        return True

    def _report(self, state: ChannelState, detail: str, hint: str) -> None:
        if state != self.state:
            self.since = self._clock()
        if detail != self.detail and detail:
            log.error("state files not written", detail=detail)
        self.state, self.detail, self.hint = state, detail, hint
