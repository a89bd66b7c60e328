"""Transcripts: the first read of a large set, a read from saved positions, and the cost of one more response."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from common import Row, spread, timed, world
from fluxbudgetd.wire import messages
from harness import daemon as harness
from harness.interstat import Interstat
from harness.transcripts import Transcript, assistant_line, encoded

_MEGABYTES = 2.5
_TOOL_OUTPUT = "x" * 6000


def _session(number: int, megabytes: float) -> bytes:
    """Return a session's own transcript. As in real ones, most of it is tool output."""
    session, parts, size, count = f"s{number}", [], 0, 0
    while size < megabytes * 1e6:
        count += 1
        tool = {"type": "user", "sessionId": session, "toolUseResult": _TOOL_OUTPUT, "message": {"role": "user"}}
        parts.append(json.dumps(tool).encode() + b"\n")
        parts += [  # two lines of one response
            encoded(assistant_line(session, f"m{number}-{count}", tokens=(100, output, 9000, 400)))
            for output in (3, 250)
        ]
        size += sum(map(len, parts[-3:]))
    return b"".join(parts)


def _whole(home: harness.Home, run: str, expected: int | None) -> int:
    """Ask until the run's numbers are fresh, and return what is spent."""
    while True:
        answer = home.ask(messages.Remaining(run=run, wait_ms=20_000), 60)
        if isinstance(answer, messages.RemainingAnswer) and not answer.spend.stale:
            assert expected in (None, answer.spend.spent), answer
            return answer.spend.spent


def live_totals(base: Path, sessions: int, rounds: int) -> Iterator[Row]:
    """Read many transcripts, without and with saved positions; then append a response to a small and to a large one."""
    with world("live", base) as home:
        Interstat(home.interstat).close()
        claude = home.root / "claude"
        total = 0
        for number in range(sessions):
            raw = _session(number, _MEGABYTES)
            Transcript(claude, f"s{number}").line(raw)
            total += len(raw)
        daemon = home.start()
        run = harness.started(home, token_budget="none")
        spent = 0

        def first() -> None:
            nonlocal spent
            with harness.Wire(home.socket) as wire:
                for number in range(sessions):
                    wire.ask(messages.RunAttach(attach=f"s{number}", run=run, whole=True, wait_ms=10_000))
            spent = _whole(home, run, None)

        seconds = timed(first)
        name = f"{total / 1e6:.0f} MB of transcripts in {sessions} sessions"
        yield Row(
            f"{name}, attached and read for the first time",
            f"{seconds:.1f} s ({total / seconds / 1e6:.0f} MB/s)",
            "",
            None,
        )
        peak, used = daemon.status("VmHWM") / 1024, daemon.status("VmRSS") / 1024
        yield Row("… memory afterwards (at most)", f"{used:.1f} MiB ({peak:.1f} MiB)", "", None)
        home.stop_all()
        daemon = home.start()
        again = timed(lambda: _whole(home, run, spent))
        yield Row("… the same with saved positions", f"{again * 1e3:.0f} ms", "", None)
        yield Row("… memory then", f"{daemon.status('VmRSS') / 1024:.1f} MiB", "", None)
    yield from _append_cost(base, rounds)


def _append_cost(base: Path, rounds: int) -> Iterator[Row]:
    """Append one response and ask what remains, with a large and a small transcript in turn."""
    with world("append", base) as home:
        Interstat(home.interstat).close()
        claude = home.root / "claude"
        home.start()
        sides: list[tuple[Transcript, str, list[float]]] = []
        with harness.Wire(home.socket) as wire:
            for number, megabytes in ((0, 0.1), (1, 100)):
                writer = Transcript(claude, f"s{number}")
                writer.line(_session(number, megabytes))
                run = harness.started(home, session=writer.session, whole=True, token_budget="none")
                _whole(home, run, None)
                sides.append((writer, run, []))
            for turn in range(rounds):
                for writer, run, times in sides[:: 1 if turn % 2 else -1]:
                    writer.response(f"new-{turn}", tokens=(1, 1, 0, 0))
                    request = messages.Remaining(run=run, wait_ms=10_000)
                    times.append(timed(lambda: wire.ask(request)))  # noqa: B023  used at once
        (_, _, few), (_, _, many) = sides
        ratio = statistics.median(many) / statistics.median(few)
        yield Row("answer after one response, 100 MB transcript ÷ 100 kB one", f"{ratio:.2f}", "", None)
        yield Row("… in the 100 kB transcript", spread(few), "", None)
        yield Row("… in the 100 MB transcript", spread(many), "", None)
