"""The user's own program, started once per event."""

import msgspec

from fluxbudgetd.config.schema import ChannelConfig
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.channels.threshold_channel import ThresholdChannel
from fluxbudgetd.model import Event, to_text
from fluxbudgetd.notify.command import Command
from fluxbudgetd.policy import words
from fluxbudgetd.totals.accounts import Accounts


class CommandChannel(ThresholdChannel):
    """Starts the configured program with the event on its standard input."""

    name = "command"

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        super().__init__(settings, accounts)
        self._command = Command()

    @property
    def _config(self) -> ChannelConfig:
        return self._channels.command

    @property
    def enabled(self) -> bool:
        """Return True if the configuration enables the channel and names a program."""
        return self._config.enabled and bool(self._channels.command.argv)

    async def deliver(self, event: Event) -> None:
        """Start the program and wait for it; raises `ChannelError`."""
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
        await self._command.run(config.argv, payload + b"\n", config.timeout)
