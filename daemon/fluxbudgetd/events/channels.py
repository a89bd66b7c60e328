"""The channels: what each wants to be told of, in the words that it understands."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple

import msgspec
import structlog

from fluxbudgetd.config.schema import Channel as ChannelConfig
from fluxbudgetd.config.schema import Channels
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ChannelError, RequestTimeoutError
from fluxbudgetd.events.delivery import Channel
from fluxbudgetd.model import Balance, Event, Mark, Run, to_text
from fluxbudgetd.notify.command import Command
from fluxbudgetd.notify.desktop import Bubble, Desktop, Urgency
from fluxbudgetd.notify.interband import Alert, Interband
from fluxbudgetd.policy import thresholds, words
from fluxbudgetd.totals.accounts import Accounts, RunAccount

log = structlog.get_logger()

_URGENCY: dict[str, Urgency] = {"budget.warning": "normal", "budget.exceeded": "critical"}
# A bubble about a run that has ended is no warning any more, except for somebody who was not there to see it in time.
_OLD_MICROS = 10 * 60 * 1_000_000
#: What may change a run's place among its thresholds, or whose sessions they are.
_TURNS = frozenset(("run.started", "run.changed", "run.finished", "phase.advanced"))


class Surroundings(NamedTuple):
    """What channels need to know of the world: the environment, the user, where interband is unless configured.

    `state_directory` is where the state files are.
    """

    environ: Mapping[str, str]
    uid: int
    interband_root: str
    state_directory: str


def channels(
    settings: Settings,
    accounts: Accounts,
    around: Surroundings,
    clock: Callable[[], int],
    balance: Callable[[RunAccount], Awaitable[Balance]],
) -> tuple[Channel, ...]:
    """Return all channels."""
    return (
        DesktopChannel(settings, accounts, around, clock),
        InterbandChannel(settings, accounts, around, clock, balance),
        CommandChannel(settings, accounts),
        LogChannel(settings, accounts),
    )


class _Thresholds:
    """What channels that tell passed thresholds share."""

    name: str
    latest_only = False

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self._settings = settings
        self._accounts = accounts

    @property
    def _channels(self) -> Channels:
        return self._settings.config.channels

    @property
    def _config(self) -> ChannelConfig:
        """Return the channel's own table."""
        raise NotImplementedError

    @property
    def enabled(self) -> bool:
        """Tell whether it is switched on."""
        return self._config.enabled

    def wants(self, event: Event) -> bool:
        """Tell whether an event is one of the channel's thresholds."""
        configured = self._settings.config.warnings.thresholds
        return self.enabled and thresholds.is_told(event, self._config.thresholds, configured)

    @property
    def is_unfinished(self) -> bool:
        """Tell that what cannot be told is tried again with its event."""
        return False

    def is_behind(self, _state: RunAccount) -> bool:
        """Tell that events say all that there is to tell."""
        return False

    async def catch_up(self) -> None:
        """Tell nothing besides events."""

    def _run(self, event: Event) -> Run:
        return self._accounts.runs[event.run or ""].run


class DesktopChannel(_Thresholds):
    """Bubbles: one for each run, the latest."""

    name = "desktop"
    latest_only = True

    def __init__(self, settings: Settings, accounts: Accounts, around: Surroundings, clock: Callable[[], int]) -> None:
        super().__init__(settings, accounts)
        self._desktop = Desktop(around.environ, around.uid)
        self._clock = clock

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.desktop

    async def tell(self, event: Event) -> None:
        """Show it; raises `ChannelError`."""
        run = self._run(event)
        if run.status != "active" and self._clock() - event.at > _OLD_MICROS:
            return
        phase = event.data.get("phase") or run.phase
        bubble = Bubble(
            key=run.id,
            title=f"fluxbudget: {words.title(event)}",
            body=f"{words.name(run)}\n{words.where(run, event)}, phase {phase}",
            urgency=_URGENCY.get(event.kind, "low"),
        )
        await self._desktop.tell(bubble, self._channels.desktop.timeout)


class CommandChannel(_Thresholds):
    """A program of the person's own."""

    name = "command"

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        super().__init__(settings, accounts)
        self._command = Command()

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.command

    @property
    def enabled(self) -> bool:
        """Tell whether there is a program to start."""
        return self._config.enabled and bool(self._channels.command.argv)

    async def tell(self, event: Event) -> None:
        """Start it; raises `ChannelError`."""
        run, config = self._run(event), self._channels.command
        payload = msgspec.json.encode(
            {
                "seq": event.seq,
                "at": to_text(event.at),
                "run": event.run,
                "kind": event.kind,
                "data": event.data,
                "scope": run.scope,
                "goal": run.goal,
                "project_dir": run.project_dir,
                "message": words.warning(run, event),
            }
        )
        await self._command.tell(config.argv, payload + b"\n", config.timeout)


class LogChannel(_Thresholds):
    """The daemon's log."""

    name = "log"

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.log

    async def tell(self, event: Event) -> None:
        """Log it."""
        run = self._run(event)
        log.warning("budget", run=run.id, kind=event.kind, seq=event.seq, what=words.title(event), **event.data)


class _Shown(NamedTuple):
    """What the files say of a run: to which sessions, and by which percentages that are passed."""

    sessions: frozenset[str]
    passed: frozenset[Mark]


