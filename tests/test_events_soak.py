"""No event is lost when the daemon is killed a hundred times between commit and delivery."""

import contextlib
import random
import sys
import threading
from collections import Counter

import pytest

from fluxbudgetd.wire import messages
from harness import daemon as harness
from harness.daemon import Home, Wire, project_of, started, wait_for
from harness.events import CommandProgram, Passed, Subscriber, channels, committed_events, configure, is_threshold
from harness.interstat import Interstat

pytestmark = pytest.mark.soak

KILLS = 100


class Resuming:
    """A subscriber in a thread that resumes after its last event whenever the daemon is back."""

    def __init__(self, home: Home) -> None:
        self.seqs: list[int] = []
        self.kinds: list[str] = []
        self._home = home
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.wait(0.002):
            with contextlib.suppress(OSError, EOFError), Subscriber(self._home, self.last, heartbeat_ms=100) as stream:
                assert stream.subscribed.since == self.last
                while not self._over.is_set():
                    answer = stream.next()
                    if isinstance(answer, messages.EventAnswer):
                        self.seqs.append(answer.seq)
                        self.kinds.append(answer.kind)

    @property
    def last(self) -> int:
        return self.seqs[-1] if self.seqs else 0

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_no_event_is_lost_between_commit_and_delivery(
    home: Home, interstat: Interstat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resuming subscriber gets each event once, in order. The command misses none and repeats at most one per kill.

    Half of the kills come while a budget is being lowered, half after a commit by interstat that the daemon may or may
    not have read.
    """
    # The other tests run the daemon under the detector, but it would slow down a hundred starts.
    monkeypatch.setattr(harness, "DAEMON", [sys.executable, "-m", "fluxbudgetd"])
    chance = random.Random(7)
    program = CommandProgram(home)
    configure(home, argv=program.argv)
    daemon = home.start()
    runs = [
        started(
            home, id=f"r{number}", session=f"s{number}", token_budget=10_000, project=project_of(home, f"s{number}")
        )
        for number in range(4)
    ]
    for number in range(len(runs)):
        interstat.insert(f"s{number}", input_tokens=1000, output_tokens=0)
    reader = Resuming(home)
    received_at_kill: list[int] = []
    try:
        for life in range(KILLS):
            if life:
                daemon = home.start()
            run = chance.choice(runs)
            doom = threading.Timer(chance.uniform(0.0, 0.03), daemon.process.kill)
            with contextlib.suppress(OSError, EOFError), Wire(home.socket) as wire:
                if life % 2:
                    wire.ask(messages.RunSet(run=run, token_budget=10**9, wait_ms=30_000))
                    doom.start()
                    wire.ask(messages.RunSet(run=run, token_budget=chance.choice([1000, 1100, 1200]), wait_ms=30_000))
                else:
                    fresh = started(home, session=f"f{life}", token_budget=1000, project=project_of(home, f"f{life}"))
                    doom.start()
                    interstat.insert(f"f{life}", input_tokens=1000, output_tokens=0)
                    wire.ask(messages.Remaining(run=fresh, wait_ms=30_000))
            doom.join()
            daemon.kill()
            program.wait_until_ended()
            received_at_kill.append(len(program.events))
        home.start()
        wait_for(lambda: channels(home)["command"].waiting == 0, "the command to have every event")
        last = committed_events(home)[-1][0]
        wait_for(lambda: reader.last >= last, "the subscriber to have every event")
    finally:
        reader.end()

    events = committed_events(home)
    assert list(zip(reader.seqs, reader.kinds, strict=True)) == [(seq, kind) for seq, kind, _ in events]
    thresholds = [(seq, kind) for seq, kind, _ in events if is_threshold(kind)]
    assert len(thresholds) > KILLS
    wanted = {seq for seq, kind in thresholds if kind != "budget.threshold"}
    delivered = Counter(event["seq"] for event in program.events)
    assert delivered.keys() == wanted
    assert sum(delivered.values()) - len(wanted) <= KILLS
    # Between two kills each event is delivered once, in order.
    for begin, end in zip([0, *received_at_kill], [*received_at_kill, None], strict=True):
        lived = [event["seq"] for event in program.events[begin:end]]
        assert lived == sorted(set(lived))
    assert len(home.ok("doctor")) > 0
    assert Passed("budget.exceeded", 100) in program.thresholds
