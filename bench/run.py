"""Measure fluxbudget: python bench/run.py [--quick] [--only PART]. A complete run writes its results (see results.py).

Machines are shared and noisy, so look at the ratios: both sides of a comparison are measured interleaved, in the same
run. Absolute times are for context. Nothing is asserted; a missed target is shown as missed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common import ROOT, Row, timed, world
from databases import LARGE, SESSION_ROWS, database
from estimates import errors_of_estimates
from events import hooks, push
from floor import floor
from fluxbudgetd.wire import messages
from harness import daemon as harness
from idle import idle
from ingest import insert_cost
from load import load, short_connections, warm_request
from processes import processes
from results import write
from transcripts import live_totals


def start_up(base: Path, rounds: int) -> Iterator[Row]:
    """Measure the time from the daemon's start to its first answer, with a lot of data and with none."""
    with world("empty", base) as empty, world("full", base) as full:
        database(base, full.interstat, LARGE)
        full.start()
        with harness.Wire(full.socket) as wire:
            for number in range(1000):
                answer = wire.ask(
                    messages.RunStart(
                        project_dir=f"/p/{number}", session=f"s{number}", whole=True, wait_ms=10_000, scope=f"b{number}"
                    )
                )
                assert isinstance(answer, messages.RunAnswer), answer
        full.stop_all()

        def begin(home: harness.Home) -> None:
            daemon = home.start(wait=False)
            while True:
                try:
                    with harness.Wire(home.socket) as wire:
                        wire.ask(messages.Ping())
                        return
                except OSError:
                    assert daemon.process.poll() is None
                    time.sleep(0.001)

        times: dict[str, list[float]] = {"empty": [], "full": []}
        for _ in range(rounds):
            for name, home in (("empty", empty), ("full", full)):
                times[name].append(timed(lambda: begin(home)))  # noqa: B023  used at once
                home.stop_all()
        seconds = statistics.median(times["full"])
        yield Row("ready with 1 000 000 rows and 1 000 active runs", f"{seconds:.2f} s", "≤ 1 s", seconds <= 1)
        ratio = seconds / statistics.median(times["empty"])
        yield Row("… ÷ ready with nothing", f"{ratio:.2f}", "", None)
        with world("full", base) as again:
            again.start()
            first = timed(lambda: again.ask(messages.Remaining(scope="b7", wait_ms=10_000)))
            whole = timed(lambda: again.ask(messages.Status(wait_ms=20_000), 30))
            yield Row("… then the first `remaining` of one of the runs", f"{first * 1e3:.1f} ms", "", None)
            yield Row("… then `status` of all 1 000", f"{whole * 1e3:.0f} ms", "", None)


def memory(base: Path) -> Iterator[Row]:
    """Measure resident memory with 100 active runs of 10 sessions each, after a `status` of all runs."""
    with world("memory", base) as home:
        database(base, home.interstat, 100 * 10 * SESSION_ROWS)
        daemon = home.start()
        harness.wait_for(lambda: daemon.status("VmRSS"), "the daemon")
        bare = daemon.status("VmRSS") / 1024
        with harness.Wire(home.socket) as wire:
            for number in range(100):
                run = harness.started(home, token_budget="none")
                for session in range(10):
                    wire.ask(messages.RunAttach(attach=f"s{number * 10 + session}", run=run, whole=True, wait_ms=5000))
            wire.ask(messages.Status(wait_ms=20_000), 30)
        used = daemon.status("VmRSS") / 1024
        yield Row("memory with 100 runs, 1 000 sessions, 20 000 rows", f"{used:.1f} MiB", "≤ 45 MiB", used <= 45)
        yield Row("… ÷ memory of an empty daemon", f"{used / bare:.2f} ({bare:.1f} MiB)", "", None)


PARTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "processes": lambda base, quick: processes(base, 20 if quick else 400),
    "floor": lambda base, quick: floor(base, 20 if quick else 400),
    "ingest": lambda base, quick: insert_cost(base, 200 if quick else 2000),
    "warm": lambda base, quick: warm_request(base, 2000 if quick else 20_000),
    "load": lambda base, quick: load(base, *((2, 0.3) if quick else (8, 0.6))),
    "connect": lambda base, quick: short_connections(base, *((2, 200) if quick else (10, 1000))),
    "start": lambda base, quick: start_up(base, 3 if quick else 11),
    "memory": lambda base, _quick: memory(base),
    "live": lambda base, quick: live_totals(base, 20 if quick else 200, 100 if quick else 1000),
    "push": lambda base, quick: push(base, 20 if quick else 200),
    "hooks": lambda base, quick: hooks(base, 200 if quick else 1000),
    "idle": lambda base, quick: idle(base, 5 if quick else 30),
    "estimates": lambda _base, quick: errors_of_estimates(3 if quick else 20),
}


def measured(parts: Iterable[str], quick: bool) -> Iterator[Row]:
    """Run these parts, each in its own directory, which is removed before the next part begins."""
    with tempfile.TemporaryDirectory(prefix="fluxbudget-bench-") as whole:
        for name in parts:
            with tempfile.TemporaryDirectory(dir=whole) as directory:
                yield from PARTS[name](Path(directory), quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; writes no file")
    parser.add_argument("--only", choices=PARTS, help="only this part; writes no file")
    options = parser.parse_args()
    rows: list[Row] = []
    for row in measured([options.only] if options.only else PARTS, options.quick):
        print(f"{row.what:<66} {row.figure:<52} {row.target}", flush=True)
        rows.append(row)
    if not options.quick and not options.only:
        write(rows, ROOT)


if __name__ == "__main__":
    main()
