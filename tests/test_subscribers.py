"""Subscribers of a real daemon's events."""

import signal
import threading
from itertools import pairwise

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.events import (
    Subscriber,
    change_run,
    committed_events,
    configure,
)
from harness.interstat import Interstat


def make_events(home: Home, run: str, times: int) -> None:
    """Cause this many events, overrides of an exceeded run, and wait until they are committed."""
    before = len(committed_events(home))
    with Wire(home.socket) as wire:
        for _ in range(times):
            answer = wire.ask(messages.Check(run=run, override="go on", wait_ms=0))
            assert isinstance(answer, messages.CheckAnswer), answer
            assert answer.overridden is not None
    wait_for(lambda: len(committed_events(home)) >= before + times, "the overrides to be committed")


@pytest.fixture
def served(home: Home, interstat: Interstat) -> Daemon:
    """Start a daemon without a command channel."""
    configure(home)
    return home.start()


@pytest.fixture
def exceeded(home: Home, interstat: Interstat, served: Daemon) -> str:
    """Start a run and spend its budget."""
    run = started(home, id="full", session="s1", token_budget=10)
    with Subscriber(home, since=0) as stream:
        interstat.insert("s1", input_tokens=10, output_tokens=0)
        stream.until("budget.exceeded")
    return run


def numbers(home: Home) -> list[int]:
    return [seq for seq, _, _ in committed_events(home)]


def test_subscriber_starts_after_the_requested_event(home: Home, exceeded: str) -> None:
    """Without a number, it starts with the next event. A number from the future starts with the first."""
    last = numbers(home)[-1]
    cases = ((0, 0), (3, 3), (last, last), (None, last), (last + 1, 0), (10**12, 0), (-5, 0))
    streams = []
    for since, begins in cases:
        stream = Subscriber(home, since=since)
        assert (stream.subscribed.since, stream.subscribed.last) == (begins, last), since
        streams.append((stream, begins))
    make_events(home, exceeded, 3)
    everything = numbers(home)
    for stream, begins in streams:
        assert stream.read_to(everything[-1]) == [seq for seq in everything if seq > begins]
        stream.close()


def test_subscriber_starts_near_the_oldest_event_in_memory(home: Home, exceeded: str) -> None:
    """The latest 512 events are in memory, older ones only in the ledger. None is missing or repeated."""
    make_events(home, exceeded, 700)
    everything = numbers(home)
    for since in range(everything[-1] - 516, everything[-1] - 508):
        with Subscriber(home, since=since) as stream:
            assert stream.read_to(everything[-1]) == list(range(since + 1, everything[-1] + 1))


def test_subscriber_receives_the_events_in_the_ledger(home: Home, exceeded: str) -> None:
    with Subscriber(home, since=0) as stream:
        stream.read_to(numbers(home)[-1])
        assert [(one.seq, one.kind, one.run or "") for one in stream.events] == committed_events(home)
        assert stream.events[0].at < stream.events[-1].at


def test_subscriber_of_one_run_receives_only_its_events(home: Home, exceeded: str) -> None:
    """Heartbeats carry the stream's position, so that the client can resume there."""
    other = started(home, id="other", token_budget=1000)
    with Subscriber(home, since=0, run=other, heartbeat_ms=100) as stream, Subscriber(home, run=exceeded) as from_now:
        assert isinstance(stream.next(), messages.EventAnswer)
        make_events(home, exceeded, 4)
        change_run(home, messages.RunSet(run=other, token_budget=7, wait_ms=30_000))
        last = numbers(home)[-1]

        def caught_up() -> bool:
            answer = stream.next()
            return isinstance(answer, messages.HeartbeatAnswer) and answer.seq == last

        wait_for(caught_up, "a heartbeat with the last event's number")
        assert [(one.kind, one.run) for one in stream.events] == [("run.started", other), ("run.changed", other)]
        from_now.read_to(last - 1)
        assert [(one.kind, one.run) for one in from_now.events] == 4 * [("budget.overridden", exceeded)]


def test_subscriber_of_one_run_gets_heartbeats_while_others_are_busy(home: Home, exceeded: str) -> None:
    """Events of other runs do not replace its heartbeats, which carry its growing position."""
    started(home, id="quiet", token_budget=1000)
    enough = threading.Event()

    def be_busy() -> None:
        with Wire(home.socket) as wire:
            while not enough.is_set():
                wire.ask(messages.Check(run=exceeded, override="go on", wait_ms=0))

    busy = threading.Thread(target=be_busy)
    with Subscriber(home, run="quiet", heartbeat_ms=500) as stream:
        busy.start()
        places: list[int] = []
        try:
            while len(set(places)) < 3:
                answer = stream.next()
                if isinstance(answer, messages.HeartbeatAnswer):
                    places.append(answer.seq)
        finally:
            enough.set()
            busy.join()
        assert stream.events == []
        assert places == sorted(places)


