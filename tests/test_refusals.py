"""Equal refusals in a row are one event with a count: however often a script tries, the ledger does not grow."""

from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.events import Subscriber, change_run
from harness.interstat import Interstat

#: How many requests are sent before their answers are read.
_AT_ONCE = 250


@pytest.fixture
def run(home: Home, interstat: Interstat, daemon: Daemon) -> str:
    """Start a run whose budget is exceeded."""
    run = started(home, id="r1", token_budget=1000, session="s1", enforcement="hard")
    interstat.insert("s1", input_tokens=1000, output_tokens=200)
    with Subscriber(home, since=0) as stream:
        home.spend(run)
        stream.until("budget.exceeded")
    return run


def refuse(home: Home, times: int = 1) -> None:
    """Check the run's budget, as one client that is refused each time."""
    with Wire(home.socket) as wire:
        for first in range(0, times, _AT_ONCE):
            many = min(_AT_ONCE, times - first)
            wire.send(*[messages.Check(run="r1", wait_ms=60_000)] * many)
            for _ in range(many):
                answer = messages.decode_answer(wire.receive())
                assert isinstance(answer, messages.CheckAnswer), answer
                assert not answer.allowed


def refusals(home: Home) -> list[object]:
    """Return the counts of the events of refusals, as a new subscriber receives them."""
    with Subscriber(home, since=0) as stream:
        stream.read_to(stream.subscribed.last)
    return [event.data["count"] for event in stream.events if event.kind == "phase.blocked"]


def size(path: Path) -> int:
    """Return the size of a file and its write-ahead log, which SQLite bounds."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists())


def test_ten_thousand_refusals_grow_the_ledger_by_a_constant(home: Home, run: str, daemon: Daemon) -> None:
    ledger = home.state / "ledger.db"
    refuse(home)
    daemon.stop()
    before = size(ledger)
    daemon = home.start()
    refuse(home, 10_000)
    wait_for(lambda: refusals(home) == [10_001], "the count to be written")
    assert size(ledger) < before + (5 << 20), "SQLite's log is bounded, too"
    daemon.stop()
    assert size(ledger) == before
    home.start()
    assert refusals(home) == [10_001]


def test_nobody_is_told_of_a_repetition(home: Home, run: str) -> None:
    with Subscriber(home, run=run) as stream:
        refuse(home, 5)
        first = stream.until("phase.blocked")
        change_run(home, messages.RunSet(run=run, warn_pct=50))
        stream.until("run.changed")
    assert [event.kind for event in stream.events].count("phase.blocked") == 1
    assert first.data["refusal"] == "budget_exceeded|brainstorm|1200/1000 billing tokens"
    assert first.by is not None
    assert refusals(home) == [5]


def test_another_event_of_the_run_ends_the_row(home: Home, run: str) -> None:
    started(home, id="other")
    refuse(home, 2)
    change_run(home, messages.RunSet(run="other", warn_pct=50))  # another run's event does not
    refuse(home, 3)
    change_run(home, messages.RunSet(run=run, warn_pct=50))
    refuse(home, 4)
    assert refusals(home) == [5, 4]


def test_numbers_make_no_difference(home: Home, run: str, interstat: Interstat) -> None:
    refuse(home, 2)
    interstat.insert("s1", input_tokens=77, output_tokens=0)
    wait_for(lambda: home.spend(run).spent == 1277, "the numbers to change")
    refuse(home, 2)
    assert refusals(home) == [4]


def test_different_refusals_in_turn_are_counted_separately(home: Home, run: str) -> None:
    advance = messages.Advance(run=run, from_phase="brainstorm")
    for _ in range(3):
        refuse(home)
        answer = home.ask(advance)
        assert isinstance(answer, messages.AdvanceAnswer)
        assert not answer.advanced
    assert refusals(home) == [3, 3]


def test_refusals_during_the_first_write_are_counted(home: Home, run: str) -> None:
    """Clients that are refused at the same time wait for one event."""
    wires = [Wire(home.socket) for _ in range(30)]
    for wire in wires:
        wire.send(messages.Check(run=run, wait_ms=60_000))
    for wire in wires:
        assert isinstance(messages.decode_answer(wire.receive()), messages.CheckAnswer)
        wire.socket.close()
    wait_for(lambda: sum(int(str(count)) for count in refusals(home)) == 30, "all to be counted")
    assert refusals(home) == [30]


def test_count_goes_on_after_a_restart(home: Home, run: str, daemon: Daemon) -> None:
    refuse(home, 3)
    daemon.stop()
    home.start()
    refuse(home, 4)
    wait_for(lambda: refusals(home) == [7], "the count to be written")
