"""Measure fluxbudget: python bench/run.py [--quick]; writes bench/RESULTS.md.

Machines are shared and noisy, so what counts is a ratio: both sides of a comparison run in this one run, interleaved.
Absolute times explain. Nothing here is asserted; a missed target is shown as missed.
"""

import argparse
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, Row, spread, timed, world
from fluxbudgetd.wire import messages
from harness import daemon as harness
from harness.interstat import FULL_SCHEMA
from telling import hooks, push
from transcripts import live_totals

SMALL, LARGE = 10_000, 1_000_000
SESSION_ROWS = 20


def make_database(path: Path, rows: int) -> None:
    """Write a database of so many rows, in sessions of twenty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.executescript(FULL_SCHEMA)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens, model) "
        "VALUES ('2026-01-01T00:00:00Z', ?, 'interflux:fd-quality', 100, 10, 'claude-opus-4-6')",
        ((f"s{number // SESSION_ROWS}",) for number in range(rows)),
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def insert_cost(base: Path, rounds: int) -> Iterator[Row]:
    """Commit one row, ask what remains: in a large file against a small one, turn by turn."""
    with world("small", base) as small, world("large", base) as large:
        sides: list[tuple[harness.Wire, str, sqlite3.Connection, list[float], list[float]]] = []
        for home, rows in ((small, SMALL), (large, LARGE)):
            make_database(home.interstat, rows)
            home.start()
            run = harness.started(home, session="s5", scope="b1", token_budget="none")
            writer = sqlite3.connect(home.interstat, isolation_level=None)
            writer.execute("PRAGMA synchronous=NORMAL")
            sides.append((harness.Wire(home.socket), run, writer, [], []))
        for number in range(rounds):
            for wire, run, writer, commits, answers in sides[:: 1 if number % 2 else -1]:
                statement = (
                    "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens)"
                    " VALUES ('2026-01-01T00:00:00Z', ?, 'x', 1, 1)"
                )
                # Half of the rows are somebody else's: the run's own session is read all the same.
                session = "s5" if number % 20 == 0 else "s6"
                commits.append(timed(lambda: writer.execute(statement, (session,))))  # noqa: B023  used at once
                answers.append(timed(lambda: wire.ask(messages.Remaining(run=run, wait_ms=5000))))  # noqa: B023
        (_, _, _, _, few), (_, _, _, _, many) = sides
        ratio = statistics.median(many) / statistics.median(few)
        yield Row(
            "answer after one insert, 1 000 000-row file ÷ 10 000-row file", f"{ratio:.2f}", "≤ 1.5", ratio <= 1.5
        )
        yield Row("… in the 10 000-row file", spread(few), "", None)
        yield Row("… in the 1 000 000-row file", spread(many), "", None)
        for wire, _, writer, _, _ in sides:
            wire.socket.close()
            writer.close()


ECHO = """
import socket, sys
import anyio
async def main():
    async with await anyio.create_unix_listener(sys.argv[1]) as listener:
        async def echo(stream):
            async with stream:
                try:
                    while True:
                        await stream.send(await stream.receive())
                except anyio.EndOfStream:
                    pass
        await listener.serve(echo)
