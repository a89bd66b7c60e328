"""What the channels that report passed thresholds share."""

from fluxbudgetd.config.schema import ChannelConfig, Channels
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.model import Event, Run
from fluxbudgetd.policy import thresholds
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts


class ThresholdChannel:
    """An `EventChannel` that delivers only the thresholds of its own table in the configuration.

    `reports_loosening`: it also delivers every `run.loosened`.
    """

    name: str
    latest_only = False
    reports_loosening = False

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
        """Return True if the configuration enables the channel."""
        return self._config.enabled

    def wants(self, event: Event) -> bool:
        """Return True if an event reports one of the channel's thresholds, or a loosening that it reports."""
        if event.kind == "run.loosened":
            return self.enabled and self.reports_loosening
        configured = self._settings.config.warnings.thresholds
        return self.enabled and thresholds.is_wanted(event, self._config.thresholds, configured)

    @property
    def is_incomplete(self) -> bool:
        """Return False: a delivery that fails is retried with its event."""
        return False

    def is_outdated(self, _account: RunAccount) -> bool:
        """Return False: its output depends on events alone."""
        return False

    async def reconcile(self) -> None:
        """Do nothing: its output depends on events alone."""

    def _run(self, event: Event) -> Run:
        return self._accounts.runs[event.run or ""].run
