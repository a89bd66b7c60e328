"""The stand-in for `ic`: its databases and its writes."""

from pathlib import Path

import pytest

from harness.intercore import DEFAULT_CHAIN, NEWEST, IcProject


@pytest.mark.parametrize("version", [6, 20, 26, 39])
def test_every_version_is_as_private_as_ic_makes_it(tmp_path: Path, version: int) -> None:
    """Nothing is left open: the database consists of its main file alone."""
    project = IcProject(tmp_path, version)
    project.run_create()
    assert project.query("PRAGMA user_version") == [{"user_version": version}]
    assert project.query("PRAGMA journal_mode") == [{"journal_mode": "wal"}]
    assert [path.name for path in project.directory.iterdir()] == ["intercore.db"]
    assert (project.directory.stat().st_mode & 0o777, project.database.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_migrated_database_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    old, new = IcProject(tmp_path / "old", 6), IcProject(tmp_path / "new")
    run = old.run_create(budget=5)
    old.migrate(NEWEST)
    schema = "SELECT name, sql FROM sqlite_master ORDER BY name"
    assert old.query(schema) == new.query(schema)
    assert (old.row(run)["token_budget"], old.row(run)["budget_enforce"]) == (5, 0)


def test_a_run_advances_to_its_end_and_is_revived_by_a_rollback(tmp_path: Path) -> None:
    project = IcProject(tmp_path)
    run = project.run_create(at=100)
    for phase in DEFAULT_CHAIN[1:]:
        assert project.advance(run, at=200) == phase
    assert (project.row(run)["status"], project.row(run)["completed_at"]) == ("completed", 200)
    project.rollback(run, "planned", at=300)
    assert (project.row(run)["status"], project.row(run)["phase"]) == ("active", "planned")
    assert [row["event_type"] for row in project.rows("phase_events")] == ["advance"] * 8 + ["rollback"]


def test_ics_own_check_refuses_once(tmp_path: Path) -> None:
    project = IcProject(tmp_path)
    run = project.run_create(budget=100)
    assert not project.refuses(run)
    project.dispatch(run, 60, 40)
    assert [project.refuses(run), project.refuses(run)] == [True, False]
    project.execute("DELETE FROM state WHERE key = 'budget.exceeded' AND scope_id = ?", run)
    assert project.refuses(run)