anyio.run(main)
"""


def warm_request(base: Path, rounds: int) -> Iterator[Row]:
    """Ask when nothing has changed, beside a bare echo through the same kind of server."""
    with world("warm", base) as home:
        make_database(home.interstat, SMALL)
        # The times of a file that was written within the last two seconds are not relied on: it is read each time.
        time.sleep(2.5)
        home.start()
        run = harness.started(home, session="s5", token_budget="none")
        path = str(base / "echo.sock")
        echo = subprocess.Popen([sys.executable, "-c", ECHO, path])
        harness.wait_for(lambda: os.path.exists(path), "the echo server")
        with harness.Wire(home.socket) as wire, socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            request = messages.Remaining(run=run)
            size = len(messages.encode(request)) + 4
            wire.ask(request)

            def round_trip() -> None:
                peer.sendall(b"x" * size)
                peer.recv(65536)

            ours, bare = [], []
            for _ in range(rounds):
                ours.append(timed(lambda: wire.ask(request)))
                bare.append(timed(round_trip))
        echo.kill()
        echo.wait()
        p50 = statistics.median(ours) * 1e6
        yield Row("warm request, p50", spread(ours), "≤ 80 µs", p50 <= 80)
        yield Row(
            "… ÷ a bare echo through an anyio server",
            f"{statistics.median(ours) / statistics.median(bare):.2f}",
            "",
            None,
        )
        yield Row("… the echo itself", spread(bare), "", None)


def start_up(base: Path, rounds: int) -> Iterator[Row]:
    """From the start of the process to the first answer: a large world against an empty one."""
    with world("empty", base) as empty, world("full", base) as full:
        make_database(full.interstat, LARGE)
        full.start()
        with harness.Wire(full.socket) as wire:
            for number in range(1000):
                answer = wire.ask(
                    messages.RunStart(
                        project_dir=f"/p/{number}", session=f"s{number}", wait_ms=10_000, scope=f"b{number}"
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
    """Resident memory with 100 active runs of 10 sessions each, after a `status` of all."""
    with world("memory", base) as home:
        make_database(home.interstat, 100 * 10 * SESSION_ROWS)
        daemon = home.start()
        harness.wait_for(lambda: daemon.status("VmRSS"), "the daemon")
        bare = daemon.status("VmRSS") / 1024
        with harness.Wire(home.socket) as wire:
            for number in range(100):
                run = harness.started(home, token_budget="none")
                for session in range(10):
                    wire.ask(messages.RunAttach(attach=f"s{number * 10 + session}", run=run, wait_ms=5000))
            wire.ask(messages.Status(wait_ms=20_000), 30)
        used = daemon.status("VmRSS") / 1024
        yield Row("memory with 100 runs, 1 000 sessions, 20 000 rows", f"{used:.1f} MiB", "≤ 45 MiB", used <= 45)
        yield Row("… ÷ memory with nothing", f"{used / bare:.2f} ({bare:.1f} MiB)", "", None)


def switches(pid: int) -> int:
    """Return how often the process's threads have given up the processor by themselves."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def processor(pid: int) -> float:
    """Return the seconds of processor time used, by threads that have ended, too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(base: Path, seconds: float) -> Iterator[Row]:
    """Wake-ups and processor time when nothing happens, without and with active runs."""
    with world("idle", base) as home:
        make_database(home.interstat, SMALL)
        daemon = home.start()
        home.ok("status")
        for name, runs, target in (("no active run", 0, "0 wake-ups"), ("100 active runs", 100, "≤ 0.3 % of a core")):
            for number in range(runs):
                harness.started(home, session=f"s{number}")
            time.sleep(12)  # idle worker threads end after ten seconds; their counts go with them
            woken, used = switches(daemon.process.pid), processor(daemon.process.pid)
            time.sleep(seconds)
            per_second = (switches(daemon.process.pid) - woken) / seconds
            share = (processor(daemon.process.pid) - used) / seconds * 100
            met = per_second == 0 if runs == 0 else share <= 0.3
            yield Row(f"idle, {name}", f"{per_second:.1f} wake-ups/s, {share:.2f} % of a core", target, met)


def table(rows: list[Row]) -> str:
    lines = ["| what | figure | target | |", "|---|---|---|---|"]
    marks = {True: "met", False: "**missed**", None: ""}
    lines += [f"| {row.what} | {row.figure} | {row.target} | {marks[row.met]} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look; writes no file")
    quick = parser.parse_args().quick
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fluxbudget-bench-") as directory:
        base = Path(directory)
        for part in (
            insert_cost(base, 200 if quick else 2000),
            warm_request(base, 2000 if quick else 20_000),
            start_up(base, 3 if quick else 11),
            memory(base),
            live_totals(base, 20 if quick else 200, 100 if quick else 1000),
            push(base, 20 if quick else 200),
            hooks(base, 200 if quick else 1000),
            idle(base, 5 if quick else 30),
        ):
            for row in part:
                print(f"{row.what:<66} {row.figure:<52} {row.target}", flush=True)
                rows.append(row)
    if quick:
        return
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    (ROOT / "bench" / "RESULTS.md").write_text(
        f"# Figures\n\nWritten by `make bench` ({versions}, {os.cpu_count()} cores, {platform.machine()}).\n"
        f"Ratios are of interleaved runs; absolute times only explain.\n\n{table(rows)}\n"
    )


if __name__ == "__main__":
    main()
