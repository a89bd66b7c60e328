"""The channels: what each wants to be told of, in the words that it understands."""

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import msgspec
import structlog

from fluxbudgetd.config.schema import Channel as ChannelConfig
from fluxbudgetd.config.schema import Channels
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.engine.book import Book, RunState
from fluxbudgetd.engine.telling import Channel
from fluxbudgetd.errors import ChannelError, RequestTimeoutError
from fluxbudgetd.model import Balance, Event, Run, to_text
from fluxbudgetd.notify.command import Command
from fluxbudgetd.notify.desktop import Bubble, Desktop, Urgency
from fluxbudgetd.notify.interband import Alert, Interband
from fluxbudgetd.policy import thresholds, words

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
    book: Book,
    around: Surroundings,
    clock: Callable[[], int],
    balance: Callable[[RunState], Awaitable[Balance]],
) -> tuple[Channel, ...]:
    """Return all channels."""
    return (
        DesktopChannel(settings, book, around, clock),
        InterbandChannel(settings, book, around, clock, balance),
        CommandChannel(settings, book),
        LogChannel(settings, book),
    )


class _Thresholds:
    """What channels that tell passed thresholds share."""

    name: str
    latest_only = False

    def __init__(self, settings: Settings, book: Book) -> None:
        self._settings = settings
        self._book = book

    @property
    def _channels(self) -> Channels:
        return self._settings.config.channels

    @property
    def _config(self) -> ChannelConfig:
        found = getattr(self._channels, self.name)
        assert isinstance(found, ChannelConfig)  # noqa: S101  the channel's own table
        return found

    @property
    def enabled(self) -> bool:
        """Tell whether it is switched on."""
        return self._config.enabled

    def wants(self, event: Event) -> bool:
        """Tell whether an event is one of the channel's thresholds."""
        configured = self._settings.config.warnings.thresholds
        return self.enabled and thresholds.is_told(event, self._config.thresholds, configured)

    def _run(self, event: Event) -> Run:
        return self._book.runs[event.run or ""].run


class DesktopChannel(_Thresholds):
    """Bubbles: one for each run, the latest."""

    name = "desktop"
    latest_only = True

    def __init__(self, settings: Settings, book: Book, around: Surroundings, clock: Callable[[], int]) -> None:
        super().__init__(settings, book)
        self._desktop = Desktop(around.environ, around.uid)
        self._clock = clock

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

    def __init__(self, settings: Settings, book: Book) -> None:
        super().__init__(settings, book)
        self._command = Command()

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

    async def tell(self, event: Event) -> None:
        """Log it."""
        run = self._run(event)
        log.warning("budget", run=run.id, kind=event.kind, seq=event.seq, what=words.title(event), **event.data)


class InterbandChannel(_Thresholds):
    """The files that a status line reads; it never looks at their age, so they always say what holds now."""

    name = "interband"
    latest_only = True

    def __init__(
        self,
        settings: Settings,
        book: Book,
        around: Surroundings,
        clock: Callable[[], int],
        balance: Callable[[RunState], Awaitable[Balance]],
    ) -> None:
        super().__init__(settings, book)
        self._default_root = around.interband_root
        self._home = around.environ.get("HOME") or os.path.expanduser("~")
        self._clock = clock
        self._balance = balance
        self._interband: tuple[str, Interband] | None = None

    def wants(self, event: Event) -> bool:
        """Tell whether an event may change what the files have to say."""
        return self.enabled and (super().wants(event) or (event.kind in _TURNS and event.run is not None))

    async def tell(self, event: Event) -> None:
        """Write or remove the files of the run's sessions; raises `ChannelError`."""
        state = self._book.runs[event.run or ""]
        sessions = {one.session for one in self._book.attachments_to(state.run.id)}
        detached = event.data.get("detached")
        if isinstance(detached, str):
            sessions.add(detached)
        theirs = {session: self._book.run_of_session(session) for session in sessions}
        alerts: list[Alert] = []
        if state.run.status == "active" and state.run.token_budget is not None:
            try:
                balance = await self._balance(state)
            except RequestTimeoutError as exc:
                raise ChannelError(exc.message, exc.hint) from exc
            if self._is_passed(state.run, balance):
                pct = balance.pct or 0.0
                alerts = [Alert(name, pct, balance.spent) for name, run in theirs.items() if run is state]
        told = {alert.session for alert in alerts}
        gone = [name for name, run in theirs.items() if name not in told and (run is None or run is state)]
        await self._files().put(alerts, gone, self._clock())

    def _is_passed(self, run: Run, balance: Balance) -> bool:
        config = self._settings.config
        wanted = config.warnings.thresholds if self._config.thresholds == "all" else self._config.thresholds
        marks = thresholds.marks(wanted, run.warn_pct)
        lowest = min((run.warn_pct if one == "warn_pct" else one for one in wanted), default=None)
        return any(mark.pct == lowest for mark in thresholds.passed(marks, balance))

    def _files(self) -> Interband:
        root = self._channels.interband.root or self._default_root
        if self._interband is None or self._interband[0] != root:
            self._interband = root, Interband(root)
        return self._interband[1]
