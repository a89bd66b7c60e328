"""Databases of intercore that hang or cannot be applied, in the service inside the test."""

import sqlite3
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.decisions import adoption, ic_projects
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import IntercoreReading
from fluxbudgetd.server.handlers import budget
from fluxbudgetd.server.handlers.common import Context, find_standing
from fluxbudgetd.sources import file_systems, watch
from fluxbudgetd.sources.intercore import IntercoreDatabase, Stamp
from fluxbudgetd.totals import Standing
from fluxbudgetd.wire import messages
from harness.adoption import World, check
from harness.intercore import IcProject
from harness.service import until, within


@contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[threading.Event]:
    """Make reads of a database hang, as on a file system that does not answer; yield an event that is set meanwhile."""
    hangs, answers, real = threading.Event(), threading.Event(), IntercoreDatabase.read

    def read(database: IntercoreDatabase, followed: Mapping[str, int]) -> IntercoreReading:
        if database.path == str(path):
            hangs.set()
            answers.wait(60)
        return real(database, followed)

    with monkeypatch.context() as patched:
        patched.setattr(IntercoreDatabase, "read", read)
        try:
            yield hangs
        finally:
            answers.set()


def has_wal(project: IcProject) -> bool:
    return Path(f"{project.database}-wal").exists()


async def asked(world: World, run: str) -> Standing:
    """Answer a request for a run's standing."""
    context = Context(world.service, "/state", 0, lambda: 0)
    _, standing = await find_standing(context, messages.Remaining(run=run), within(60))
    return standing


def test_hanging_database_delays_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are stale and say why. Other databases are followed, and this one as soon as it answers."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.refresh()
        await until(lambda: world.account(run).is_loaded)
        other = IcProject(tmp_path / "other")
        with hanging(monkeypatch, world.project.database) as hangs:
            world.project.set(run, token_budget=2000)
            await until(hangs.is_set)
            context = Context(world.service, "/state", 0, lambda: 0)
            later = budget.remaining(context, messages.Remaining(run=run))
            assert isinstance(later, Coroutine), later
            later.close()
            for _ in range(3):
                standing = await asked(world, run)
                assert standing.balance.budget == 1000
                assert "intercore: slow: " in str(standing.stale_why)
            second = other.run_create(budget=500)
            await world.refresh(other.root)
            assert (await asked(world, second)).balance.budget == 500
            slow = world.service.adoption
            await until(lambda: slow.databases[-1].status.state == "slow")
        await until(lambda: world.run(run).token_budget == 2000)
        await world.refresh()
        assert (await asked(world, run)).stale_why is None

    check(tmp_path, body)


def test_directories_that_hang_keep_no_other_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is examined once at a time, however many rows name one, and however often that is tried again."""
    answers, real = threading.Event(), ic_projects._resolved  # noqa: SLF001  it touches the directory first
    calls = 0

    def resolved(directory: str, root: str) -> str:
        nonlocal calls
        if directory == "/far/away":
            calls += 1
            answers.wait(60)
        return real(directory, root)

    monkeypatch.setattr(ic_projects, "_resolved", resolved)
    monkeypatch.setattr(ic_projects, "_SECONDS", 0.5)

    async def body(world: World) -> None:
        try:
            for _ in range(12):
                world.project.run_create(project_dir="/far/away")
            fine = world.project.run_create()
            await world.service.adoption.refresh(str(world.project.root), None, within(60))
            await until(lambda: fine in world.service.accounts.runs)
            assert calls == 1
            other = IcProject(tmp_path / "other")
            second = other.run_create(budget=500)
            await world.refresh(other.root)
            assert (await asked(world, second)).balance.budget == 500
        finally:
            answers.set()
        world.project.set(fine, token_budget=7)
        await until(lambda: len(world.service.accounts.runs) == 14)

    check(tmp_path, body)


def test_databases_that_hang_keep_no_other_from_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a network's file system have threads of their own."""
    answers, real = threading.Event(), IntercoreDatabase.read

    def read(database: IntercoreDatabase, followed: Mapping[str, int]) -> IntercoreReading:
        if "far" in database.path:
            answers.wait(60)
        return real(database, followed)

    monkeypatch.setattr(IntercoreDatabase, "read", read)
    monkeypatch.setattr(file_systems, "may_hang", lambda path: "far" in path)

    async def body(world: World) -> None:
        try:
            for number in range(10):
                far = IcProject(tmp_path / f"far{number}")
                far.run_create()
                await world.service.adoption.refresh(str(far.root), None, within(1))
            run = world.project.run_create(budget=1000)
            await world.refresh()
            assert world.run(run).token_budget == 1000
        finally:
            answers.set()

    check(tmp_path, body)


