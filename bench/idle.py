"""What an idle daemon costs: wake-ups and processor time."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common import Row, world
from databases import SMALL, database
from harness import daemon as harness

#: How often threads are sampled. Wake-ups between a thread's last sample and its end are not counted.
_SAMPLE_SECONDS = 0.25


def switches(pid: int) -> dict[int, int]:
    """Return the number of voluntary context switches of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
            continue
        found[int(task.name)] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return found


def wake_ups(pid: int, seconds: float) -> Counter[int]:
    """Count the wake-ups of each thread for `seconds`, including threads that start or end meanwhile."""
    counted: Counter[int] = Counter()
    last = switches(pid)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(_SAMPLE_SECONDS, left))
        now = switches(pid)
        counted.update({thread: count - last.get(thread, 0) for thread, count in now.items()})
        last = now
    return counted


def processor(pid: int) -> float:
    """Return the processor time used so far in seconds, including threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(base: Path, seconds: float) -> Iterator[Row]:
    """Measure wake-ups and processor time when nothing happens, without and with active runs."""
    with world("idle", base) as home:
        database(base, home.interstat, SMALL)
        daemon = home.start()
        home.ok("status")
        for name, runs, target in (("no active run", 0, "0 wake-ups"), ("100 active runs", 100, "≤ 0.3 % of a core")):
            for number in range(runs):
                harness.started(home, session=f"s{number}")
            time.sleep(12)  # idle worker threads end after ten seconds
            used = processor(daemon.process.pid)
            counted = wake_ups(daemon.process.pid, seconds)
            share = (processor(daemon.process.pid) - used) / seconds * 100
            met = counted.total() == 0 if runs == 0 else share <= 0.3
            figure = f"{counted.total() / seconds:.1f} wake-ups/s, {share:.2f} % of a core"
            yield Row(f"idle, {name}", figure, target, met)
            if runs:
                loop = counted.pop(daemon.process.pid)
                watcher = max(counted.values())
                others = (counted.total() - watcher) / seconds
                figure = f"{watcher / seconds:.1f}/s (the event loop {loop / seconds:.2f}/s, all others {others:.2f}/s)"
                yield Row("… of which the file watcher (polls every 50 ms)", figure, "", None)
