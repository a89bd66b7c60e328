"""Samples: each ended sub-agent of a session is counted once, from its transcript or from interstat's row."""

import itertools
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.clock import now_micros
from fluxbudgetd.decisions.admission import Launch
from fluxbudgetd.decisions.samples import MOST_PER_AGENT
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import NewRows, Response, RowMark, Sample, to_text
from fluxbudgetd.service import Service
from fluxbudgetd.sources.interstat import InterstatSource, history
from fluxbudgetd.wire import messages
from harness.admission import HALF_AN_HOUR
from harness.interstat import Interstat
from harness.service import service_over, until, within
from harness.transcripts import Tokens, Transcript
from harness.values import NOW, a_triage, an_estimate, launched

SECOND = 1_000_000
USED = (100, 50, 1_000, 500)


class World:
    """A service with the run `r`, to which the session `s1` belongs, and its clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = now_micros()
        self.service: Service

    def clock(self) -> int:
        return self.now

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        async with service_over(self.directory, self.clock) as (service, _):
            self.service = service
            if "r" not in service.accounts.runs:
                request = messages.RunStart(project_dir="/p", id="r", session="s1", whole=True)
                await service.lifecycle.start(request, within(60))
            # The first collection is over.
            await service.samples.collect(within(60))
            yield self

    def writes(
        self,
        agent_id: str,
        agent: str | None = "fd-x",
        *,
        session: str = "s1",
        message: str = "m",
        tokens: Tokens = USED,
        model: str = "opus",
        stop: str | None = "end_turn",
        age: int = 0,
    ) -> None:
        """Write a response of a sub-agent; `age` in microseconds."""
        writer = Transcript(self.directory, session).agent(agent_id)
        if agent is not None:
            writer.meta(None, agentType=agent)
        writer.response(
            f"{agent_id}-{message}", tokens=tokens, model=model, stop=stop, at=to_text(self.now - age),
            request=f"{session}-{agent_id}-{message}",
        )  # fmt: skip

    async def collects(self) -> None:
        """Read the transcripts, and collect."""
        await self.service.totals.refresh_sources(within(60))
        assert await self.service.samples.collect(within(60)) is None

    def of(self, agent: str) -> list[Sample]:
        return list(self.service.samples.of(agent))


def in_world(directory: Path, body: Callable[[World], Awaitable[None]]) -> None:
    """Run a test in a world."""

    async def run() -> None:
        async with World(directory).running() as world:
            await body(world)

    anyio.run(run)


def instances(samples: Iterable[Sample]) -> list[str]:
    return sorted(each.instance for each in samples)


# --- from transcripts


def test_each_ended_sub_agent_gives_a_sample(tmp_path: Path) -> None:
    """Transcripts alone are enough."""

    async def body(world: World) -> None:
        assert not world.service.samples.has_any
        Transcript(tmp_path, "s1").response(tokens=USED, stop="end_turn")
        for number in range(12):
            world.writes(f"a{number}", "interflux:fd-x", message="1", stop="tool_use", age=90 * SECOND)
            world.writes(f"a{number}", "interflux:fd-x", message="2", age=(12 - number) * SECOND)
        await world.collects()
        found = world.of("fd-x")
        assert world.service.samples.agents() == ["fd-x"]
        assert [each.instance for each in found] == [f"agent-a{number}" for number in reversed(range(12))]
        for each in found:
            assert (each.session, each.agent, each.model, each.source) == ("s1", "fd-x", "opus", "transcripts")
            assert (each.input, each.output, each.billing, each.total, each.sliced) == (200, 100, 300, 3_300, False)
        assert found[0].duration == 89 * SECOND

    in_world(tmp_path, body)


@pytest.mark.parametrize(
    ("stop", "age", "has_ended"),
    [
        ("end_turn", 0, True),
        ("max_tokens", 0, True),
        ("tool_use", 0, False),
        ("pause_turn", 0, False),
        (None, 0, False),
        (None, HALF_AN_HOUR, True),
        ("tool_use", HALF_AN_HOUR, True),
    ],
)
def test_running_sub_agent_gives_none(tmp_path: Path, stop: str | None, age: int, has_ended: bool) -> None:
    async def body(world: World) -> None:
        world.writes("a1", stop=stop, age=age)
        await world.collects()
        assert instances(world.of("fd-x")) == ["agent-a1"] * has_ended
        # It ends later at the latest.
        world.now += HALF_AN_HOUR
        await world.collects()
        assert instances(world.of("fd-x")) == ["agent-a1"]

    in_world(tmp_path, body)


@pytest.mark.parametrize(("back", "has_ended"), [(SECOND, False), (HALF_AN_HOUR, True)])
def test_running_sub_agent_goes_on_if_the_clock_is_set_back(tmp_path: Path, back: int, has_ended: bool) -> None:
    """It does not go on forever."""

    async def body(world: World) -> None:
        world.writes("a1", stop="tool_use")
        await world.service.totals.refresh_sources(within(60))
        world.now -= back
        await world.collects()
        assert instances(world.of("fd-x")) == ["agent-a1"] * has_ended

    in_world(tmp_path, body)


@pytest.mark.parametrize("end", ["sub-agent", "session"])
def test_reported_end_ends_a_sub_agent(tmp_path: Path, end: str) -> None:
    """Its last line may not say so."""

    async def body(world: World) -> None:
        admission, account = world.service.admission, world.service.accounts.runs["r"]
        await admission.admit(account, "s1", Launch("fd-x"), an_estimate(1), has_person=False)
        await admission.start(account, "s1", "fd-x", "a1", 1)
        world.writes("a1", stop=None)
        world.writes("a2", stop=None)
        await world.collects()
        assert world.of("fd-x") == []
        if end == "session":
            await admission.end_session("s1")
        else:
            await admission.stop("s1", "fd-x", "a1")
        await world.collects()
        assert instances(world.of("fd-x")) == ["agent-a1"]

    in_world(tmp_path, body)


def test_resumed_sub_agent_gives_its_larger_sample(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.writes("a1", message="1", age=3 * SECOND)
        await world.collects()
        (first,) = world.of("fd-x")
        world.writes("a1", message="2", stop="tool_use", model="haiku", age=2 * SECOND)
        await world.collects()
        assert world.of("fd-x") == [first]
        world.writes("a1", message="3", model="haiku")
        await world.collects()
        (second,) = world.of("fd-x")
        assert (second.billing, second.model) == (3 * first.billing, "haiku")
        assert (second.started_at, second.ended_at) == (first.started_at, world.now)

    in_world(tmp_path, body)


def test_samples_survive_a_restart(tmp_path: Path) -> None:
    """Without the sources, too. They are known before anything is collected."""

    async def body() -> None:
        world = World(tmp_path)
        async with world.running():
            world.writes("a1")
            world.writes("a2", stop="tool_use")
            await world.collects()
            before = world.of("fd-x")
            assert instances(before) == ["agent-a1"]
        async with world.running():
            assert world.of("fd-x") == before
            world.writes("a2", message="2")
            await world.collects()
            assert instances(world.of("fd-x")) == ["agent-a1", "agent-a2"]

    anyio.run(body)


def test_sub_agent_without_a_companion_has_the_name_that_a_hook_gave(tmp_path: Path) -> None:
    """Without either, there is no sample until the companion is written."""

    async def body(world: World) -> None:
        account = world.service.accounts.runs["r"]
        await world.service.admission.start(account, "s1", "fd-y", "a1", 1)
        world.writes("a1", None)
        world.writes("a2", None)
        await world.collects()
        assert world.service.samples.agents() == ["fd-y"]
        Transcript(tmp_path, "s1").agent("a2").meta(None, agentType="fd-z")
        await world.collects()
        assert instances(world.of("fd-z")) == ["agent-a2"]

    in_world(tmp_path, body)


def test_renamed_agent_keeps_one_sample(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.writes("a1", "fd-x")
        await world.collects()
        Transcript(tmp_path, "s1").agent("a1").meta(None, agentType="interflux:fd-other")
        await world.collects()
        assert world.service.samples.agents() == ["fd-other"]

    in_world(tmp_path, body)


def test_sub_agent_without_usage_gives_none(tmp_path: Path) -> None:
    """Its transcript is not looked at again until it changes."""

    async def body(world: World) -> None:
        world.writes("a1", tokens=(0, 0, 0, 0))
        await world.collects()
        assert not world.service.samples.has_any
        assert await world.service.ledger.samples.unsampled() == {}
        world.writes("a1", message="2")
        await world.collects()
        assert world.service.samples.has_any

    in_world(tmp_path, body)


def test_transcript_that_was_replaced_counts_with_the_new_one(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.writes("a1", message="1", age=SECOND)
        await world.collects()
        (first,) = world.of("fd-x")
        Transcript(tmp_path, "s1").agent("a1").path.unlink()
        world.writes("a1", message="2")
        await world.collects()
        (second,) = world.of("fd-x")
        assert (second.billing, second.started_at) == (2 * first.billing, first.started_at)
        # Only the new one changes from now on.
        world.writes("a1", message="3")
        await world.collects()
        (third,) = world.of("fd-x")
        assert third.billing == 3 * first.billing

    in_world(tmp_path, body)


def test_sub_agent_that_goes_on_in_another_directory_gives_one_sample(tmp_path: Path) -> None:
    """It counts with what it used before, and keeps its name even if there is none in the other directory."""

    async def body(world: World) -> None:
        for number, (project, name) in enumerate((("-new", "a2"), ("-old", "a1"), ("-new", "a1"))):
            writer = Transcript(tmp_path, "s1", project).agent(name)
            if number < 2:
                writer.meta(None, agentType=f"fd-{name}")
            writer.response(f"m{number}", request=f"r{number}", tokens=USED, stop="end_turn")
            await world.collects()
            assert [each.billing for each in world.of("fd-a1")] == [150 * number][:number]

    in_world(tmp_path, body)


def test_transcript_that_grows_while_its_sample_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sampled again."""

    async def body(world: World) -> None:
        transcripts, totals = world.service.ledger.transcripts, world.service.totals
        read = transcripts.of_files

        async def growing(session: str, numbers: Collection[int]) -> tuple[Response, ...]:
            found = await read(session, numbers)
            world.writes("a1", message="2")
            await totals.refresh_sources(within(60))
            assert await totals.saver.save_all(60)
            return found

        world.writes("a1", message="1")
        with monkeypatch.context() as patched:
            patched.setattr(transcripts, "of_files", growing)
            await world.collects()
        (first,) = world.of("fd-x")
        await world.collects()
        (second,) = world.of("fd-x")
        assert second.billing == 2 * first.billing

    in_world(tmp_path, body)


