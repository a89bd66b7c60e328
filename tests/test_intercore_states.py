"""intercore's database in every state: the state is named, nothing is read, and reading recovers."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fluxbudgetd.model import IntercoreReading
from fluxbudgetd.sources.databases import state_of
from fluxbudgetd.sources.intercore import IntercoreDatabase, Stamp
from fluxbudgetd.sources.intercore.opening import read_consistently
from harness.daemon import wait_for
from harness.descriptors import open_files
from harness.intercore import IcProject, connect
from harness.privilege import OBEDIENT

_READ = """
import sys
from fluxbudgetd.model import IntercoreReading
from fluxbudgetd.sources.intercore import IntercoreDatabase, Stamp
reading = IntercoreDatabase(sys.argv[1]).read({})
print(reading.status.state, *reading.runs)
"""


@pytest.fixture
def project(tmp_path: Path) -> IcProject:
    return IcProject(tmp_path)


@pytest.fixture
def run(project: IcProject) -> str:
    return project.run_create()


@pytest.fixture
def database(project: IcProject) -> IntercoreDatabase:
    return IntercoreDatabase(str(project.database))


def state(database: IntercoreDatabase) -> tuple[str, str]:
    """Read; require that a fault comes with a hint and without any content."""
    reading = database.read({})
    assert reading.status == database.status
    assert (reading.status.name, reading.status.path) == ("intercore", database.path)
    if not reading.status.is_readable:
        assert reading.status.hint
        assert reading.status.detail
        assert reading == IntercoreReading(status=database.status, schema=database.schema)
    return reading.status.state, reading.status.detail


def require_read(database: IntercoreDatabase, run: str) -> None:
    reading = database.read({})
    assert (reading.status.state, reading.status.hint, list(reading.runs)) == ("ok", "", [run])


def obediently(path: Path) -> str:
    """Return what is read by a process to which file permissions apply."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*OBEDIENT, sys.executable, "-c", _READ, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_absent_and_removed(project: IcProject, run: str, database: IntercoreDatabase, tmp_path: Path) -> None:
    """A database that comes back is read again. Without one there is no stamp."""
    require_read(database, run)
    kept = tmp_path / "kept"
    project.directory.rename(kept)
    assert state(database) == ("absent", "the file does not exist")
    assert database.stamp() is None
    assert database.schema == 39
    project.directory.write_text("a file")
    assert state(database) == ("absent", "the file does not exist")
    project.directory.unlink()
    kept.rename(project.directory)
    require_read(database, run)


@pytest.mark.parametrize("content", [b"", None])
def test_empty(project: IcProject, run: str, database: IntercoreDatabase, content: bytes | None) -> None:
    """A reading command of `ic` creates an empty database."""
    saved = project.database.read_bytes()
    if content is None:
        project.database.unlink()
        with closing(connect(project.database)):
            pass
    else:
        project.database.write_bytes(content)
    assert state(database) == ("empty", "the database has no tables")
    assert "ic init" in database.status.hint
    project.database.write_bytes(saved)
    require_read(database, run)