def test_event_loop_touches_no_file_that_may_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system, requests and periodic checks read the database in a worker thread."""
    monkeypatch.setattr(file_systems, "may_hang", lambda _path: True)
    monkeypatch.setattr(adoption, "_STAT_SECONDS", 0.05)
    real, real_changes = IntercoreDatabase.stamp, watch.changes
    threads: set[int] = set()
    watched: list[str] = []

    def stamp(database: IntercoreDatabase) -> Stamp | None:
        threads.add(threading.get_ident())
        return real(database)

    def changes(path: str, directories: Iterable[str], stop: anyio.Event) -> AsyncGenerator[None, None]:
        watched.extend(each for each in (path, *directories) if ".clavain" in each)
        return real_changes(path, (), stop)

    monkeypatch.setattr(IntercoreDatabase, "stamp", stamp)
    monkeypatch.setattr(watch, "changes", changes)

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.service.adoption.refresh(str(world.project.root), None, within(60))
        await until(lambda: run in world.service.accounts.runs)
        await until(lambda: world.account(run).is_loaded)
        world.project.set(run, token_budget=2000)
        standing = await asked(world, run)
        assert standing.balance.budget == 2000 or standing.stale_why is not None
        world.project.set(run, token_budget=3000)
        await until(lambda: world.run(run).token_budget == 3000)
        assert threads
        assert threading.get_ident() not in threads
        assert watched == []

    check(tmp_path, body)


def test_adoption_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk keeps a run from being adopted; it is named, and the run is there once it can be written."""
    real, fails = StoredRuns.start, True

    async def start(*arguments: object, **options: object) -> None:
        if fails:
            raise LedgerError("the disk is full", "make room")
        await real(*arguments, **options)  # type: ignore[arg-type]  # passed on as it is

    monkeypatch.setattr(StoredRuns, "start", start)

    async def body(world: World) -> None:
        nonlocal fails
        run = world.project.run_create()
        await world.service.adoption.refresh(str(world.project.root), None, within(60))
        await until(lambda: bool(world.service.adoption.databases[0].findings))
        (finding,) = world.service.adoption.databases[0].findings
        assert "could not be followed: the disk is full" in finding
        assert world.service.accounts.runs == {}
        fails = False
        with anyio.fail_after(60):
            while run not in world.service.accounts.runs:
                await world.service.adoption.refresh(str(world.project.root), None, within(60))
                await anyio.sleep(0.05)
        await world.refresh()
        assert world.service.adoption.databases[0].findings == ()

    check(tmp_path, body)


def test_one_run_that_fails_does_not_keep_others_from_being_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is followed separately."""
    real = StoredRuns.save

    async def body(world: World) -> None:
        before, broken, after = (world.project.run_create(budget=1) for _ in range(3))
        await world.refresh()

        async def save(stored: StoredRuns, run: object, **options: object) -> None:
            if getattr(run, "id", None) == broken:
                raise LedgerError("this row cannot be written", "")
            await real(stored, run, **options)  # type: ignore[arg-type]  # passed on as it is

        monkeypatch.setattr(StoredRuns, "save", save)
        world.project.write(("UPDATE runs SET token_budget = 7", ()))
        await until(lambda: world.run(before).token_budget == world.run(after).token_budget == 7)
        assert world.run(broken).token_budget == 1

    check(tmp_path, body)


def test_database_that_is_open_elsewhere_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a database with a -wal file does not look like a change, so the database is not read again."""
    reads = 0
    real = IntercoreDatabase.read

    def read(database: IntercoreDatabase, followed: Mapping[str, int]) -> IntercoreReading:
        nonlocal reads
        reads += 1
        return real(database, followed)

    monkeypatch.setattr(IntercoreDatabase, "read", read)

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        with closing(sqlite3.connect(world.project.database)) as other:
            other.execute("SELECT count(*) FROM runs").fetchall()
            assert has_wal(world.project)
            await world.refresh()
            before = reads
            for _ in range(20):
                await world.refresh()
            assert reads == before
            world.project.set(run, token_budget=2000)
            await world.refresh()
            assert world.run(run).token_budget == 2000

    check(tmp_path, body)


def test_changes_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is active, a change is noticed at once, without periodic checks."""
    monkeypatch.setattr(adoption, "_STAT_SECONDS", 10_000.0)
    # Otherwise the second read after a recent write would find the change, too.
    monkeypatch.setattr(adoption, "_UNSETTLED_SECONDS", 10_000.0)

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.refresh()
        world.project.set(run, token_budget=2000)
        await until(lambda: world.run(run).token_budget == 2000)

    check(tmp_path, body)


def test_changes_are_noticed_without_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A periodic check finds what watching has missed."""

    async def unwatched(*_arguments: object) -> AsyncGenerator[None, None]:
        yield
        await anyio.sleep_forever()

    monkeypatch.setattr(watch, "changes", unwatched)
    monkeypatch.setattr(adoption, "_STAT_SECONDS", 0.05)
    # Otherwise the second read after a recent write would find the change, too.
    monkeypatch.setattr(adoption, "_UNSETTLED_SECONDS", 10_000.0)

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.refresh()
        world.project.set(run, token_budget=2000)
        await until(lambda: world.run(run).token_budget == 2000)

    check(tmp_path, body)
