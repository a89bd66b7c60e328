"""Samples: each ended sub-agent of a session is counted once, from its transcript or from interstat's row."""

import random
from collections.abc import Collection
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.decisions.admission import Launch
from fluxbudgetd.model import Response, Sample, to_text
from harness.admission import HALF_AN_HOUR
from harness.interstat import Interstat
from harness.sample_world import USED, World, in_world, instances
from harness.service import within
from harness.transcripts import Transcript
from harness.values import NOW, a_triage, an_estimate, launched

SECOND = 1_000_000


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
