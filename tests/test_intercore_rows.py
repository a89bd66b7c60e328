"""Our row of a run in intercore's database: written once, with absolute values, and nothing else is touched."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.notify.intercore_faults import NotWrittenError
from fluxbudgetd.notify.intercore_rows import OwnRow, PhaseTokens, write
from harness.intercore import IcProject, connect
from harness.mounts import why_not
from harness.privilege import OBEDIENT, needs_root

RUN = "run00001"
OURS = f"fluxbudget-{RUN}"
NOW = 1_795_000_000
NUMBERS = ("input_tokens", "output_tokens", "cache_hits")

#: Write the row that `own` returns, in another process.
WRITE = """
import sys
from test_intercore_rows import own
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.intercore_rows import write
try:
    write(sys.argv[1], [own(7)], 1)
except ChannelError as exc:
    print(exc.message, exc.hint, sep="\\n")
"""


def own(tokens: int, **fields: Any) -> OwnRow:
    """Return a row of the run with these input tokens."""
    phases = (PhaseTokens("executing", tokens, 20),)
    return OwnRow(
        **{"run": RUN, "project_dir": "/p", "input": tokens, "output": 20, "cache": 3, "phases": phases, **fields}
    )


def put(project: IcProject, *rows: OwnRow, now: int = NOW) -> frozenset[str]:
    return write(str(project.database), rows, now)


def ours(project: IcProject, run: str = RUN) -> list[tuple[int, ...]]:
    """Return the numbers of our rows of a run: one row, or none."""
    rows = project.query("SELECT * FROM dispatches WHERE id = ?", f"fluxbudget-{run}")
    return [tuple(row[name] for name in NUMBERS) for row in rows]


def others(project: IcProject) -> list[str]:
    """Return every row of every table but ours, and the schema, as SQL."""
    with closing(sqlite3.connect(project.database)) as connection:
        return [line for line in connection.iterdump() if OURS not in line and "'phase_tokens'" not in line]


def content(project: IcProject) -> tuple[bytes, int, list[str]]:
    """Return the database's bytes, the time of its last write, and the files beside it."""
    info = project.database.stat()
    return project.database.read_bytes(), info.st_mtime_ns, sorted(path.name for path in project.directory.iterdir())


@pytest.fixture
def project(tmp_path: Path) -> IcProject:
    """Return a project with one run, and one dispatch of another program."""
    return with_run(IcProject(tmp_path / "project"))


def with_run(project: IcProject) -> IcProject:
    project.run_create(run=RUN, budget=100)
    project.dispatch(RUN, 5, 6, 7)
    return project


@pytest.mark.parametrize("version", [6, 20, 26, 39])
def test_row_is_written_once_and_no_other_row_changes(tmp_path: Path, version: int) -> None:
    project = with_run(IcProject(tmp_path / "project", version))
    before = others(project)
    put(project, own(10))
    put(project, own(11), now=NOW + 5)
    (row,) = project.query("SELECT * FROM dispatches WHERE agent_type = 'fluxbudget'")
    expected = {
        "id": OURS,
        "name": "fluxbudget",
        "status": "completed",
        "project_dir": "/p",
        "scope_id": RUN,
        "input_tokens": 11,
        "output_tokens": 20,
        "cache_hits": 3,
        "created_at": NOW,
        "completed_at": NOW + 5,
    }
    assert row.items() >= expected.items()
    assert project.state("phase_tokens", RUN) == {"executing": {"input_tokens": 11, "output_tokens": 20}}
    assert project.tokens(RUN) == 5 + 6 + 11 + 20, "intercore adds the row to what it knows itself"
    assert others(project) == before
    assert os.listdir(project.directory) == ["intercore.db"]


def test_nothing_is_written_if_nothing_differs(project: IcProject) -> None:
    put(project, own(10))
    before = content(project)
    put(project, own(10), now=NOW + 99)
    assert content(project) == before