_NOTHING = _Shown(frozenset(), frozenset())


class InterbandChannel(_Thresholds):
    """The files that a status line reads; it never looks at their age, so they always say what holds now.

    Events, with the place on disk, see to it that nothing is missed across a restart. Besides, each look at a run is
    compared with what its files say: a session may have come along with a row, a number may have been corrected.
    """

    name = "interband"
    latest_only = True

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        around: Surroundings,
        clock: Callable[[], int],
        balance: Callable[[RunAccount], Awaitable[Balance]],
    ) -> None:
        super().__init__(settings, accounts)
        self._default_root = around.interband_root
        self._clock = clock
        self._balance = balance
        self._interband: tuple[str, Interband] | None = None
        self._shown: dict[str, _Shown] = {}
        # The runs whose files could not be written, with sessions that have left them.
        self._failed: dict[str, frozenset[str]] = {}

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.interband

    def wants(self, event: Event) -> bool:
        """Tell whether an event may change what the files have to say."""
        return self.enabled and (super().wants(event) or (event.kind in _TURNS and event.run is not None))

    @property
    def is_unfinished(self) -> bool:
        """Tell whether some files could not be written; those of other runs do not wait for them."""
        return bool(self._failed)

    def is_behind(self, state: RunAccount) -> bool:
        """Tell whether a run's files say something else than what holds by the last known numbers."""
        if not self.enabled or state.run.status != "active" or not self._accounts.is_loaded(state):
            return False
        if state.run.id in self._failed:
            return False  # it is tried again in its time
        known = self._shown.get(state.run.id)
        # After a start it is not known what they say; of a run that was never warned of there are none.
        return self._wanted(state) != known if known is not None else bool(state.fired)

    async def tell(self, event: Event) -> None:
        """Write or remove the files of the run's sessions; what fails is left for `catch_up`."""
        detached = event.data.get("detached")
        others = {detached} if isinstance(detached, str) else set()
        run = event.run or ""
        try:
            await self._write(self._accounts.runs[run], others)
        except ChannelError:
            self._failed[run] = self._failed.get(run, frozenset()) | others

    async def catch_up(self) -> None:
        """Bring all files up to date; when the channel is switched off, take away those that it has written."""
        failure = None
        await self._leave_old_root()
        for run in list(self._shown.keys() | self._failed.keys() | {state.run.id for state in self._accounts.active()}):
            state = self._accounts.runs[run]
            is_over = not self.enabled and self._shown.get(run, _NOTHING) != _NOTHING
            if run in self._failed or is_over or self.is_behind(state):
                try:
                    await self._write(state, self._failed.get(run, frozenset()))
                except ChannelError as exc:
                    self._failed.setdefault(run, frozenset())
                    failure = exc
        if failure is not None:
            raise failure

    async def _leave_old_root(self) -> None:
        """Take the files away from where they were before the configuration named another place."""
        if self._interband is None or self._interband[0] == self._root:
            return
        told = {session for shown in self._shown.values() for session in shown.sessions}
        await self._interband[1].put((), sorted(told), self._clock())
        self._interband = None
        self._shown.clear()

    async def _write(self, state: RunAccount, others: Collection[str] = ()) -> None:
        run = state.run
        if self.enabled and run.status == "active" and run.token_budget is not None:
            try:
                await self._balance(state)
            except RequestTimeoutError as exc:
                raise ChannelError(exc.message, exc.hint) from exc
        await self._leave_old_root()
        wanted, balance = self._wanted(state), self._accounts.balance(state)
        alerts = [Alert(session, balance.pct or 0.0, balance.spent) for session in sorted(wanted.sessions)]
        theirs = {one.session for one in self._accounts.attachments_to(run.id)}.union(others, self._before(run))
        gone = [name for name in theirs - wanted.sessions if self._accounts.run_of_session(name) in (None, state)]
        lasting = {session for shown in self._shown.values() for session in shown.sessions}
        await self._files().put(alerts, gone, self._clock(), lasting)
        self._failed.pop(run.id, None)
        self._shown[run.id] = wanted
        if run.status != "active":
            del self._shown[run.id]

    def _before(self, run: Run) -> frozenset[str]:
        return self._shown.get(run.id, _NOTHING).sessions

    def _wanted(self, state: RunAccount) -> _Shown:
        run = state.run
        if not self.enabled or run.status != "active" or run.token_budget is None:
            return _NOTHING
        config = self._settings.config
        percentages = config.warnings.thresholds if self._config.thresholds == "all" else self._config.thresholds
        wanted = {run.warn_pct if one == "warn_pct" else one for one in percentages}
        marks = [mark for mark in thresholds.marks(percentages, run.warn_pct) if mark.pct in wanted]
        passed = thresholds.passed(marks, self._accounts.balance(state))
        if not passed:
            return _NOTHING
        sessions = (name for name in state.sessions if self._accounts.run_of_session(name) is state)
        return _Shown(frozenset(sessions), passed)

    @property
    def _root(self) -> str:
        return self._channels.interband.root or self._default_root

    def _files(self) -> Interband:
        if self._interband is None:
            self._interband = self._root, Interband(self._root)
        return self._interband[1]
