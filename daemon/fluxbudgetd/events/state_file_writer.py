"""Where the active runs stand, in files: for shells and sandboxes that cannot open a socket."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import anyio
import structlog

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.model import to_text
from fluxbudgetd.notify.state_files import State, StateFiles
from fluxbudgetd.totals.accounts import Accounts, RunAccount
from fluxbudgetd.wire.messages import ChannelState

log = structlog.get_logger()

# What changes several times in so short a while is written once.
_COALESCE_SECONDS = 0.05
_PAUSE_SECONDS = 5.0


class StateFileWriter:
    """Follows the accounts. `is_stale` tells whether a run's numbers are not its sources' present ones."""

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
        self._wanted = anyio.Event()
        # The runs that have a file, and the sessions that lead to each.
        self._shown: dict[str, frozenset[str]] = {}

    def note(self, run: str) -> None:
        """Note that something about a run has changed."""
        self._changed.add(run)
        self._wanted.set()

    async def open(self) -> None:
        """Take away what a killed daemon has left, and say that a daemon lives."""
        self._is_open = await self._try(self._files.open)

    async def serve(self) -> None:
        """Keep the files true until cancelled; then take them away."""
        try:
            while not self._is_open:
                await anyio.sleep(_PAUSE_SECONDS)
                await self.open()
            while True:
                await self._wanted.wait()
                await anyio.sleep(_COALESCE_SECONDS)
                self._wanted = anyio.Event()
                changed, self._changed = self._changed, set()
                if not await self._try(partial(self._write, changed)):
                    self._changed |= changed
                    self._wanted.set()
                    await anyio.sleep(_PAUSE_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await self._try(self._files.close)

    async def _write(self, runs: Iterable[str]) -> None:
        found = [self._accounts.runs[run] for run in runs]
        shown = [one for one in found if one.run.status == "active" and self._accounts.is_loaded(one)]
        gone = [one for one in found if one not in shown and one.run.id in self._shown]
        # What is gone comes first: a session or a scope may go on in another run.
        scopes: dict[str, str | None] = {one.run.scope: None for one in gone if one.run.scope is not None}
        scopes |= {one.run.scope: one.run.id for one in shown if one.run.scope is not None}
        now = {one.run.id: self._sessions_of(one) for one in shown}
        links: dict[str, str | None] = {}
        for one in (*gone, *shown):
            left = self._shown.get(one.run.id, frozenset()) - now.get(one.run.id, frozenset())
            links |= {session: self._elsewhere(session) for session in left}
        for run, sessions in now.items():
            links |= dict.fromkeys(sessions, run)
        # What fails may have been done in part: so until all is done, what was there and what is to come both count.
        for run, sessions in now.items():
            self._shown[run] = self._shown.get(run, frozenset()) | sessions
        await self._files.put([self._state(one) for one in shown], links, scopes)
        await self._files.remove([one.run.id for one in gone])
        self._shown |= now
        for one in gone:
            del self._shown[one.run.id]

    def _sessions_of(self, state: RunAccount) -> frozenset[str]:
        return frozenset(one for one in state.sessions if self._accounts.run_of_session(one) is state)

    def _elsewhere(self, session: str) -> str | None:
        """Return the run with a file that a session belongs to now."""
        state = self._accounts.run_of_session(session)
        return state.run.id if state is not None and state.run.status == "active" else None

    def _state(self, state: RunAccount) -> State:
        balance = self._accounts.balance(state)
        return State(
            run=state.run.id,
            phase=state.run.phase,
            state=balance.state,
            budget=balance.budget,
            spent=balance.spent,
            remaining=balance.remaining,
            pct=balance.pct,
            reserved=balance.reserved,
            stale=self._is_stale(state),
            as_of=to_text(self._clock()),
        )

    async def _try(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Do something with the files; tells whether that was possible."""
        try:
            await action()
        except ChannelError as exc:
            self._note("failing", exc.message, exc.hint)
            return False
        self._note("ok", "", "")
        return True

    def _note(self, state: ChannelState, detail: str, hint: str) -> None:
        if state != self.state:
            self.since = self._clock()
        if detail != self.detail and detail:
            log.error("state files", detail=detail)
        self.state, self.detail, self.hint = state, detail, hint
