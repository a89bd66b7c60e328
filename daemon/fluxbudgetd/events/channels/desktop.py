"""Notification bubbles on the desktop."""

from collections.abc import Callable, Mapping

from fluxbudgetd.config.schema import ChannelConfig
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.channels.threshold_channel import ThresholdChannel
from fluxbudgetd.model import Event, Run
from fluxbudgetd.notify.desktop import Bubble, Desktop, Urgency
from fluxbudgetd.policy import loosening, words
from fluxbudgetd.totals.accounts import Accounts

_URGENCY: dict[str, Urgency] = {"budget.warning": "normal", "budget.exceeded": "critical"}
# A warning about a run that has ended is not shown once it is this old; a newer one may just be late.
_OLD_MICROS = 10 * 60 * 1_000_000


class DesktopChannel(ThresholdChannel):
    """One bubble per run, showing its latest threshold, and one for each loosening."""

    name = "desktop"
    latest_only = True
    reports_loosening = True

    def __init__(
        self, settings: Settings, accounts: Accounts, environ: Mapping[str, str], uid: int, clock: Callable[[], int]
    ) -> None:
        super().__init__(settings, accounts)
        self._desktop = Desktop(environ, uid)
        self._clock = clock

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.desktop

    async def deliver(self, event: Event) -> None:
        """Show the bubble; raises `ChannelError`."""
        run = self._run(event)
        if run.status != "active" and self._clock() - event.at > _OLD_MICROS:
            return
        bubble = _loosened(run, event) if event.kind == "run.loosened" else _passed(run, event)
        await self._desktop.show(bubble, self._channels.desktop.timeout)


def _passed(run: Run, event: Event) -> Bubble:
    phase = event.data.get("phase") or run.phase
    return Bubble(
        key=run.id,
        title=f"fluxbudget: {words.title(event)}",
        body=f"{words.name(run)}\n{words.where(run, event)}, phase {phase}",
        urgency=_URGENCY.get(event.kind, "low"),
    )


def _loosened(run: Run, event: Event) -> Bubble:
    return Bubble(
        key=f"{run.id} {event.seq}",
        title="fluxbudget: limit loosened",
        body=f"{words.name(run)}\n{loosening.what(run, event)}\nby {loosening.who(event)}",
        urgency="critical" if run.enforcement == "hard" else "normal",
    )
