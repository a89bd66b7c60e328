"""interstat's file in every state: the daemon names the state, marks its numbers as stale, and recovers by itself."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.daemon import Daemon, Home, started, wait_for
from harness.descriptors import open_files
from harness.events import source_events
from harness.interstat import FULL_SCHEMA, Interstat, stamp
from harness.privilege import OBEDIENT


def state(home: Home) -> str:
    source, _ = home.json("status")["sources"]
    assert source["state"] == "ok" or (source["hint"] and source["detail"]), source
    return str(source["state"])


def seen(home: Home, run: str) -> tuple[int, bool]:
    spend = home.spend(run)
    assert spend.stale == bool(spend.stale_why)
    return spend.spent, spend.stale


def test_absent_at_start_then_created(home: Home) -> None:
    """Interstat is optional, so its absence is not a fault, and nothing mentions it but the state itself."""
    home.start()
    run = started(home, session="s1")
    assert seen(home, run) == (0, False)
    assert state(home) == "absent"
    result = home.ctl("remaining", "--run", run)
    assert (result.returncode, result.stdout, result.stderr) == (0, "250000\n", "")
    interstat = Interstat(home.interstat)
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    assert state(home) == "ok"
    assert source_events(home) == []
    interstat.close()


def test_directory_absent_at_start(home: Home) -> None:
    home.interstat.parent.rmdir()
    home.interstat.parent.parent.rmdir()
    home.start()
    run = started(home, session="s1")
    assert seen(home, run) == (0, False)
    interstat = Interstat(home.interstat)
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    interstat.close()


def test_deleted_keeps_the_last_known_numbers_across_a_restart(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    run = started(home, scope="b1", session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    interstat.insert("s2", bead_id="b1", input_tokens=100, output_tokens=0)
    assert seen(home, run) == (110, False)
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    assert seen(home, run) == (110, True)
    daemon.kill()
    home.start()
    assert seen(home, run) == (110, True)
    assert state(home) == "absent"
    assert home.ok("remaining", "--session", "s2") == str(250_000 - 110)
    again = Interstat(home.interstat)
    again.insert("s1", input_tokens=1, output_tokens=0)
    assert seen(home, run) == (1, False)
    again.close()


def test_replaced_by_another_file(home: Home, interstat: Interstat, daemon: Daemon, tmp_path: Path) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    other = Interstat(tmp_path / "other" / "metrics.db")
    other.insert("s1", input_tokens=500, output_tokens=0)
    other.close()
    interstat.close()
    for path in home.interstat.parent.glob("metrics.db-*"):
        path.unlink()
    os.replace(tmp_path / "other" / "metrics.db", home.interstat)
    assert seen(home, run) == (500, False)
    live = Interstat(home.interstat)
    live.insert("s1", input_tokens=1, output_tokens=0)
    assert seen(home, run) == (501, False)
    live.close()


def test_replaced_by_a_file_with_a_live_writer(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    live = Interstat(home.interstat)
    for total in range(1, 6):
        live.insert("s1", input_tokens=1, output_tokens=0)
        assert seen(home, run) == (total, False)
    live.close()


def test_locked_and_released(home: Home) -> None:
    """The lock is that of a writer with a rollback journal."""
    interstat = Interstat(home.interstat, journal="delete")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    home.start()
    run = started(home, session="s1", whole=True)
    assert seen(home, run) == (10, False)
    interstat.connection.execute("BEGIN EXCLUSIVE")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    for _ in range(3):
        assert seen(home, run) == (10, True)
    assert state(home) == "locked"
    interstat.connection.execute("COMMIT")
    assert seen(home, run) == (11, False)
    assert source_events(home) == ["source.degraded", "source.recovered"]
    interstat.close()


def test_locked_from_before_the_start(home: Home, interstat: Interstat) -> None:
    """The lock is that of a program with exclusive access to a WAL database."""
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    interstat.connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    home.start()
    run = started(home, session="s1", whole=True)
    assert seen(home, run) == (0, True)
    assert state(home) == "locked"
    interstat.close()
    assert seen(home, run) == (11, False)


def damage_middle(path: Path) -> None:
    """Overwrite the table's pages, but neither the header nor the schema."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is not a database, whatever its name says\n" * 400)


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_middle, {"corrupt"}),
        (damage_header, {"not_a_database"}),
        (cut, {"corrupt"}),
        (empty, {"empty"}),
    ],
)
def test_damaged_then_repaired(
    home: Home, interstat: Interstat, daemon: Daemon, damage: Callable[[Path], None], expected: set[str]
) -> None:
    run = started(home, session="s1")
    for _ in range(200):
        interstat.insert("s1", description="x" * 100, input_tokens=1, output_tokens=0)
    assert seen(home, run) == (200, False)
    interstat.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    interstat.close()
    good = home.root / "good.db"
    shutil.copy(home.interstat, good)
    for path in home.interstat.parent.glob("metrics.db-*"):
        path.unlink()
    damage(home.interstat)
    for _ in range(2):
        assert seen(home, run) == (200, True)
    assert state(home) in expected
    doctor = home.ctl("doctor")
    assert (doctor.returncode, "interstat: " in doctor.stdout) == (1, True)
    shutil.copy(good, home.interstat)
    assert seen(home, run) == (200, False)
    live = Interstat(home.interstat)
    live.insert("s1", input_tokens=1, output_tokens=0)
    assert seen(home, run) == (201, False)
    live.close()


