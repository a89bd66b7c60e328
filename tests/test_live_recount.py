"""Live totals of a real daemon against a recount, while another process appends."""

import random
import signal
import subprocess
import sys
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxbudgetd.wire import messages
from harness.daemon import Home, Wire, started
from harness.interstat import Interstat
from harness.live import transcript
from harness.transcript_recount import count_lines
from harness.transcripts import assistant_line, encoded

SERIAL = count()
message_ids = st.sampled_from(("m1", "m2", "m3", "m4"))
requests = st.sampled_from(("r1", "r2", None))
counts = st.tuples(*[st.integers(0, 50)] * 4)
lines = st.lists(
    st.one_of(
        st.tuples(st.just("response"), st.sampled_from((0, 1, 2)), message_ids, requests, st.booleans(), counts),
        st.tuples(st.just("raw"), st.sampled_from((0, 1)), st.sampled_from((b"{}\n", b"\xff\n", b'{"type":"user"}\n'))),
    ),
    min_size=1,
    max_size=40,
)


WRITER = """
import random, sys, time
chance = random.Random(int(sys.argv[1]))
ahead = [(path, open(path + ".ahead", "rb").read()) for path in sys.argv[2:]]
rest = {path: raw for path, raw in ahead}
while any(rest.values()):
    path = chance.choice([path for path, raw in rest.items() if raw])
    size = chance.randrange(1, 2500)
    with open(path, "ab") as file:
        file.write(rest[path][:size])
    rest[path] = rest[path][size:]
    time.sleep(chance.random() * 0.004)
"""


def total(files: dict[int, tuple[bytes, str]]) -> int:
    """Return the billing tokens of files, none of which has a part of another one's responses."""
    return sum(sum(one.tokens[:2]) for raw, agent in files.values() for one in count_lines(raw, agent))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=lines, seed=st.integers(0, 1000))
def test_totals_equal_a_recount(live_home: Home, lines: list[tuple[Any, ...]], seed: int) -> None:
    """Another process appends in random pieces meanwhile.

    Every answer equals a recount of the files at some moment between request and answer; the last one, of everything.
    """
    session = f"s-{next(SERIAL)}"  # a counter, because hypothesis repeats random numbers
    writer = transcript(live_home, session)
    writers = [writer, writer.agent("a"), writer.agent("b", "deeper")]
    raws = [b"", b"", b""]
    for what, which, *rest in lines:
        if what == "raw":
            raws[which] += rest[0]
        else:
            message, request, sidechain, tokens = rest
            fields = {"request": request, "tokens": tokens, "sidechain": sidechain or which > 0}
            # No file has a part of another one's responses, because the files are read in any order.
            raws[which] += encoded(assistant_line(session, f"{message} of {which} in {session}", **fields))
    for one, raw in zip(writers, raws, strict=True):
        one.path.parent.mkdir(parents=True, exist_ok=True)
        one.path.with_name(one.path.name + ".ahead").write_bytes(raw)
    run = started(live_home, session=session, whole=True, token_budget="none")
    command = [sys.executable, "-c", WRITER, str(seed), *(str(one.path) for one in writers)]
    process = subprocess.Popen(command)
    agents = ("main-session", "agent-a", "agent-b")

    def sizes() -> list[int]:
        return [one.path.stat().st_size if one.path.exists() else 0 for one in writers]

    def complete(raw: bytes, size: int) -> int:
        return raw[:size].count(b"\n")

    with Wire(live_home.socket) as wire:
        while process.poll() is None:
            before = sizes()
            answer = wire.ask(messages.Remaining(run=run, wait_ms=30_000))
            after = sizes()
            assert isinstance(answer, messages.RemainingAnswer)
            possible = {
                total(
                    {
                        number: (
                            b"\n".join(raw.split(b"\n")[:complete_lines]) + b"\n" if complete_lines else b"",
                            agent,
                        )
                        for number, (raw, complete_lines, agent) in enumerate(zip(raws, (x, y, z), agents, strict=True))
                    }
                )
                for x in range(complete(raws[0], before[0]), complete(raws[0], after[0]) + 1)
                for y in range(complete(raws[1], before[1]), complete(raws[1], after[1]) + 1)
                for z in range(complete(raws[2], before[2]), complete(raws[2], after[2]) + 1)
            }
            assert answer.spend.spent in possible
    assert process.returncode == 0
    whole = {number: (raw, agent) for number, (raw, agent) in enumerate(zip(raws, agents, strict=True))}
    assert live_home.spent(run) == total(whole)
    live_home.ok("run", "finish", "--run", run)


@pytest.fixture(scope="module")
def live_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = Home(tmp_path_factory.mktemp("live"))
    interstat = Interstat(home.interstat)
    home.start()
    yield home
    interstat.close()
    home.stop_all()


@pytest.mark.soak
def test_kill_while_transcripts_grow(home: Home, interstat: Interstat) -> None:
    """After twenty kills and one more restart, the totals equal a recount."""
    sessions = [f"s{number}" for number in range(4)]
    daemon = home.start()
    run = started(home, token_budget="none")
    for session in sessions:
        home.ok("run", "attach", "--run", run, "--session", session)
    chance = random.Random(7)
    raws = {}
    for session in sessions:
        raw = b"".join(
            encoded(
                assistant_line(
                    session, f"m{chance.randrange(300)} of {session}", tokens=(chance.randrange(99), n, 0, 0)
                )
            )
            for n in range(1500)
        )
        path = transcript(home, session).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".ahead").write_bytes(raw)
        raws[session] = raw
    command = [sys.executable, "-c", WRITER, "3", *(str(transcript(home, session).path) for session in sessions)]
    process = subprocess.Popen(command)
    try:
        for _ in range(20):
            time.sleep(chance.random() * 0.2)
            home.ask(messages.Remaining(run=run, wait_ms=30_000))
            daemon.kill()
            daemon = home.start()
        process.wait(timeout=60)
    finally:
        process.send_signal(signal.SIGKILL)
    expected = sum(total({0: (raw, "main-session")}) for raw in raws.values())
    assert home.spent(run) == expected
    daemon.kill()
    home.start()
    assert home.spent(run) == expected
