"""intercore's database is read while `ic` writes to it: no write fails, and no reading mixes two commits."""

import os
from pathlib import Path

import pytest

from fluxbudgetd.model import IntercoreReading
from fluxbudgetd.sources.intercore import IntercoreDatabase
from harness.ic_updater import RUNS, prepare, writing
from harness.intercore import IcProject
from harness.mounts import run_on_whole_seconds, why_no_whole_seconds
from harness.privilege import needs_root

COMMITS = 1000


def number(reading: IntercoreReading) -> int:
    """Return the number that a commit has written to all three rows."""
    numbers = {reading.runs[run].token_budget for run in RUNS} | {reading.dispatches[RUNS[1]][0].input}
    assert len(numbers) == 1, numbers
    (found,) = numbers
    assert isinstance(found, int)
    return found


def readings(project: IcProject, commits: int) -> list[int]:
    """Read whenever the stamp has changed, until the writer has ended, and once more."""
    database = IntercoreDatabase(str(project.database))
    found = []
    last = None
    with writing(project, commits) as writer:
        is_over = False
        while not is_over:
            is_over = writer.poll() is not None
            stamp = database.stamp()
            if stamp == last:
                continue
            reading = database.read({})
            if reading.status.is_readable:
                found.append(number(reading))
                last = stamp
            else:
                assert reading.status.state == "locked", reading.status
                assert not is_over, reading.status
    return found


def test_no_write_fails_and_no_reading_is_wrong(tmp_path: Path) -> None:
    """Readings never go back, and the last one has the last commit. After the next call of `ic`, no WAL is left."""
    project = IcProject(tmp_path)
    prepare(project)
    found = readings(project, COMMITS)
    assert found == sorted(found)
    assert found[-1] == COMMITS
    assert len(set(found)) > 10
    project.execute("UPDATE runs SET goal = 'x'")
    assert os.listdir(project.directory) == ["intercore.db"]


@pytest.mark.soak
def test_5_000_commits(tmp_path: Path) -> None:
    project = IcProject(tmp_path)
    prepare(project)
    found = readings(project, 5 * COMMITS)
    assert found == sorted(found)
    assert found[-1] == 5 * COMMITS
    assert project.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


_BETWEEN = """
import sys
from pathlib import Path
from fluxbudgetd.sources.intercore import IntercoreDatabase
from fluxbudgetd.sources.intercore.opening import read_consistently
from harness.ic_updater import RUNS, prepare
from harness.intercore import IcProject

root = Path(sys.argv[1])
assert root.stat().st_ctime_ns % 1_000_000_000 == 0, "the file system does not keep whole seconds"
project = IcProject(root)
prepare(project)
budgets = [f"SELECT token_budget FROM runs WHERE id = '{run}'" for run in RUNS]
number = 1
calls = 0

def commit():
    global number
    number += 1
    project.execute("UPDATE runs SET token_budget = ? WHERE id IN (?, ?)", number, *RUNS)

def read(connection):
    global calls
    calls += 1
    first = connection.execute(budgets[0]).fetchone()
    if calls == 1:
        commit()
    return first + connection.execute(budgets[1]).fetchone()

database = IntercoreDatabase(str(project.database))
for _ in range(20):
    calls = 0
    found = read_consistently(str(project.database), read)
    assert found == (number, number), (found, number)
    before = database.stamp()
    commit()
    assert database.stamp() != before
"""


@needs_root("mount a file system", why_no_whole_seconds)
def test_commits_that_leave_no_trace_in_the_times_of_the_file(tmp_path: Path) -> None:
    """A read during which a commit happens does not count, and the commit changes the stamp."""
    run_on_whole_seconds(tmp_path, _BETWEEN)