def test_locked_by_a_writer_that_keeps_readers_out(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    with closing(sqlite3.connect(project.database, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = exclusive")
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE runs SET token_budget = 5")
        other.execute("COMMIT")
        assert state(database)[0] == "locked"
    require_read(database, run)


def test_writer_that_only_writes_does_not_lock_readers_out(
    project: IcProject, run: str, database: IntercoreDatabase
) -> None:
    with closing(connect(project.database)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM runs")
        require_read(database, run)
        other.execute("COMMIT")
        assert state(database) == ("ok", "")
        assert database.read({}).runs == {}


def test_corrupt(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    for number in range(200):
        project.run_create(f"{number}" * 500)
    saved = project.database.read_bytes()
    damaged = bytearray(saved)
    damaged[4096:] = b"\xa5" * (len(saved) - 4096)
    project.database.write_bytes(damaged)
    assert state(database)[0] == "corrupt"
    project.database.write_bytes(saved[: len(saved) // 2])
    assert state(database)[0] == "corrupt"
    project.database.write_bytes(saved)
    assert run in database.read({}).runs


def test_error_message_that_is_not_utf_8(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """It quotes the name of what is damaged."""
    saved = project.database.read_bytes()
    damaged = saved.replace(b"tablerunsruns", b"table\xff\xff\xff\xffruns").replace(b"TABLE runs(id", b"TABLE runs)id")
    project.database.write_bytes(damaged)
    assert state(database)[0] == "corrupt"
    project.database.write_bytes(saved)
    require_read(database, run)


def test_random_damage(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """Whatever the damage is, a read ends with a named state. Indexes may lead to other rows than before."""
    for number in range(20):
        project.claim(f"session{number}", run)
        project.event(run, "advance")
        project.dispatch(run, number)
    whole = project.database.read_bytes()
    chance = random.Random(19)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 20, 200))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        project.database.write_bytes(damaged[: chance.choice((None, None, None, 5000))])
        assert state(database)[0] in {"ok", "corrupt", "not_a_database", "unreadable", "schema_drift"}
    project.database.write_bytes(whole)
    require_read(database, run)


def test_not_a_database(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    saved = project.database.read_bytes()
    project.database.write_bytes(b"no database at all\n" * 100)
    assert state(database)[0] == "not_a_database"
    project.database.write_bytes(saved)
    require_read(database, run)


@pytest.mark.parametrize("version", [0, 5])
def test_too_old(project: IcProject, run: str, database: IntercoreDatabase, version: int) -> None:
    project.execute(f"PRAGMA user_version = {version}")
    assert state(database) == ("schema_drift", f"schema {version} is older than 6")
    assert "ic init" in database.status.hint
    assert database.schema == version
    project.execute("PRAGMA user_version = 39")
    require_read(database, run)


def test_newer_schema_is_read_and_noted(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    project.execute("ALTER TABLE runs ADD COLUMN novel TEXT NOT NULL DEFAULT 'x'")
    project.execute("CREATE TABLE novelties(id)")
    project.execute("PRAGMA user_version = 40")
    require_read(database, run)
    assert database.status.notes == ("schema 40 is newer than 39, the newest that was tested",)
    assert database.schema == 40


@pytest.mark.parametrize(
    ("version", "drift", "back", "detail"),
    [
        (
            39,
            "ALTER TABLE runs RENAME COLUMN token_budget TO budget",
            "ALTER TABLE runs RENAME COLUMN budget TO token_budget",
            "column token_budget is missing from runs",
        ),
        (
            20,
            "ALTER TABLE runs RENAME COLUMN budget_enforce TO enforce",
            "ALTER TABLE runs RENAME COLUMN enforce TO budget_enforce",
            "column budget_enforce is missing from runs",
        ),
        (
            39,
            "ALTER TABLE dispatches RENAME TO tasks",
            "ALTER TABLE tasks RENAME TO dispatches",
            "table dispatches of schema 39 is missing",
        ),
        (
            26,
            "ALTER TABLE session_attributions RENAME TO attributions",
            "ALTER TABLE attributions RENAME TO session_attributions",
            "table session_attributions of schema 26 is missing",
        ),
    ],
)
def test_schema_drift(tmp_path: Path, version: int, drift: str, back: str, detail: str) -> None:
    """What a version must have is missing; older versions may lack it."""
    project = IcProject(tmp_path, version)
    run = project.run_create()
    database = IntercoreDatabase(str(project.database))
    project.execute(drift)
    assert state(database) == ("schema_drift", detail)
    project.execute(back)
    require_read(database, run)


def test_view_in_place_of_a_table_is_not_read(project: IcProject, database: IntercoreDatabase) -> None:
    """It could run for ever."""
    project.execute("ALTER TABLE run_agents RENAME TO agents")
    project.execute(
        "CREATE VIEW run_agents AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "SELECT x AS id, 'r' AS run_id, 'session' AS agent_type, 's' AS name, x AS created_at FROM n"
    )
    assert state(database) == ("schema_drift", "table run_agents of schema 39 is missing")


def test_virtual_table_is_not_read(project: IcProject, database: IntercoreDatabase) -> None:
    """Its contents may come from anywhere."""
    project.execute("ALTER TABLE run_agents RENAME TO agents")
    project.execute("CREATE VIRTUAL TABLE run_agents USING fts5(id, run_id, agent_type, name, created_at)")
    assert state(database) == ("schema_drift", "table run_agents of schema 39 is missing")


def test_value_that_would_fill_the_memory(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    project.update("runs", run, goal="x" * 3_000_000)
    require_read(database, run)
    project.update("runs", run, goal="x" * 5_000_000)
    assert state(database) == ("unreadable", "string or blob too big")
    assert "longer than 4 MB" in database.status.hint


def test_unfinished_commit_of_another_journal_mode(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """`ic` never leaves WAL mode. Otherwise a transaction that does not fit into the cache is in the file already."""
    with closing(connect(project.database)) as other:
        other.execute("PRAGMA journal_mode = delete")
        other.execute("PRAGMA cache_size = 1")
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE runs SET token_budget = 5")
        for number in range(200):
            other.execute("INSERT INTO runs(id, project_dir, goal) VALUES (?, '/p', ?)", (f"run{number}", "x" * 500))
        assert state(database)[0] == "locked"
        other.execute("ROLLBACK")
        require_read(database, run)


def test_generated_column_is_not_read(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """It would compute whatever the author of the database wants."""
    project.execute("ALTER TABLE runs RENAME COLUMN goal TO real_goal")
    project.execute("ALTER TABLE runs ADD COLUMN goal AS (printf('%.1000000c', 'x'))")
    assert state(database) == ("schema_drift", "column goal is missing from runs")


def test_long_query_is_interrupted(project: IcProject) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    with pytest.raises(sqlite3.OperationalError) as raised:
        read_consistently(str(project.database), lambda connection: connection.execute(endless).fetchall())
    assert state_of(raised.value)[0] == "slow"


def test_unreadable(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    project.database.chmod(0)
    assert obediently(project.database) == "unreadable"
    project.database.chmod(0o600)
    project.directory.chmod(0)
    assert obediently(project.database) == "unreadable"
    project.directory.chmod(0o700)
    assert obediently(project.database) == f"ok {run}"


def test_directory_without_write_permission(project: IcProject, run: str) -> None:
    """Without a writer, with a live writer, and with the WAL that a killed writer has left."""
    project.directory.chmod(0o500)
    assert obediently(project.database) == f"ok {run}"
    project.directory.chmod(0o700)
    with closing(connect(project.database)) as other:
        other.execute("UPDATE runs SET token_budget = 5")
        project.directory.chmod(0o500)
        assert obediently(project.database) == f"ok {run}"
        project.directory.chmod(0o700)
        killed = shutil.copytree(project.directory, project.root / "killed")
    killed.chmod(0o500)
    assert obediently(killed / "intercore.db") == f"ok {run}"
    killed.chmod(0o700)


def test_nothing_is_left_open_or_written(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """A read leaves the directory as it is, so that a backup of the main file is whole."""
    before = project.database.read_bytes()
    require_read(database, run)
    assert os.listdir(project.directory) == ["intercore.db"]
    assert project.database.read_bytes() == before
    with closing(connect(project.database)) as other:
        other.execute("UPDATE runs SET token_budget = 5")
        assert database.read({}).runs[run].token_budget == 5
        mine = [path for path in open_files() if path.startswith(str(project.directory))]
        assert sorted(set(mine)) == sorted(f"{project.database}{suffix}" for suffix in ("", "-shm", "-wal"))
    assert os.listdir(project.directory) == ["intercore.db"]
    require_read(database, run)
    assert not [path for path in open_files() if path.startswith(str(project.directory))]


def test_sqlite_does_not_wait_for_a_writer_that_closes_the_database(project: IcProject) -> None:
    """It would create the WAL that the writer removes again, and leave it there."""
    sql = "PRAGMA busy_timeout"
    found = read_consistently(str(project.database), lambda connection: connection.execute(sql).fetchall())
    assert found == [(0,)]


def test_commits_in_the_wal_of_a_killed_writer_are_read(tmp_path: Path) -> None:
    project = IcProject(tmp_path / "one")
    run = project.run_create()
    copy = tmp_path / "two" / ".clavain"
    with closing(connect(project.database)) as other:
        other.execute("UPDATE runs SET token_budget = 77")
        shutil.copytree(project.directory, copy)
    assert IntercoreDatabase(str(copy / "intercore.db")).read({}).runs[run].token_budget == 77


def test_replaced_by_another_file(project: IcProject, run: str, database: IntercoreDatabase, tmp_path: Path) -> None:
    """Restoring a backup changes the stamp."""
    backup = tmp_path / "backup.db"
    shutil.copyfile(project.database, backup)
    project.set(run, token_budget=5)
    before = settled(database)
    backup.replace(project.database)
    assert database.stamp() != before
    assert database.read({}).runs[run].token_budget is None


def settled(database: IntercoreDatabase) -> Stamp | None:
    """Wait until stamps can be compared, and return the present one."""
    wait_for(lambda: database.stamp() == database.stamp(), "the stamp to settle")
    return database.stamp()


def test_stamp_changes_with_each_commit(project: IcProject, run: str, database: IntercoreDatabase) -> None:
    """In the main file as well as in the WAL. Reading does not change it, and a change of permissions does."""
    for budget in range(1, 30):
        before = database.stamp()
        project.execute("UPDATE runs SET token_budget = ?", budget)
        assert database.stamp() != before
    before = settled(database)
    database.read({})
    assert database.stamp() == before
    project.database.chmod(0o644)
    assert database.stamp() != before
    with closing(connect(project.database)) as other:
        for budget in range(1, 30):
            before = database.stamp()
            other.execute("UPDATE runs SET token_budget = ?", [budget])
            assert database.stamp() != before
            database.read({})
