"""When our rows are written into intercore's databases: at once, at a pace, again, or not at all."""

import shutil
from contextlib import closing
from pathlib import Path

import anyio
import msgspec

from fluxbudgetd.events.own_rows import PACE
from fluxbudgetd.events.write_back import WriteBack
from fluxbudgetd.model import Cell, Counts, EventKind, Usage
from fluxbudgetd.totals.account import Sums
from harness.intercore import IcProject, connect
from harness.service import until, within
from harness.sprint import OURS, THEIRS, Sprint
from harness.values import NOW, a_record, a_run


def test_row_has_what_the_runs_own_sessions_measured(tmp_path: Path) -> None:
    """Neither estimates of phases nor other programs' dispatches are written."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(10)
    codex: Usage = a_record(input=1000, output=1000)
    sprint.accounts.runs[OURS].dispatches = (codex,)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(10)

    sprint.run(body)
    (row,) = sprint.project.rows("dispatches")
    assert (row["id"], row["scope_id"]) == (f"fluxbudget-{THEIRS}", THEIRS)
    assert (row["input_tokens"], row["output_tokens"], row["cache_hits"]) == (10, 1, 2)
    assert row["project_dir"] == sprint.accounts.runs[OURS].run.project_dir
    assert sprint.project.state("phase_tokens", THEIRS) == {"executing": {"input_tokens": 10, "output_tokens": 1}}


def test_phases_are_written_separately(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    cells = {Cell(OURS, phase, agent, "m"): Counts(1, 0, 1, 2, 3, 4) for phase in "ab" for agent in "xy"}
    sprint.accounts.put_cells("s", cells, NOW)
    sprint.accounts.session("s").sums = Sums.WHOLE

    async def body(_: WriteBack) -> None:
        await sprint.until_row(4)

    sprint.run(body)
    both = {"input_tokens": 2, "output_tokens": 4}
    assert sprint.project.state("phase_tokens", THEIRS) == {"a": both, "b": both}


def test_changing_numbers_are_written_at_a_pace_and_events_at_once(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)

    sprint.project.run_create(run="run00002")
    sprint.adopt("r2", "run00002")

    async def body(write_back: WriteBack) -> None:
        await sprint.until_row(1)
        kinds: tuple[EventKind, ...] = ("phase.advanced", "budget.threshold", "budget.exceeded", "run.finished")
        for tokens, kind in enumerate(kinds, 2):
            sprint.spend(tokens)
            sprint.spend(tokens, "r2")
            sprint.report(kind, "r2")
            await sprint.until_row(tokens, "run00002")
            assert sprint.row() == tokens - 1, "it is not due yet"
            sprint.report(kind)
            await sprint.until_row(tokens)
        assert write_back.state_of(sprint.path).state == "ok"

    sprint.run(body)
    assert PACE == 30


def test_changing_numbers_are_written_when_their_time_has_come(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(1)
        for tokens in (2, 3):
            sprint.spend(tokens)
            await sprint.until_row(tokens)

    sprint.run(body, pace=0.2)


def test_last_changes_are_written_when_the_daemon_stops(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(1)
        sprint.spend(2)

    sprint.run(body)
    assert sprint.row() == 2


def test_new_daemon_compares_the_rows_with_the_database(tmp_path: Path) -> None:
    """It also writes what the last daemon had measured but not written, whatever the database says."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(10)
    backup = tmp_path / "backup.db"
    shutil.copy(sprint.project.database, backup)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(10)

    sprint.run(body)
    shutil.copy(backup, sprint.project.database)
    sprint.run(body)
    sprint.project.update("dispatches", f"fluxbudget-{THEIRS}", input_tokens=99)
    sprint.run(body)
    assert len(sprint.project.rows("dispatches")) == 1


def test_unloaded_run_is_not_written_as_unused(tmp_path: Path) -> None:
    """Until a new daemon knows what a run has used, the old number stays."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(10)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(10)

    sprint.run(body)
    sprint.accounts = sprint.new_accounts()
    sprint.adopt()
    sprint.accounts.runs[OURS].has_sessions = False

    async def unloaded(write_back: WriteBack) -> None:
        assert await write_back.sync([sprint.accounts.runs[OURS]], within(60)) == []
        assert sprint.row() == 10

    sprint.run(unloaded)
    assert sprint.row() == 10


def test_row_that_was_pruned_or_restored_is_written_again(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(10)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(10)
        sprint.read(Counts(input=10, output=1, cache_read=2))
        sprint.project.delete("dispatches", f"fluxbudget-{THEIRS}")
        sprint.read(None)
        await sprint.until_row(10)
        sprint.project.update("dispatches", f"fluxbudget-{THEIRS}", input_tokens=9)
        sprint.read(Counts(input=9, output=1, cache_read=2))
        await sprint.until_row(10)

    sprint.run(body, pace=0.0)


def test_sync_writes_what_is_not_due_yet(tmp_path: Path) -> None:
    """It also reads the database, so that it corrects what no reading has shown yet."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)
    other = IcProject(tmp_path / "other")
    other.run_create(run="run00002")
    sprint.adopt("r2", "run00002", other)
    sprint.spend(5, "r2")
    by_hand = sprint.accounts.put_run(a_run(id="by-hand"))

    async def body(write_back: WriteBack) -> None:
        await sprint.until_row(1)
        sprint.spend(2)
        sprint.spend(6, "r2")
        accounts = [sprint.accounts.runs[run] for run in (OURS, "r2")]
        assert await write_back.sync([*accounts, by_hand], within(60)) == []
        assert (sprint.row(), sprint.row("run00002", other)) == (2, 6)
        sprint.project.delete("dispatches", f"fluxbudget-{THEIRS}")
        assert await write_back.sync(accounts, within(60)) == []
        assert sprint.row() == 2

    sprint.run(body)