def test_reading_creates_no_file_while_the_database_is_open(project: IcProject) -> None:
    """An unchanged row takes no lock: another program's transaction does not matter."""
    put(project, own(10))
    with closing(connect(project.database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE runs SET goal = 'another'")
        put(project, own(10))
        connection.execute("COMMIT")


def test_run_without_usage_gets_no_row(project: IcProject) -> None:
    before = content(project)
    unused = OwnRow(run=RUN, project_dir="/p")
    put(project, unused)
    assert content(project) == before
    put(project, own(10))
    put(project, unused)
    assert ours(project) == [(0, 0, 0)], "a row that is there is corrected"
    assert project.state("phase_tokens", RUN) == {}


def test_rows_of_several_runs_are_written_in_one_transaction(project: IcProject) -> None:
    project.run_create(run="run00002")
    put(project, own(10), own(11, run="run00002"))
    assert (ours(project), ours(project, "run00002")) == ([(10, 20, 3)], [(11, 20, 3)])


def test_pruned_row_and_changed_state_are_written_again(project: IcProject) -> None:
    put(project, own(10))
    project.delete("dispatches", OURS)
    project.set_state("phase_tokens", RUN, {"executing": {"input_tokens": 99, "output_tokens": 99}})
    put(project, own(10))
    assert ours(project) == [(10, 20, 3)]
    assert project.state("phase_tokens", RUN) == {"executing": {"input_tokens": 10, "output_tokens": 20}}


def test_restored_backup_counts_nothing_twice(project: IcProject, tmp_path: Path) -> None:
    put(project, own(10))
    backup = tmp_path / "backup.db"
    shutil.copy(project.database, backup)
    put(project, own(5000))
    shutil.copy(backup, project.database)
    put(project, own(5001))
    assert ours(project) == [(5001, 20, 3)]
    assert project.tokens(RUN) == 5 + 6 + 5001 + 20


def test_run_that_the_database_does_not_have_is_left_out(project: IcProject) -> None:
    assert put(project, own(10), own(11, run="pruned00")) == {"pruned00"}
    assert (ours(project), ours(project, "pruned00")) == ([(10, 20, 3)], [])


def test_hostile_names_are_plain_values(project: IcProject) -> None:
    name = "a'b\"; DROP TABLE runs; --\n\N{SNOWMAN}"
    project.run_create(run=name)
    put(project, own(10, run=name, project_dir=name, phases=(PhaseTokens(name, 10, 20),)))
    assert ours(project, name) == [(10, 20, 3)]
    assert project.state("phase_tokens", name) == {name: {"input_tokens": 10, "output_tokens": 20}}


def test_rearming_has_intercore_refuse_every_time(project: IcProject) -> None:
    put(project, own(200))
    assert [project.refuses(RUN) for _ in range(3)] == [True, False, False]
    for _ in range(3):
        put(project, own(200, rearm=True))
        assert project.refuses(RUN)
    put(project, own(201))
    assert project.state("budget.exceeded", RUN) is not None, "without the option, the row stays"


def changed_schema(table: str, old: str, new: str) -> Callable[[IcProject], None]:
    """Return a change: an empty table is created again with another definition."""

    def change(project: IcProject) -> None:
        ((sql,),) = (row.values() for row in project.query("SELECT sql FROM sqlite_master WHERE name = ?", table))
        assert old in sql
        project.write((f"DROP TABLE {table}", ()), (sql.replace(old, new), ()))

    return change


def executed(sql: str) -> Callable[[IcProject], None]:
    return lambda project: project.execute(sql)


def rollback_journal(project: IcProject) -> None:
    with closing(sqlite3.connect(project.database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()


def overwritten(project: IcProject) -> None:
    project.database.write_bytes(b"no database at all" * 1000)


def torn(project: IcProject) -> None:
    whole = project.database.read_bytes()
    project.database.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def other_row(project: IcProject) -> None:
    project.dispatch(RUN, 1, 2, dispatch=OURS)


def linked(project: IcProject) -> None:
    elsewhere = project.root / "elsewhere"
    project.directory.rename(elsewhere)
    project.directory.symlink_to(elsewhere)


REASONS: dict[str, tuple[Callable[[IcProject], None], str, str]] = {
    "too old": (executed("PRAGMA user_version = 5"), "drifted", "its schema version is 5, and must be 6 or more"),
    "a missing column": (
        executed("ALTER TABLE dispatches RENAME COLUMN cache_hits TO hits"),
        "drifted",
        "the table dispatches has no column cache_hits",
    ),
    "an unknown required column": (
        changed_schema("dispatches", "pid INTEGER", "pid INTEGER NOT NULL"),
        "drifted",
        "the column pid of the table dispatches needs an unknown value",
    ),
    "an unknown required column of the state": (
        changed_schema("state", "expires_at INTEGER", "expires_at INTEGER NOT NULL"),
        "drifted",
        "the column expires_at of the table state needs an unknown value",
    ),
    "another key": (
        changed_schema("dispatches", "id TEXT NOT NULL PRIMARY KEY", "id TEXT NOT NULL"),
        "drifted",
        "the key of the table dispatches is missing",
    ),
    "a trigger": (
        executed("CREATE TRIGGER counts AFTER INSERT ON Dispatches BEGIN DELETE FROM runs; END"),
        "drifted",
        "the table Dispatches has a trigger, counts",
    ),
    "another key of runs": (
        changed_schema("runs", "id TEXT NOT NULL PRIMARY KEY", "id TEXT NOT NULL"),
        "drifted",
        "the key of the table runs is missing",
    ),
    "a view": (
        lambda project: project.write(
            ("ALTER TABLE dispatches RENAME TO dispatch_rows", ()),
            ("CREATE VIEW dispatches AS SELECT * FROM dispatch_rows", ()),
        ),
        "drifted",
        "it has no table dispatches",
    ),
    "another program's row": (other_row, "drifted", f"the row {OURS} belongs to another program"),
    "a rollback journal": (rollback_journal, "drifted", "its journal mode is delete, not wal"),
    "no database": (overwritten, "corrupt", "file is not a database"),
    "a damaged database": (torn, "corrupt", "database disk image is malformed"),
    "no file": (lambda project: project.database.unlink(), "absent", "the file does not exist"),
    "a symbolic link": (linked, "failed", "it is not a regular file, or its directory is a symbolic link"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_unsafe_database_is_not_written(project: IcProject, reason: str) -> None:
    """The reason is named, and not a byte has changed."""
    change, state, detail = REASONS[reason]
    change(project)
    before = content(project) if project.database.exists() else None
    with pytest.raises(NotWrittenError) as raised:
        put(project, own(10))
    assert (raised.value.state, raised.value.detail) == (state, detail)
    assert raised.value.message == f"{project.database} was not written: {state}: {detail}"
    assert raised.value.hint
    assert (content(project) if project.database.exists() else None) == before


@needs_root("give a file to another user")
def test_database_of_another_user_is_not_written(project: IcProject) -> None:
    os.chown(project.database, 4711, -1)
    with pytest.raises(NotWrittenError, match=r"failed: it belongs to another user \(uid 4711\)"):
        put(project, own(10))
    os.chown(project.database, os.geteuid(), -1)
    put(project, own(10))


def test_columns_that_need_no_value_do_not_matter(project: IcProject) -> None:
    generated = "pid INTEGER, sum INTEGER NOT NULL AS (input_tokens + output_tokens)"
    changed_schema("dispatches", "pid INTEGER", generated)(project)
    project.execute("ALTER TABLE dispatches ADD COLUMN later TEXT NOT NULL DEFAULT 'x'")
    put(project, own(10))
    assert project.query("SELECT later, sum FROM dispatches WHERE id = ?", OURS) == [{"later": "x", "sum": 30}]


def test_locked_database_is_written_after_the_lock_is_released(project: IcProject) -> None:
    with closing(connect(project.database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotWrittenError, match="was not written: locked: database is locked"):
            put(project, own(10))
    put(project, own(10))
    assert ours(project) == [(10, 20, 3)]


@pytest.fixture
def read_only(project: IcProject) -> Iterator[IcProject]:
    """Make the project's directory read-only for every user but an unrestrained root."""
    project.database.chmod(0o400)
    project.directory.chmod(0o500)
    yield project
    project.directory.chmod(0o700)


def written_by(project: IcProject, *prefix: str) -> list[str]:
    """Write the row in a process of its own; return the message and the hint of its error."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*prefix, sys.executable, "-c", WRITE, str(project.database)]
    made = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()


def test_directory_without_permission_is_read_only(read_only: IcProject) -> None:
    what, hint = written_by(read_only, *OBEDIENT)
    assert what.endswith("was not written: read-only: fluxbudgetd has no permission to write it")
    assert hint == "check the permissions of the file and its directory"
    assert content(read_only)[2] == ["intercore.db"]


@needs_root("mount a file system", why_not)
def test_read_only_file_system_is_named_with_the_command_that_helps(project: IcProject) -> None:
    """The service's sandbox mounts projects like this."""
    mounted = (
        f'mount --bind "{project.root}" "{project.root}" && mount -o remount,bind,ro "{project.root}" && exec "$@"'
    )
    what, hint = written_by(project, "unshare", "--mount", "sh", "-c", mounted, "sh")
    assert what.endswith("was not written: read-only: its file system is read-only for fluxbudgetd")
    assert hint.endswith(f": fluxbudgetctl service install --sprints {project.root}")
    assert written_by(project) == []
    assert ours(project) == [(7, 20, 3)]
