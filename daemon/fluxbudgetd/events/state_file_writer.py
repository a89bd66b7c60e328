"""Where the active runs stand, in files for shells and sandboxes that cannot open a socket."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import anyio
import structlog

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.model import to_text
from fluxbudgetd.notify.state_files import State, StateFiles
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import ChannelState

log = structlog.get_logger()

# Several changes within this time are written once.
_COALESCE_SECONDS = 0.05
_PAUSE_SECONDS = 5.0


class StateFileWriter:
    """Keeps the state files up to date. `is_stale` is True for a run whose numbers are known to be stale."""

    name = "state files"

    def __init__(
        self, accounts: Accounts, directory: str, clock: Callable[[], int], is_stale: Callable[[RunAccount], bool]
    ) -> None:
        self.detail = self.hint = ""
        self.state: ChannelState = "ok"
        self.since = clock()
        self._accounts = accounts
        self._files = StateFiles(directory)
        self._clock = clock
        self._is_stale = is_stale
        self._is_open = False
        self._changed: set[str] = set()
        self._has_changes = anyio.Event()
        # The sessions that link to each run's file, for the runs that have one.
        self._written: dict[str, frozenset[str]] = {}

    def request(self, run: str) -> None:
        """Have a run's file and links written soon; returns at once."""
        self._changed.add(run)
        self._has_changes.set()

    async def open(self) -> None:
        """Remove what a killed daemon has left, and take the lock that says that a daemon is running."""
        self._is_open = await self._try(self._files.open)

    async def serve(self) -> None:
        """Write what changes until cancelled; then remove all files."""
        try:
            while not self._is_open:
                await anyio.sleep(_PAUSE_SECONDS)
                await self.open()
            while True:
                await self._has_changes.wait()
                await anyio.sleep(_COALESCE_SECONDS)
                self._has_changes = anyio.Event()
                changed, self._changed = self._changed, set()
                if not await self._try(partial(self._write, changed)):
                    self._changed |= changed
                    self._has_changes.set()
                    await anyio.sleep(_PAUSE_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await self._try(self._files.close)

    async def _write(self, runs: Iterable[str]) -> None:
        changed = [self._accounts.runs[run] for run in runs]
        shown = [one for one in changed if one.run.status == "active" and one.is_loaded]
        gone = [one for one in changed if one not in shown and one.run.id in self._written]
        # Removals first: a session or a scope may continue in another run.
        scopes: dict[str, str | None] = {one.run.scope: None for one in gone if one.run.scope is not None}
        scopes |= {one.run.scope: one.run.id for one in shown if one.run.scope is not None}
        sessions = {one.run.id: self._sessions_of(one) for one in shown}
        links: dict[str, str | None] = {}
        for one in (*gone, *shown):
            left = self._written.get(one.run.id, frozenset()) - sessions.get(one.run.id, frozenset())
            links |= {session: self._active_run_of(session) for session in left}
        for run, names in sessions.items():
            links |= dict.fromkeys(names, run)
        # A write that fails may be done in part, so until it succeeds both the old and the new links count as written.
        for run, names in sessions.items():
            self._written[run] = self._written.get(run, frozenset()) | names
        await self._files.put([self._content(one) for one in shown], links, scopes)
        await self._files.remove([one.run.id for one in gone])
        self._written |= sessions
        for one in gone:
            del self._written[one.run.id]

    def _sessions_of(self, account: RunAccount) -> frozenset[str]:
        return frozenset(one for one in account.sessions if self._accounts.run_of_session(one) is account)

    def _active_run_of(self, session: str) -> str | None:
        account = self._accounts.run_of_session(session)
        return account.run.id if account is not None and account.run.status == "active" else None

    def _content(self, account: RunAccount) -> State:
        balance = account.balance()
        return State(
            run=account.run.id,
            phase=account.run.phase,
            state=balance.state,
            budget=balance.budget,
            spent=balance.spent,
            remaining=balance.remaining,
            pct=balance.pct,
            reserved=balance.reserved,
            stale=self._is_stale(account),
            as_of=to_text(self._clock()),
        )

    async def _try(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Run an action on the files. True if it succeeded."""
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
            log.error("state files", detail=detail)
        self.state, self.detail, self.hint = state, detail, hint