def test_failure_is_named_and_retried(tmp_path: Path) -> None:
    """A sync waits for the end of a lock, and no other database does."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    other = IcProject(tmp_path / "other")
    other.run_create(run="run00002")
    sprint.adopt("r2", "run00002", other)

    async def body(write_back: WriteBack) -> None:
        async def sync() -> None:
            assert await write_back.sync([sprint.accounts.runs[OURS]], within(60)) == []

        async with anyio.create_task_group() as tasks:
            with closing(connect(sprint.project.database)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                sprint.spend(1)
                sprint.spend(5, "r2")
                tasks.start_soon(sync)
                await until(lambda: write_back.state_of(sprint.path).state == "locked")
                assert write_back.state_of(sprint.path)[1:3] == (None, "database is locked")
                what = f"{sprint.path} was not written: locked: database is locked"
                assert [each.message for each in write_back.faults().values()] == [what]
                assert await write_back.sync([sprint.accounts.runs["r2"]], within(60)) == []
                assert sprint.row("run00002", other) == 5
                connection.execute("ROLLBACK")
        assert sprint.row() == 1
        assert write_back.state_of(sprint.path)[:2] == ("ok", NOW)
        assert write_back.faults() == {}

    sprint.run(body)


def test_sync_ends_at_its_deadline_and_says_why(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()

    async def body(write_back: WriteBack) -> None:
        with closing(connect(sprint.project.database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            sprint.spend(1)
            await until(lambda: write_back.state_of(sprint.path).state == "locked")
            (fault,) = await write_back.sync([sprint.accounts.runs[OURS]], within(0.001))
            assert fault.message == f"{sprint.path} was not written in time"
        sprint.project.execute("PRAGMA user_version = 5")
        (fault,) = await write_back.sync([sprint.accounts.runs[OURS]], within(60))
        assert "its schema version is 5" in fault.message
        sprint.project.execute("PRAGMA user_version = 39")
        await sprint.until_row(1)

    sprint.run(body)


def test_defect_stops_neither_the_daemon_nor_the_next_attempt(tmp_path: Path) -> None:
    """No phase has such a name; it stands for any unforeseen error."""
    sprint = Sprint(tmp_path)
    sprint.adopt()

    async def body(write_back: WriteBack) -> None:
        sprint.spend(1, phase="\udc80")
        (fault,) = await write_back.sync([sprint.accounts.runs[OURS]], within(60))
        assert fault.message == f"{sprint.path} was not written: internal error: UnicodeEncodeError"
        assert write_back.state_of(sprint.path).state == "failed"
        sprint.spend(2)
        assert await write_back.sync([sprint.accounts.runs[OURS]], within(60)) == []

    sprint.run(body)
    assert sprint.row() == 2


def test_run_that_the_database_lost_is_reported_by_sync(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)

    async def body(write_back: WriteBack) -> None:
        await sprint.until_row(1)
        sprint.project.delete("dispatches", f"fluxbudget-{THEIRS}")
        sprint.project.delete("runs", THEIRS)
        (fault,) = await write_back.sync([sprint.accounts.runs[OURS]], within(60))
        assert fault.message == f"{sprint.path} no longer has run r1"
        assert sprint.row() is None
        assert write_back.faults() == {}, "the other runs of this database are written"

    sprint.run(body)


def test_configuration_switches_writing_off_and_on(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(1)

    async def body(write_back: WriteBack) -> None:
        await sprint.configure("[intercore]\nwrite_back = false\n")
        assert await write_back.sync([sprint.accounts.runs[OURS]], within(60)) == []
        sprint.report("phase.advanced")
        assert write_back.state_of(sprint.path).state == "off"
        await anyio.wait_all_tasks_blocked()
        assert sprint.row() is None
        await sprint.configure("")
        write_back.request_all()
        await sprint.until_row(1)

    sprint.run(body)


def test_rearming_removes_each_refusal_while_the_budget_is_exhausted(tmp_path: Path) -> None:
    sprint = Sprint(tmp_path)
    sprint.adopt()
    sprint.spend(99)

    async def body(_: WriteBack) -> None:
        await sprint.until_row(99)
        for _attempt in range(3):
            assert sprint.project.refuses(THEIRS)
            sprint.read(Counts(input=99, output=1, cache_read=2))
            await until(lambda: sprint.project.state("budget.exceeded", THEIRS) is None)
        raised = msgspec.structs.replace(sprint.accounts.runs[OURS].run, token_budget=101)
        sprint.accounts.put_run(raised)
        assert sprint.project.refuses(THEIRS)
        sprint.read(Counts(input=99, output=1, cache_read=2))
        await anyio.wait_all_tasks_blocked()
        assert sprint.project.state("budget.exceeded", THEIRS) is not None

    (tmp_path / "config.toml").write_text("[intercore]\nrearm = true\n")

    async def configured(write_back: WriteBack) -> None:
        await sprint.settings.refresh(within(60))
        await body(write_back)

    sprint.run(configured)
