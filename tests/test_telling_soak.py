"""No event is lost: kill -9 between commit and delivery, a hundred times."""

import contextlib
import random
import sys
import threading
from collections import Counter

import pytest

from fluxbudgetd.wire import messages
from harness import daemon as harness
from harness.daemon import Home, Wire, started, wait_for
from harness.interstat import Interstat
from harness.telling import Program, Stream, Told, channels, committed, configure, is_threshold

pytestmark = pytest.mark.soak

KILLS = 100


class Resuming:
    """A subscriber in a thread that goes on, in each of the daemon's lives, behind the last event that it has."""

    def __init__(self, home: Home) -> None:
        self.seqs: list[int] = []
        self.kinds: list[str] = []
        self._home = home
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.wait(0.002):
            with contextlib.suppress(OSError, EOFError), Stream(self._home, self.last, heartbeat_ms=100) as stream:
                assert stream.began.since == self.last
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
    """A subscriber that resumes gets each event once, in order; the command misses none, and repeats one per kill.

    Some lives end while a budget is lowered, others after interstat's commit, before or after the daemon has seen it.
    """
    # The detector has its say in the other tests; here are a hundred starts.
    monkeypatch.setattr(harness, "DAEMON", [sys.executable, "-m", "fluxbudgetd"])
    chance = random.Random(7)
    program = Program(home)
    configure(home, argv=program.argv)
    daemon = home.start()
    runs = [started(home, id=f"r{number}", session=f"s{number}", token_budget=10_000) for number in range(4)]
    for number in range(len(runs)):
        interstat.insert(f"s{number}", input_tokens=1000, output_tokens=0)
    reader = Resuming(home)
    told_at_kill: list[int] = []
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
                    fresh = started(home, session=f"f{life}", token_budget=1000)
                    doom.start()
                    interstat.insert(f"f{life}", input_tokens=1000, output_tokens=0)
                    wire.ask(messages.Remaining(run=fresh, wait_ms=30_000))
            doom.join()
            daemon.kill()
            program.wait_until_ended()
            told_at_kill.append(len(program.events))
        home.start()
        wait_for(lambda: channels(home)["command"].waiting == 0, "the command to be told everything")
        last = committed(home)[-1][0]
        wait_for(lambda: reader.last >= last, "the subscriber to have everything")
    finally:
        reader.end()

    events = committed(home)
    assert list(zip(reader.seqs, reader.kinds, strict=True)) == [(seq, kind) for seq, kind, _ in events]
    crossings = [(seq, kind) for seq, kind, _ in events if is_threshold(kind)]
    assert len(crossings) > KILLS
    wanted = {seq for seq, kind in crossings if kind != "budget.threshold"}
    told = Counter(event["seq"] for event in program.events)
    assert told.keys() == wanted
    assert sum(told.values()) - len(wanted) <= KILLS
    # Between two kills each is told once, and in order.
    for begin, end in zip([0, *told_at_kill], [*told_at_kill, None], strict=True):
        lived = [event["seq"] for event in program.events[begin:end]]
        assert lived == sorted(set(lived))
    assert len(home.ok("doctor")) > 0
    assert Told("budget.exceeded", 100) in program.told