def test_required_column_renamed(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Schema drift is reported, not read as an empty database."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    interstat.connection.execute("ALTER TABLE agent_runs RENAME COLUMN input_tokens TO in_tokens")
    assert seen(home, run) == (10, True)
    assert state(home) == "schema_drift"
    assert "input_tokens is missing" in home.ctl("doctor").stdout
    interstat.connection.execute("ALTER TABLE agent_runs RENAME COLUMN in_tokens TO input_tokens")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    assert seen(home, run) == (11, False)


@pytest.mark.parametrize(
    "schema",
    [
        FULL_SCHEMA.replace("user_version = 2", "user_version = 0"),
        FULL_SCHEMA.replace("agent_runs", "agent_runs_v3"),
    ],
)
def test_other_schema_drift(home: Home, schema: str) -> None:
    interstat = Interstat(home.interstat, schema)
    home.start()
    run = started(home, session="s1")
    assert seen(home, run) == (0, True)
    assert state(home) == "schema_drift"
    interstat.close()


def test_directory_without_write_permission_at_rest(home: Home, interstat: Interstat) -> None:
    """A WAL database that no program has open is read without creating files beside it."""
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    interstat.close()
    assert os.listdir(home.interstat.parent) == ["metrics.db"]
    home.interstat.parent.chmod(0o555)
    try:
        home.start(prefix=OBEDIENT)
        run = started(home, session="s1", whole=True)
        assert seen(home, run) == (10, False)
        assert os.listdir(home.interstat.parent) == ["metrics.db"]
    finally:
        home.interstat.parent.chmod(0o755)


def test_directory_without_write_permission_with_a_live_writer(home: Home, interstat: Interstat) -> None:
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    home.interstat.parent.chmod(0o555)
    try:
        home.start(prefix=OBEDIENT)
        run = started(home, session="s1", whole=True)
        assert seen(home, run) == (10, False)
        interstat.insert("s1", input_tokens=1, output_tokens=0)
        assert seen(home, run) == (11, False)
    finally:
        home.interstat.parent.chmod(0o755)


def test_file_without_read_permission(home: Home, interstat: Interstat) -> None:
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    interstat.close()
    home.interstat.chmod(0)
    home.start(prefix=OBEDIENT)
    run = started(home, session="s1", whole=True)
    assert seen(home, run) == (0, True)
    assert state(home) == "unreadable"
    home.interstat.chmod(0o600)
    assert seen(home, run) == (10, False)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_its_place(home: Home, make: Callable[[Path], None]) -> None:
    """A directory is unreadable, and so is a FIFO, which would block when opened."""
    make(home.interstat)
    home.start()
    run = started(home, session="s1")
    assert seen(home, run) == (0, True)
    assert state(home) == "unreadable"


def test_nothing_is_written_beside_the_database(home: Home, interstat: Interstat) -> None:
    """Without a writer the directory keeps its one file; with one it has only the writer's files."""
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    interstat.close()
    before = home.interstat.read_bytes()
    daemon = home.start()
    run = started(home, session="s1", whole=True)
    assert seen(home, run) == (10, False)
    assert os.listdir(home.interstat.parent) == ["metrics.db"]
    daemon.stop()
    assert os.listdir(home.interstat.parent) == ["metrics.db"]
    assert home.interstat.read_bytes() == before


def test_no_read_transaction_is_left_open(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A writer can empty the WAL while the daemon is idle."""
    run = started(home, session="s1")
    for total in range(1, 20):
        interstat.insert("s1", input_tokens=1, output_tokens=0)
        assert seen(home, run) == (total, False)
        (busy, _, _) = interstat.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0


def test_file_is_closed_while_no_run_is_active(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every request closes the file after reading it, so that its last writer can remove the WAL."""

    def is_open() -> bool:
        return any(target.startswith(str(home.interstat)) for target in open_files(daemon.process.pid))

    run = started(home, session="s1", scope="b1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    assert is_open()
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: not is_open(), "the daemon to close the file")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    for arguments in (["status"], ["doctor"], ["remaining", "--run", run], ["estimates"]):
        home.ctl(*arguments)
        assert not is_open(), arguments
    assert seen(home, run) == (11, False)
    hook = {"hook_event_name": "UserPromptSubmit", "session_id": "unknown", "cwd": str(home.project)}
    home.ctl("hook", "--timeout", "60", stdin=json.dumps(hook))
    assert not is_open()
    interstat.close()
    assert not home.interstat.with_name("metrics.db-wal").exists()


def test_wal_removed_under_the_daemon(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """If the -wal file is a different one, the database is opened again."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)
    assert seen(home, run) == (10, False)
    interstat.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    interstat.close()
    for path in home.interstat.parent.glob("metrics.db-*"):
        path.unlink()
    again = Interstat(home.interstat)
    again.insert("s1", input_tokens=1, output_tokens=0)
    assert seen(home, run) == (11, False)
    again.close()


def test_commits_reach_the_ledger_without_a_request(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A run is active. The rows survive the loss of the database."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=7, output_tokens=3)

    def kept() -> bool:
        connection = sqlite3.connect(home.state / "ledger.db")
        try:
            return bool(connection.execute("SELECT 1 FROM usage WHERE input = 7").fetchone())
        finally:
            connection.close()

    wait_for(kept, "the watcher to notice")
    daemon.kill()
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.start()
    assert seen(home, run) == (10, True)


def test_database_may_be_a_link(home: Home) -> None:
    """Its WAL is beside the file that the link points to. Commits there are noticed, and so is a new target."""
    places = [home.root / name / "metrics.db" for name in ("one", "two")]
    writers = [Interstat(place) for place in places]
    home.interstat.symlink_to(places[0])
    home.start()
    run = started(home, session="s1")
    for total in range(1, 6):
        writers[0].insert("s1", input_tokens=1, output_tokens=0)
        assert seen(home, run) == (total, False)
    writers[1].insert("s1", input_tokens=70, output_tokens=0)
    home.interstat.unlink()
    home.interstat.symlink_to(places[1])
    assert seen(home, run) == (70, False)
    for writer in writers:
        writer.close()


def test_commits_of_short_connections_are_noticed(home: Home, interstat: Interstat) -> None:
    """Closing each connection removes the WAL, so only the main file shows that there was a commit."""
    interstat.close()
    home.start()
    run = started(home, session="s1", whole=True)
    for total in range(1, 200):
        visitor = sqlite3.connect(home.interstat, isolation_level=None)
        visitor.execute(
            "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens) VALUES (?, 's1', 'a', 1)",
            (stamp(),),
        )
        visitor.close()
        assert seen(home, run) == (total, False)


def test_ended_run_is_followed_for_48_hours(home: Home, interstat: Interstat) -> None:
    """After that, its last numbers stay and are not stale."""
    row = interstat.insert("s1", bead_id="b1", input_tokens=10, output_tokens=0)
    daemon = home.start()
    run = started(home, scope="b1", session="s2")
    interstat.insert("s2", input_tokens=5, output_tokens=0)
    assert seen(home, run) == (15, False)
    home.ok("run", "finish", "--run", run)
    daemon.stop()
    interstat.update(row, input_tokens=500)
    for hours, expected in ((49, 15), (47, 505)):
        ledger = sqlite3.connect(home.state / "ledger.db")
        ended = int((time.time() - hours * 3600) * 1e6)
        ledger.execute("UPDATE runs SET ended_at = ?, run = json_set(run, '$.ended_at', ?)", (ended, ended))
        ledger.commit()
        ledger.close()
        again = home.start()
        assert seen(home, run) == (expected, False)
        again.stop()


def test_path_that_is_not_utf_8(home: Home) -> None:
    """The database is read, and every command shows its path."""
    odd = home.root / os.fsdecode(b"odd-\xff") / "metrics.db"
    interstat = Interstat(odd)
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    home.start("--interstat-db", str(odd))
    run = started(home, session="s1", whole=True)
    assert seen(home, run) == (5, False)
    for arguments in (("doctor",), ("status",), ("run", "show", "--run", run)):
        assert home.ctl(*arguments).returncode == 0
    assert "odd-\\xff" in home.ok("doctor")
    interstat.close()
