"""Samples from interstat's rows, which count in sessions without samples from transcripts."""

import itertools
import threading
from collections.abc import Collection
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.decisions.samples import MOST_PER_AGENT
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import NewRows, Response, RowMark
from fluxbudgetd.sources.interstat import InterstatSource, history
from harness.interstat import Interstat
from harness.sample_world import World, in_world, instances
from harness.service import service_over, until, within

SECOND = 1_000_000


def test_session_has_samples_of_one_source(tmp_path: Path) -> None:
    """A sample from its transcripts replaces those from interstat, and no more of these are taken."""

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        tokens = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 20, "model": "opus", "wall_clock_ms": 4_000}
        interstat.insert("s1", "interflux:fd-x", **tokens)
        interstat.insert("s2", "fd-x", **tokens)
        interstat.insert("s2", "main-session", **tokens)
        waiting = interstat.insert("s2", "fd-y")
        await world.collects()
        assert world.service.samples.agents() == ["fd-x"]
        assert instances(world.of("fd-x")) == ["row-1", "row-2"]
        for each in world.of("fd-x"):
            assert (each.input, each.output, each.total, each.model) == (7, 3, 20, "opus")
            assert (each.source, each.duration) == ("interstat", 4 * SECOND)
        world.writes("a1", "fd-z")
        interstat.update(waiting, **tokens)
        await world.collects()
        interstat.insert("s1", "fd-x", **tokens)
        await world.collects()
        assert [(each.session, each.instance) for each in world.of("fd-x")] == [("s2", "row-2")]
        assert [(each.session, each.instance) for each in world.of("fd-y")] == [("s2", f"row-{waiting}")]
        assert [(each.session, each.instance) for each in world.of("fd-z")] == [("s1", "agent-a1")]
        interstat.close()

    in_world(tmp_path, body)


def test_samples_outlive_interstat(tmp_path: Path) -> None:
    async def body() -> None:
        world = World(tmp_path)
        async with world.running():
            interstat = Interstat(tmp_path / "metrics.db", journal="delete")
            interstat.insert("s2", "fd-x", input_tokens=7, output_tokens=3, total_tokens=20)
            await world.collects()
            interstat.close()
            interstat.path.unlink()
            assert await world.service.samples.collect(within(60)) is not None
            assert instances(world.of("fd-x")) == ["row-1"]
        async with world.running():
            await world.collects()
            assert instances(world.of("fd-x")) == ["row-1"]

    anyio.run(body)


def test_first_start_reads_the_rows_that_are_there(tmp_path: Path) -> None:
    """The first launch is estimated by them, without a request that waits for them."""
    interstat = Interstat(tmp_path / "metrics.db")
    interstat.insert("s2", "fd-x", total_tokens=7)
    interstat.close()

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            await until(lambda: service.samples.has_any)

    anyio.run(body)


def test_newest_rows_of_a_large_table(tmp_path: Path) -> None:
    """Memory has the newest ones of each agent."""

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000) "
            "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens, total_tokens) "
            "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', 1771606000 + i, 'unixepoch'), 's' || (i / 1000), 'fd-' || (i % 10),"
            " i, 0, i FROM n"
        )
        await world.collects()
        assert len(world.service.samples.agents()) == 10
        newest = world.of("fd-7")
        assert [each.total for each in newest] == [24_997 - 10 * number for number in range(MOST_PER_AGENT)]
        everything = await world.service.ledger.samples.newest(10_000)
        assert sum(map(len, everything.values())) == 5_000
        interstat.close()

    in_world(tmp_path, body)


@pytest.mark.parametrize("tokens", [{}, {"total_tokens": 0}, {"total_tokens": -1}, {"total_tokens": "many"}])
def test_row_without_a_total_gives_none(tmp_path: Path, tokens: dict[str, object]) -> None:
    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s2", "fd-x", **tokens)
        await world.collects()
        assert not world.service.samples.has_any
        interstat.close()

    in_world(tmp_path, body)


@pytest.mark.parametrize("name", ["fd-\0", "fd-" + "x" * 200, "ü" * 101, "x" * 2_000])
def test_name_that_no_agent_can_have_gives_none(tmp_path: Path, name: str) -> None:
    """Neither a row nor a transcript does. Names of 200 bytes are allowed, and control characters other than NUL."""

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        for number, agent in enumerate((name, "ü" * 100, "interflux:fd-\n")):
            interstat.insert(f"s{number + 2}", agent, total_tokens=7)
            world.writes(f"a{number}", agent)
        await world.collects()
        assert world.service.samples.agents() == ["fd-\n", "ü" * 100]
        assert all(len(world.of(agent)) == 2 for agent in world.service.samples.agents())
        interstat.close()

    in_world(tmp_path, body)


