"""Projects that are renamed after their runs were adopted, and databases that fail again and again."""

import asyncio
import time
from pathlib import Path

from fluxbudgetd.clock import now_micros
from fluxbudgetd.wire import messages
from harness.adoption import World, check
from harness.intercore import IcProject
from harness.service import within


def test_renamed_project(tmp_path: Path) -> None:
    """Its runs are followed where they are now, and their directory is the new one."""

    async def body(world: World) -> None:
        run = world.project.run_create(scope="b-1", budget=1000)
        world.project.dispatch(run, 10, 20, 0)
        await world.refresh()
        renamed = tmp_path / "renamed"
        world.project.root.rename(renamed)
        IcProject(renamed).set(run, token_budget=500)
        await world.refresh(renamed)
        account = world.account(run)
        assert (account.run.token_budget, account.run.project_dir) == (500, str(renamed))
        assert account.measured().billing == 30
        accounts = world.service.accounts
        assert [each.run.id for each in accounts.active_in(str(renamed))] == [run]
        assert accounts.active_in(str(world.project.root)) == []
        (report,) = world.service.adoption.databases
        assert (report.runs, report.findings) == ((run,), ())
        event, _ = await world.events(run, "run.changed")
        assert event.data["moved_from"] == str(world.project.database)
        assert [stored for stored, _ in await world.service.ledger.runs.all()] == [account.run]

    check(tmp_path, body)


def test_renamed_project_of_a_run_by_hand(tmp_path: Path) -> None:
    """A run that was linked to a row stays the row's run."""

    async def body(world: World) -> None:
        asked = messages.RunStart(project_dir=str(world.project.root), scope="b-1")
        own = (await world.service.lifecycle.start(asked, within(60))).run.id
        run = world.project.run_create(scope="b-1")
        await world.refresh()
        renamed = tmp_path / "renamed"
        world.project.root.rename(renamed)
        await world.refresh(renamed)
        assert set(world.service.accounts.runs) == {own}
        assert world.adoption(own).database == str(renamed / ".clavain" / "intercore.db")
        assert world.adoption(own).run_id == run

    check(tmp_path, body)


def test_row_of_a_directory_above_its_database(tmp_path: Path) -> None:
    """`ic` finds a database in or above its project. A cloned one must not bind the sessions of other projects."""

    async def body(world: World) -> None:
        above = world.project.run_create(project_dir=str(tmp_path), enforce=True, budget=1)
        top = world.project.run_create(project_dir="/")
        await world.refresh()
        for run in (above, top):
            assert world.run(run).project_dir == str(world.project.root)

    check(tmp_path, body)


def test_status_that_is_not_known(tmp_path: Path) -> None:
    """A newer `ic` may have others: they change nothing, and do not bring an ended run back."""

    async def body(world: World) -> None:
        ended, active = world.project.run_create(), world.project.run_create()
        await world.refresh()
        world.project.complete(ended)
        await world.refresh()
        for run in (ended, active):
            world.project.update("runs", run, status="archived")
        await world.refresh()
        assert (world.run(ended).status, world.run(active).status) == ("done", "active")

    check(tmp_path, body)


def test_times_in_the_future(tmp_path: Path) -> None:
    """The clock may have been set back since a row was written: then it counts from now on."""

    async def body(world: World) -> None:
        later = int(time.time()) + 1_000_000
        first = world.project.run_create(at=later)
        second = world.project.run_create()
        world.project.claim("s1", first, at=later)
        world.project.claim("s2", second, at=later)
        await world.refresh()
        now = now_micros()
        assert world.run(first).started_at <= now
        assert world.account(first).latest <= now
        assert [each.since <= now for each in world.account(first).attachments()] == [True]
        assert [each.since <= now for each in world.account(second).attachments()] == [True]

    check(tmp_path, body)


def test_failing_database_that_keeps_changing(tmp_path: Path) -> None:
    """Each change causes a read, but only one retry is scheduled at a time, not one for each change."""

    async def body(world: World) -> None:
        world.project.run_create()
        await world.refresh()
        tasks = len(asyncio.all_tasks())
        for number in range(20):
            world.project.database.write_bytes(b"no database " * (100 + number))
            await world.refresh()
        # (One task for each change would be 20 more.)
        assert len(asyncio.all_tasks()) <= tasks + 10

    check(tmp_path, body)