# --- from interstat


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
        assert sum(map(len, everything.values())) == 20_000
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


# --- both


def happens(world: World, interstat: Interstat, chance: random.Random, number: int) -> None:
    """Write a response, insert a row that is measured or not, or measure the last row."""
    session, agent = chance.choice(("s1", "s2", "s3")), chance.choice(("fd-x", "fd-y"))
    tokens = {"input_tokens": chance.randrange(5), "total_tokens": chance.randrange(1, 9)}
    match chance.randrange(4):
        case 0:
            name, stop = chance.choice("abc"), chance.choice(("end_turn", "tool_use", None))
            world.writes(name, f"fd-{name}", message=str(number), stop=stop, age=-number)
        case 1:
            interstat.insert(session, agent, timestamp=to_text(NOW + number), **tokens)
        case 2:
            interstat.insert(session, agent, timestamp=to_text(NOW))
        case _:
            interstat.update(chance.randrange(1, number + 2), **tokens)


async def collected(directory: Path, seed: int, every: int) -> list[Sample]:
    """Return the samples of a random history with two restarts, collected after each so many events and at the end."""
    world, chance = World(directory), random.Random(seed)
    world.now = NOW
    interstat = Interstat(directory / "metrics.db")
    for start in (0, 12, 24):
        async with world.running():
            for number in range(start, start + 12):
                happens(world, interstat, chance, number)
                if number % every == 0:
                    await world.collects()
    async with world.running():
        world.now += 2 * HALF_AN_HOUR
        await world.collects()
        found = [each for agent in world.service.samples.agents() for each in world.of(agent)]
    interstat.close()
    return sorted(found, key=lambda each: (each.session, each.instance))


