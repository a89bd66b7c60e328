"""Which events a channel delivers: by its thresholds, whether it is on, and how old they are."""

import os
from pathlib import Path

import anyio
import msgspec
import pytest

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.channels.desktop import DesktopChannel
from fluxbudgetd.events.channels.interband import InterbandChannel
from fluxbudgetd.model import Balance, BudgetThreshold, Event, EventData, Run
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from harness.bus import private_bus
from harness.configuration import claude_directory
from harness.daemon import Home, started, wait_for
from harness.events import (
    EXCEEDED,
    NINETY_FIVE,
    CommandProgram,
    Passed,
    Subscriber,
    channels,
    configure,
    hook_message,
    interband_files,
    logged_thresholds,
    wait_until_delivered,
)
from harness.interstat import Interstat

NOW = 1_795_000_000_000_000
MINUTE = 60 * 1_000_000


def settings(directory: Path) -> Settings:
    return Settings(str(directory / "config.toml"), required=False, claude_dirs=claude_directory(directory))


def a_run(accounts: Accounts, *, ended_at: int | None = None) -> RunAccount:
    """Add a warned run with known numbers to the accounts."""
    run = Run(
        id="r1",
        scope=None,
        project_dir="/p",
        goal="",
        complexity=3,
        phases=("one", "done"),
        phase="one",
        token_budget=1000,
        warn_pct=80,
        enforcement="soft",
        cost_basis="billing",
        status="active" if ended_at is None else "done",
        started_at=NOW - 60 * MINUTE,
        ended_at=ended_at,
    )
    state = accounts.put_run(run)
    state.fired = frozenset((BudgetThreshold("budget.warning", 80),))
    state.has_sessions = True
    return state


@pytest.mark.parametrize(
    ("age", "ended", "shown"),
    [(9, True, True), (11, True, False), (11, False, True), (24 * 60, False, True)],
)
def test_bubble_about_a_run_that_ended_is_shown_for_ten_minutes(
    tmp_path: Path, age: int, ended: bool, shown: bool
) -> None:
    """A bubble about an active run is shown however late it is."""
    accounts = Accounts()
    a_run(accounts, ended_at=NOW if ended else None)
    data: EventData = {"threshold": 80, "spent": 810, "budget": 1000, "phase": "one", "warn_pct": 80}
    event = Event(seq=1, at=NOW - age * MINUTE, run="r1", kind="budget.warning", data=data)
    with private_bus(tmp_path) as bus:
        server = bus.serve()
        environ = {"DBUS_SESSION_BUS_ADDRESS": bus.address}
        anyio.run(DesktopChannel(settings(tmp_path), accounts, environ, os.getuid(), lambda: NOW).deliver, event)
        assert [each["summary"] for each in server.shown] == ["fluxbudget: 80 % of the budget spent"] * shown


def test_interband_is_never_outdated_by_an_ended_run(tmp_path: Path) -> None:
    """Its files were removed when it ended. Late usage in the next 48 hours does not bring them back."""
    accounts = Accounts()

    async def balance(state: RunAccount) -> Balance:
        return state.balance()

    channel = InterbandChannel(settings(tmp_path), accounts, str(tmp_path), lambda: NOW, balance)
    state = a_run(accounts)
    assert channel.is_outdated(state)
    accounts.put_run(msgspec.structs.replace(state.run, status="done", ended_at=NOW))
    assert not channel.is_outdated(state)


def test_channels_have_thresholds_of_their_own(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    """Only the command delivers 90, which is not in `warnings`. The log delivers those of `warnings`."""
    configure(
        home,
        "[warnings]\nthresholds = [30]\n[channels.hook]\nthresholds = [100]\n[channels.interband]\nthresholds = [70]\n",
        argv=command.argv,
        command="thresholds = [90]",
    )
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=650, output_tokens=0)
        stream.until("budget.threshold", 30)
        wait_until_delivered(home)
        assert interband_files(home) == {}
        interstat.insert("s1", input_tokens=180, output_tokens=0)
        stream.until("budget.warning")
        wait_for(lambda: interband_files(home) == {"s1": (83.0, 830)}, "the file")
        assert hook_message(home, "s1") == ""
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        stream.until("budget.threshold", 90)
        wait_for(lambda: command.thresholds == [Passed("budget.threshold", 90)], "the command")
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        stream.until("budget.exceeded")
    wait_until_delivered(home)
    assert "budget exceeded" in hook_message(home, "s1")
    daemon.stop()
    assert command.thresholds == [Passed("budget.threshold", 90)]
    assert logged_thresholds(daemon) == [Passed("budget.threshold", 30)]


def test_channel_that_was_off_delivers_no_old_events(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    configure(
        home,
        "[channels.log]\nenabled = false\n[channels.interband]\nenabled = false\n",
        argv=command.argv,
        command="enabled = false",
    )
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=810, output_tokens=0)
        stream.until("budget.warning")
        wait_until_delivered(home)
        assert {name for name, one in channels(home).items() if one.state != "off"} == {"state files"}
        configure(home, argv=command.argv)
        wait_until_delivered(home)
        assert {name for name, one in channels(home).items() if one.state == "off"} == {"desktop"}
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        stream.until("budget.exceeded")
    wait_for(lambda: interband_files(home) == {"s1": (100.0, 1010)}, "interband's file")
    wait_until_delivered(home)
    assert home.spend(run).spent == 1010
    daemon.stop()
    assert command.thresholds == [EXCEEDED]
    assert logged_thresholds(daemon) == [NINETY_FIVE, EXCEEDED]
