"""A real daemon delivers a passed threshold once on every channel, to real files, programs and clients."""

import sqlite3
from contextlib import closing

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Home, started, wait_for
from harness.events import (
    EIGHTY,
    EXCEEDED,
    FIFTY,
    HUNDRED,
    NINETY_FIVE,
    WARNING,
    CommandProgram,
    Subscriber,
    change_run,
    channels,
    committed_events,
    configure,
    hook_message,
    interband_files,
    logged_thresholds,
    wait_until_delivered,
)
from harness.interstat import Interstat
from harness.transcripts import Transcript


def test_passed_threshold_is_delivered_once_on_every_channel(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """Further usage causes no warning. A raised budget re-arms the warning; a lowered one warns at once."""
    daemon = home.start()
    run = started(home, id="r1", session="s1", token_budget=1000, scope="b1", goal="the parser")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=700, output_tokens=110)
        warning = stream.until("budget.warning")
        assert stream.thresholds == [FIFTY, EIGHTY, WARNING]
        assert (warning.run, warning.data["spent"], warning.data["budget"], warning.data["pct"]) == (
            "r1",
            810,
            1000,
            81,
        )
        wait_for(lambda: command.thresholds == [WARNING], "the command")
        wait_for(lambda: interband_files(home) == {"s1": (81.0, 810), "s2": (81.0, 810)}, "interband's files")
        for session in ("s1", "s2"):
            assert "80 % of the budget spent: run r1" in hook_message(home, session)
            assert hook_message(home, session) == ""
        for _ in range(100):
            interstat.insert("s1", input_tokens=1, output_tokens=0)
        assert home.spend(run).spent == 910

        change_run(home, messages.RunSet(run=run, token_budget=10_000, wait_ms=30_000))
        wait_for(lambda: interband_files(home) == {}, "interband's files to go")
        assert (hook_message(home, "s1"), hook_message(home, "s2")) == ("", "")
        interstat.insert("s2", input_tokens=7190, output_tokens=0)
        assert stream.until("budget.warning").data["spent"] == 8100
        wait_for(
            lambda: interband_files(home) == {"s1": (81.0, 8100), "s2": (81.0, 8100)}, "interband's files to come back"
        )
        assert "80 % of the budget spent" in hook_message(home, "s2")

        change_run(home, messages.RunSet(run=run, token_budget=8500, wait_ms=30_000))
        stream.until("budget.threshold", 95)
        change_run(home, messages.RunSet(run=run, token_budget=8000, wait_ms=30_000))
        assert stream.until("budget.exceeded").data["budget"] == 8000
        wait_for(
            lambda: interband_files(home) == {"s1": (100.0, 8100), "s2": (100.0, 8100)},
            "interband's files to show 100 %",
        )
        assert "budget exceeded" in hook_message(home, "s1")
        assert "budget exceeded" in hook_message(home, "s2")
        wait_until_delivered(home)
        assert (hook_message(home, "s1"), hook_message(home, "s2")) == ("", "")

        again = [FIFTY, EIGHTY, WARNING, FIFTY, EIGHTY, WARNING, NINETY_FIVE, HUNDRED, EXCEEDED]
        assert stream.thresholds == again
        assert [entry[0] for entry in committed_events(home)][-len(stream.events) :] == stream.seqs
    assert daemon.stop() == 0
    assert command.thresholds == [WARNING, WARNING, EXCEEDED]
    assert logged_thresholds(daemon) == [FIFTY, WARNING, FIFTY, WARNING, NINETY_FIVE, EXCEEDED]
    payload = command.events[0]
    assert (payload["run"], payload["scope"], payload["goal"], payload["project_dir"]) == (
        "r1",
        "b1",
        "the parser",
        str(home.project),
    )
    assert payload["message"].startswith("fluxbudget: 80 % of the budget spent: run r1, phase brainstorm: 810 of 1 000")
    assert (payload["seq"], payload["at"], payload["data"]) == (warning.seq, warning.at, warning.data)