@pytest.mark.parametrize("seed", range(8))
def test_samples_do_not_depend_on_when_they_are_collected(tmp_path: Path, seed: int) -> None:
    async def body() -> None:
        once, often = [await collected(tmp_path / str(every), seed, every) for every in (1000, 3)]
        assert once == often
        assert {each.source for each in once} == {"transcripts", "interstat"}
        assert all(each.source == "transcripts" for each in once if each.session == "s1")

    for every in (1000, 3):
        (tmp_path / str(every)).mkdir()
    anyio.run(body)


# --- slices


@pytest.mark.parametrize("source", ["transcripts", "interstat"])
@pytest.mark.parametrize("of_session", [True, False])
def test_latest_triage_that_launched_an_agent_says_its_round_and_if_it_has_a_slice(
    tmp_path: Path, source: str, of_session: bool
) -> None:
    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")

        def ends(agent: str, at: int) -> None:
            if source == "interstat":
                tokens = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 20}
                interstat.insert("s1", agent, timestamp=to_text(at), **tokens)
            else:
                world.writes(f"{agent}-{at}", agent, age=world.now - at)

        world.now = now = world.now // SECOND * SECOND + SECOND
        sliced = launched("interflux:fd-x", 1, sliced=True)
        for number, (line, at) in enumerate(
            (
                (sliced, now - 600 * SECOND),
                (launched("fd-x", 1), now - 500 * SECOND),
                (sliced, now - 400 * SECOND),
                (launched("fd-x", 1, action="Deferred (budget)"), now - 300 * SECOND),
            )
        ):
            name = {"session": "s1"} if of_session else {"session": None}
            kind = "reaction" if number == 1 else "review"
            triage = a_triage(line, launched("fd-y", 1), id=f"t{number}", at=at, run="r", round=kind, **name)
            await world.service.ledger.reviews.add(triage)
        for at in (700, 550, 450, 350, 250):
            ends("fd-x", now - at * SECOND)
        ends("fd-y", now - 250 * SECOND)
        await world.collects()
        assert [each.sliced for each in reversed(world.of("fd-x"))] == [False, True, False, True, True]
        rounds = [each.round for each in reversed(world.of("fd-x"))]
        assert rounds == ["review", "review", "reaction", "review", "review"]
        assert [each.sliced for each in world.of("fd-y")] == [False]
        interstat.close()

    in_world(tmp_path, body)


# --- the session's model


def test_model_of_a_session_is_that_of_its_latest_response(tmp_path: Path) -> None:
    """Sub-agents have their own. It is known after a restart as soon as the session has been read."""

    async def body() -> None:
        world = World(tmp_path)
        async with world.running():
            totals = world.service.totals
            assert totals.model_of("s1") is None
            main = Transcript(tmp_path, "s1")
            for number, model in enumerate(("opus", "sonnet")):
                main.response(f"m{number}", request=f"r{number}", model=model, at=to_text(world.now + number))
                world.writes(f"a{number}", model="haiku")
                await world.collects()
                assert totals.model_of("s1") == model
            assert totals.model_of("another") is None
        async with world.running():
            await world.collects()
            assert world.service.totals.model_of("s1") == "sonnet"

    anyio.run(body)
