"""A run is stale only because of a source that its own sessions are counted from; interstat is optional."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.daemon import Home, started
from harness.events import source_events
from harness.interstat import Interstat
from harness.live import transcript


def removed(path: Path) -> None:
    """Remove the database."""
    path.unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def replaced(path: Path) -> None:
    path.write_bytes(b"this is not a database\n" * 400)


def drifted(path: Path) -> None:
    interstat = Interstat(path)
    interstat.connection.execute("ALTER TABLE agent_runs RENAME COLUMN input_tokens TO in_tokens")
    interstat.close()


FAULTS = [removed, emptied, damaged, replaced, drifted]


def complete(interstat: Interstat) -> None:
    """Fill the database, so that there are pages to damage, and leave it in one file."""
    for _ in range(100):
        interstat.insert("elsewhere", description="x" * 100)
    interstat.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    interstat.close()
    for path in interstat.path.parent.glob("metrics.db-*"):
        path.unlink()


class Runs:
    """One run for each way in which sessions count, and what is spent in it."""

    def __init__(self, home: Home, interstat: Interstat) -> None:
        self.home = home
        self.ids = {
            "transcripts": started(home, session="t1"),
            "transcripts and scope": started(home, session="t2", scope="b2"),
            "rows": started(home, session="r1"),
            "both": started(home, session="t3"),
            "nothing yet": started(home, session="n1"),
            "no session": started(home, scope="b4"),
        }
        home.ok("run", "attach", "--run", self.ids["both"], "--session", "r2")
        for session in ("t1", "t2", "t3"):
            transcript(home, session).response(session, request=session, tokens=(10, 0, 0, 0))
        for session in ("r1", "r2"):
            interstat.insert(session, input_tokens=100, output_tokens=0)
        complete(interstat)
        self.spent = {"transcripts": 10, "transcripts and scope": 10, "rows": 100, "both": 110, "nothing yet": 0}
        self.spent["no session"] = 0
        assert self.stale() == set()

    def stale(self) -> set[str]:
        """Return which runs are stale; require that all have the same numbers as ever."""
        found = set()
        for name, run in self.ids.items():
            spend = self.home.spend(run)
            assert spend.spent == self.spent[name], name
            assert spend.stale == bool(spend.stale_why and spend.stale_why.startswith("interstat: ")), spend
            if spend.stale:
                found.add(name)
        return found


@pytest.mark.parametrize("is_chosen", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_only_runs_that_count_by_interstat_are_stale(
    home: Home, interstat: Interstat, fault: Callable[[Path], None], *, is_chosen: bool
) -> None:
    """A session without usage may have rows, unless there are none and the database need not exist."""
    home.start(*(("--interstat-db", str(home.interstat)) if is_chosen else ()))
    runs = Runs(home, interstat)
    fault(home.interstat)
    has_no_rows = fault in (removed, emptied)
    expected = {"rows", "both"} if has_no_rows and not is_chosen else {"rows", "both", "nothing yet"}
    for _ in range(2):
        assert runs.stale() == expected
    assert "stale: interstat: " in home.ok("status")
    assert home.ctl("doctor").returncode == 1
    assert source_events(home) == ["source.degraded"]


@pytest.mark.parametrize("fault", FAULTS)
def test_interstat_that_no_session_counts_by_is_no_problem(
    home: Home, interstat: Interstat, fault: Callable[[Path], None]
) -> None:
    """No run is stale, no event is written, and `doctor` finds no problem, until a session may count by it."""
    home.start()
    run = started(home, session="t1", scope="b1")
    transcript(home, "t1").response("m1", tokens=(10, 0, 0, 0))
    complete(interstat)
    fault(home.interstat)
    assert home.spent(run) == 10
    assert "stale" not in home.ok("status")
    assert home.ok("doctor").endswith("no problems found")
    assert source_events(home) == []
    # (Two runs of one directory would be a problem of their own.)
    other = home.ok("run", "start", "--session", "n1", "--project", str(home.root))
    is_fault = fault not in (removed, emptied)
    assert home.spend(other).stale == is_fault
    assert ("stale: interstat" in home.ok("status")) == is_fault
    assert home.ctl("doctor").returncode == int(is_fault)
    assert home.spent(run) == 10
    transcript(home, "n1").response("m2", request="r2", tokens=(1, 0, 0, 0))
    assert home.spent(other) == 1
    assert home.ctl("doctor").returncode == 0


@pytest.mark.parametrize("by_variable", [False, True])
def test_configured_database_must_exist(home: Home, *, by_variable: bool) -> None:
    """Its absence is a problem even if no session needs it, but only sessions that may need it are stale."""
    path = home.root / "elsewhere.db"
    if by_variable:
        home.start(prefix=("env", f"INTERSTAT_DB={path}"))
    else:
        home.start("--interstat-db", str(path))
    doctor = home.ctl("doctor")
    assert (doctor.returncode, f"problem   interstat: absent: the file does not exist ({path})" in doctor.stdout) == (
        1,
        True,
    )
    run = started(home, session="t1")
    transcript(home, "t1").response("m1", tokens=(10, 0, 0, 0))
    assert home.spent(run) == 10
    assert home.spend(started(home, session="n1")).stale


def test_lock_concerns_only_sessions_that_count_by_rows(home: Home) -> None:
    interstat = Interstat(home.interstat, journal="delete")
    home.start()
    rows, live = started(home, session="r1"), started(home, session="t1", scope="b1")
    interstat.insert("r1", input_tokens=7, output_tokens=3)
    transcript(home, "t1").response("m1", tokens=(10, 0, 0, 0))
    assert (home.spent(rows), home.spent(live)) == (10, 10)
    interstat.connection.execute("BEGIN EXCLUSIVE")
    transcript(home, "t1").response("m2", request="r2", tokens=(1, 0, 0, 0))
    assert home.spend(rows).stale
    assert home.spent(live) == 11
    interstat.connection.execute("COMMIT")
    assert home.spent(rows) == 10
    interstat.close()
