"""The daemon's log."""

import structlog

from fluxbudgetd.config.schema import ChannelConfig
from fluxbudgetd.events.channels.threshold_channel import ThresholdChannel
from fluxbudgetd.model import Event
from fluxbudgetd.policy import loosening, words

log = structlog.get_logger()


class LogChannel(ThresholdChannel):
    """Logs a warning per threshold, and per loosening."""

    name = "log"
    reports_loosening = True

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.log

    async def deliver(self, event: Event) -> None:
        """Log the event."""
        run = self._run(event)
        if event.kind == "run.loosened":
            what, who = loosening.what(run, event), loosening.who(event)
            log.warning("limit loosened", run=run.id, kind=event.kind, seq=event.seq, what=what, by=who)
            return
        log.warning(
            "budget threshold passed", run=run.id, kind=event.kind, seq=event.seq, what=words.title(event), **event.data
        )