def test_very_long_texts_of_a_row_are_not_kept(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        for length in (1_000, 1_001):
            interstat.insert("s" * length, "fd-x", total_tokens=length, model="m" * length)
        await world.collects()
        found = {(each.total, len(each.session), len(each.model)) for each in world.of("fd-x")}
        assert found == {(1_000, 1_000, 1_000), (1_001, 0, 0)}
        interstat.close()

    in_world(tmp_path, body)


def test_row_that_is_measured_again(tmp_path: Path) -> None:
    """The parser may update a row any number of times."""

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        row = interstat.insert("s2", "fd-x")
        for total in (10, 30, 20, 25):
            interstat.update(row, total_tokens=total)
            interstat.insert("s3", "fd-y", total_tokens=total)
            await world.collects()
            assert [each.total for each in world.of("fd-x")] == [total]
        assert [each.total for each in reversed(world.of("fd-y"))] == [10, 30, 20, 25]
        interstat.close()

    in_world(tmp_path, body)


def test_old_row_that_is_measured_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait for their tokens are remembered, however many rows follow."""
    monkeypatch.setattr(history, "RECENT_ROWS", 2)

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        row = interstat.insert("s2", "fd-x")
        for number in range(5):
            interstat.insert("s3", "fd-y", total_tokens=number + 1)
            await world.collects()
        assert world.of("fd-x") == []
        interstat.update(row, total_tokens=7)
        await world.collects()
        assert [each.total for each in world.of("fd-x")] == [7]
        assert len(world.of("fd-y")) == 5
        interstat.close()

    in_world(tmp_path, body)


def test_interstat_that_was_made_again_is_read_from_its_start(tmp_path: Path) -> None:
    """Its rows have the numbers of earlier ones."""

    async def body(world: World) -> None:
        for sessions in (("s2", "s3", "s4"), ("s5",)):
            interstat = Interstat(tmp_path / "metrics.db", journal="delete")
            for session in sessions:
                interstat.insert(session, "fd-x", total_tokens=7)
            await world.collects()
            interstat.close()
            interstat.path.unlink()
        assert sorted(each.session for each in world.of("fd-x")) == ["s2", "s3", "s4", "s5"]

    in_world(tmp_path, body)


def test_source_that_hangs_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says which one is missing; a later request gets it."""
    answering = threading.Event()
    scan = InterstatSource.new_rows

    def slow(source: InterstatSource, mark: RowMark) -> NewRows | None:
        answering.wait(60)
        return scan(source, mark)

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s2", "fd-y", total_tokens=7)
        monkeypatch.setattr(InterstatSource, "new_rows", slow)
        samples = world.service.samples
        world.writes("a1")
        await world.service.totals.refresh_sources(within(60))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(samples.collect, within(60))
            await until(lambda: samples.agents() == ["fd-x"])
            stale_why = await samples.collect(within(-1))
            answering.set()
        assert stale_why is not None
        assert stale_why.startswith("samples of transcripts: slow")
        assert "samples of interstat: slow" in stale_why
        await world.collects()
        assert samples.agents() == ["fd-x", "fd-y"]
        interstat.close()

    in_world(tmp_path, body)


@pytest.mark.parametrize("error", [LedgerError("disk full", "make room"), RuntimeError("a defect")])
def test_failed_collection_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The request is told; the next one collects what is missing."""

    async def failing(*_: object) -> None:
        raise error

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s2", "fd-y", total_tokens=7)
        world.writes("a1")
        await world.service.totals.refresh_sources(within(60))
        with monkeypatch.context() as patched:
            patched.setattr(world.service.ledger.samples, "save", failing)
            assert str(error) in (await world.service.samples.collect(within(60)) or "")
        assert not world.service.samples.has_any
        await world.collects()
        assert world.service.samples.agents() == ["fd-x", "fd-y"]
        interstat.close()

    in_world(tmp_path, body)


def test_samples_that_were_taken_before_a_failure_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the ledger, and are not taken again."""

    async def body(world: World) -> None:
        transcripts, calls = world.service.ledger.transcripts, itertools.count()
        read = transcripts.of_files

        async def failing(session: str, numbers: Collection[int]) -> tuple[Response, ...]:
            if next(calls):
                raise RuntimeError("a defect")
            return await read(session, numbers)

        for number in range(30):
            world.writes(f"a{number}")
        await world.service.totals.refresh_sources(within(60))
        monkeypatch.setattr(transcripts, "of_files", failing)
        assert "a defect" in (await world.service.samples.collect(within(60)) or "")
        taken = len(world.of("fd-x"))
        assert 0 < taken < 30
        stored = await world.service.ledger.samples.newest(100)
        assert len(stored["fd-x"]) == taken

    in_world(tmp_path, body)