def test_jump_over_all_thresholds_delivers_each_once(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    with Subscriber(home) as stream:
        interstat.insert("s1", input_tokens=100, output_tokens=0)
        assert home.spend(run).spent == 100
        interstat.insert("s1", input_tokens=900, output_tokens=0)
        stream.until("budget.exceeded")
        assert stream.thresholds == [FIFTY, EIGHTY, WARNING, NINETY_FIVE, HUNDRED, EXCEEDED]
    wait_until_delivered(home)
    assert "budget exceeded" in hook_message(home, "s1")  # only the most severe
    assert hook_message(home, "s1") == ""
    assert daemon.stop() == 0
    assert command.thresholds == [WARNING, EXCEEDED]
    assert logged_thresholds(daemon) == [FIFTY, WARNING, NINETY_FIVE, EXCEEDED]


def test_transcript_that_passes_a_threshold_is_noticed_without_a_request(home: Home, command: CommandProgram) -> None:
    home.start()
    writer = Transcript(home.root / "claude", "s1")
    writer.response("m1", tokens=(10, 0, 0, 0))
    started(home, session="s1", whole=True, token_budget=1000)
    with Subscriber(home, since=0) as stream:
        writer.response("m2", tokens=(800, 0, 0, 0))
        stream.until("budget.warning")
    wait_for(lambda: command.thresholds == [WARNING], "the command")


def test_restart_delivers_nothing_again(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: command.thresholds == [WARNING], "the command")
    assert hook_message(home, "s1")
    wait_until_delivered(home)
    daemon.stop()
    second = home.start()
    assert home.spend(run).spent == 810
    assert hook_message(home, "s1") == ""
    interstat.insert("s1", input_tokens=150, output_tokens=0)
    wait_for(lambda: NINETY_FIVE in logged_thresholds(second), "the log")
    wait_until_delivered(home)
    second.stop()
    assert (command.thresholds, logged_thresholds(second)) == ([WARNING], [NINETY_FIVE])


def test_threshold_passed_while_the_daemon_was_down_is_delivered(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    daemon.kill()
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    home.start()
    wait_for(lambda: command.thresholds == [WARNING], "the command")
    wait_for(lambda: interband_files(home) == {"s1": (81.0, 810)}, "interband's file")


@pytest.mark.parametrize("kind", ["budget.warning", "budget.threshold"])
def test_event_with_damaged_data_keeps_its_number(
    home: Home, interstat: Interstat, command: CommandProgram, kind: str
) -> None:
    """The daemon starts, serves it without data, and delivers later events on every channel."""
    configure(home, argv=["false"])
    daemon = home.start()
    started(home, id="r1", session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(
        lambda: channels(home)["command"].state == "failing", "the command to fail, so that the event stays undelivered"
    )
    assert daemon.stop() == 0
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection, connection:
        damage = "UPDATE events SET data = CAST(replace(CAST(data AS TEXT), ?, ?) AS BLOB) WHERE kind = ?"
        assert connection.execute(damage, ('{"threshold"', '{!threshold"', kind)).rowcount
    configure(home, argv=command.argv)
    home.start()
    with Subscriber(home, since=0) as stream:
        stream.read_to(committed_events(home)[-1][0])
        assert [(one.seq, one.kind, one.run or "") for one in stream.events] == committed_events(home)
        assert {one.kind: one.data for one in stream.events}[kind] == {}
        interstat.insert("s1", input_tokens=200, output_tokens=0)
        stream.until("budget.exceeded")
    wait_for(lambda: interband_files(home) == {"s1": (100.0, 1010)}, "interband's file")
    wait_for(lambda: command.thresholds[-1:] == [EXCEEDED], "the command")
    assert "budget exceeded" in hook_message(home, "s1")
    wait_until_delivered(home)
