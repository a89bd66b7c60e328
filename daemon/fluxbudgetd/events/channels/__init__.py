"""The channels: which events each delivers, and in what form. One file per channel."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.channels.command import CommandChannel
from fluxbudgetd.events.channels.desktop import DesktopChannel
from fluxbudgetd.events.channels.interband import InterbandChannel
from fluxbudgetd.events.channels.log import LogChannel
from fluxbudgetd.events.delivery import EventChannel
from fluxbudgetd.model import Balance
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts


class HostEnvironment(NamedTuple):
    """The daemon's environment and user, and default output directories.

    `interband_root` is for interband's files, `state_directory` for the state files, `marker_directory` for markers.
    """

    environ: Mapping[str, str]
    uid: int
    interband_root: str
    state_directory: str
    marker_directory: str


def make_channels(
    settings: Settings,
    accounts: Accounts,
    host: HostEnvironment,
    clock: Callable[[], int],
    balance: Callable[[RunAccount], Awaitable[Balance]],
) -> tuple[EventChannel, ...]:
    """Return all channels. `balance` brings a run up to date and returns its balance."""
    return (
        DesktopChannel(settings, accounts, host.environ, host.uid, clock),
        InterbandChannel(settings, accounts, host.interband_root, clock, balance),
        CommandChannel(settings, accounts),
        LogChannel(settings, accounts),
    )