def test_subscriber_of_an_unknown_run_is_refused(home: Home, exceeded: str) -> None:
    with Wire(home.socket) as wire:
        answer = wire.ask(messages.Subscribe(run="unknown"))
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "no_run"
        with pytest.raises(EOFError):
            wire.receive()


def test_heartbeats_come_while_nothing_happens(home: Home, exceeded: str) -> None:
    """They come at most every 100 ms and do not affect the events."""
    with Subscriber(home, heartbeat_ms=1) as stream:
        last = numbers(home)[-1]
        beats = [stream.next() for _ in range(3)]
        assert all(isinstance(one, messages.HeartbeatAnswer) and one.seq == last for one in beats)
        times = [one.at for one in beats if isinstance(one, messages.HeartbeatAnswer)]
        assert all(before < after for before, after in pairwise(times))
        make_events(home, exceeded, 1)
        assert stream.read_to(last + 1) == [last + 1]
        after = stream.next()
        assert isinstance(after, messages.HeartbeatAnswer)
        assert after.seq == last + 1


def test_slow_subscriber_gets_one_lagged_notice_and_every_event(home: Home, exceeded: str) -> None:
    """It does not read during 5 200 events. A subscriber that does read is not affected."""
    first = numbers(home)[-1]
    with Subscriber(home) as slow, Subscriber(home) as attentive:
        lagged = []
        for _ in range(26):
            make_events(home, exceeded, 200)
            last = numbers(home)[-1]
            while not attentive.events or attentive.events[-1].seq < last:
                assert isinstance(attentive.next(), messages.EventAnswer)
            assert home.spend(exceeded).spent == 10
        assert attentive.seqs == list(range(first + 1, last + 1))
        while not slow.events or slow.events[-1].seq < last:
            answer = slow.next()
            if isinstance(answer, messages.LaggedAnswer):
                assert answer.seq == slow.events[-1].seq
                assert answer.behind == last - answer.seq
                lagged.append(answer)
        assert slow.seqs == attentive.seqs
        assert len(lagged) == 1
        # It has caught up and receives new events like any other.
        make_events(home, exceeded, 1)
        slow.read_to(last + 1)
        assert slow.seqs[-2:] == [last, last + 1]


def test_closed_subscribers_are_forgotten(home: Home, exceeded: str) -> None:
    """The others receive every event."""
    first = numbers(home)[-1]

    def connections() -> int:
        answer = home.ask(messages.Doctor(wait_ms=30_000))
        assert isinstance(answer, messages.DoctorAnswer)
        return answer.connections

    streams = [Subscriber(home) for _ in range(50)]
    make_events(home, exceeded, 20)
    for stream in streams:
        assert stream.read_to(first + 20) == list(range(first + 1, first + 21))
    for stream in streams[::2]:
        stream.close()
    wait_for(lambda: connections() == 1 + 25, "the closed subscribers to be forgotten")
    make_events(home, exceeded, 20)
    for stream in streams[1::2]:
        assert stream.read_to(first + 40) == list(range(first + 1, first + 41))
        stream.close()
    wait_for(lambda: connections() == 1, "all subscribers to be forgotten")


def test_subscriber_closed_while_the_daemon_waits_for_it_is_forgotten(home: Home, exceeded: str) -> None:
    readers = [Subscriber(home) for _ in range(5)]
    make_events(home, exceeded, 1500)
    for reader in readers:
        reader.close()

    def connections() -> int:
        answer = home.ask(messages.Doctor(wait_ms=30_000))
        assert isinstance(answer, messages.DoctorAnswer)
        return answer.connections

    wait_for(lambda: connections() == 1, "the subscribers to be forgotten")


def test_stop_ends_every_stream(home: Home, served: Daemon, exceeded: str) -> None:
    """A stream ends after a complete frame if the client reads. A client that does not read cannot prevent the stop."""
    last = numbers(home)[-1]
    with Subscriber(home) as stream, Subscriber(home, heartbeat_ms=100) as beating, Subscriber(home) as stuck:
        make_events(home, exceeded, 2000)
        stream.read_to(last + 2000)
        beating.read_to(last + 2000)
        served.signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0
        assert all(isinstance(answer, messages.HeartbeatAnswer) for answer in beating.read_to_end())
        assert stream.read_to_end() == []
        assert (stream.wire.unfinished, beating.wire.unfinished) == (0, 0)
        stuck.read_to_end()
        assert stuck.seqs == list(range(last + 1, last + 1 + len(stuck.seqs)))
        assert 0 < len(stuck.seqs) < 2000
    home.start()
    with Subscriber(home, since=stuck.seqs[-1]) as resumed:
        assert resumed.read_to(last + 2000) == list(range(stuck.seqs[-1] + 1, last + 2001))
