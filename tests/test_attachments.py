"""When a session's usage begins to count for its run: the service runs inside the test, which sets its clock."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import anyio
import msgspec
import pytest

from fluxbudgetd.ledger import open_ledger
from fluxbudgetd.ledger.schema import APPLICATION_ID, STEPS
from fluxbudgetd.model import Attachment
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.service import Service
from fluxbudgetd.wire import messages
from harness.interstat import Interstat
from harness.service import service_over
from harness.transcripts import Transcript

#: 2026-02-20T17:05:55.400Z
START = 1_771_607_155_400_000
SECOND = 1_000_000
HOUR = 3600 * SECOND


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self) -> int:
        return self.at


class World:
    """A service, its clock, and session s1's transcript."""

    def __init__(self, service: Service, directory: Path, clock: Clock) -> None:
        self.service = service
        self.directory = directory
        self.clock = clock
        self.transcript = Transcript(directory, "s1")
        self._context = Context(service=service, state_dir=str(directory), started_at=0, connections=lambda: 0)

    async def ask(self, request: messages.AnyRequest) -> object:
        answer = handle(self._context, msgspec.structs.replace(request, wait_ms=60_000), os.getpid())
        return await answer if isinstance(answer, Awaitable) else answer

    async def change(self, request: messages.AnyRequest) -> messages.RunAnswer:
        """Send a request that changes a run."""
        answer = await self.ask(request)
        assert isinstance(answer, messages.RunAnswer), answer
        return answer

    async def start(self, name: str, session: str | None = None, *, whole: bool = False) -> None:
        project = str(self.directory / name)
        await self.change(
            messages.RunStart(id=name, scope=f"b-{name}", project_dir=project, session=session, whole=whole)
        )

    async def hook(self, run: str) -> None:
        """Report the start of s1 in a run's directory, as the hook does."""
        fields = {"hook_event_name": "SessionStart", "source": "startup", "session_id": "s1"}
        cwd = str(self.directory / run)
        raw = json.dumps({**fields, "cwd": cwd, "transcript_path": str(self.transcript.path)}).encode()
        answer = await self.ask(messages.Hook(input=raw, hints=messages.Hints(cwd=cwd)))
        assert isinstance(answer, messages.HookAnswer), answer

    async def show(self, run: str) -> messages.RunShowAnswer:
        answer = await self.ask(messages.RunShow(run=run))
        assert isinstance(answer, messages.RunShowAnswer), answer
        assert not answer.spend.stale, answer.spend
        return answer

    async def measured(self, run: str) -> int:
        return (await self.show(run)).spend.measured


@asynccontextmanager
async def world_over(directory: Path, clock: Clock) -> AsyncIterator[World]:
    Interstat(directory / "metrics.db").close()
    async with service_over(directory, clock) as (service, _source):
        yield World(service, directory, clock)


# --- what belongs to the run

#: When each response was written, as the transcript says. Their tokens are powers of two.
TIMES = (
    "2026-02-20T16:00:00.000Z",  # before every run
    "2026-02-20T17:05:45.400Z",
    "2026-02-20T17:05:55Z",  # within the second of the start
    "2026-02-20T17:05:55.000Z",  # the same
    "2026-02-20T17:05:55.399Z",  # just before the start
    "2026-02-20T17:05:55.400Z",  # at the start
    "2026-02-20T17:05:56.000Z",
    "2026-02-20T17:05:57.500Z",  # between start and attachment
    "2026-02-20T17:05:58Z",  # within the second of the attachment
    "2026-02-20T17:05:58.399Z",
    "2026-02-20T17:05:58.400Z",  # at the attachment
    "2026-02-20T17:05:59.000Z",
)
ATTACHED = START + 3 * SECOND
ALL = tuple(range(len(TIMES)))
FROM_START = (2, 3, *range(5, len(TIMES)))
FROM_ATTACHMENT = (10, 11)


def indexes(tokens: int) -> tuple[int, ...]:
    """Return which responses were added up."""
    return tuple(index for index in ALL if tokens & (1 << index))


@pytest.mark.parametrize(
    ("by", "is_first", "whole", "counted", "earlier"),
    [
        ("person", True, False, FROM_START, (0, 1, 4)),
        ("person", True, True, ALL, ()),
        ("start", True, False, FROM_START, (0, 1, 4)),
        ("start", True, True, ALL, ()),
        ("hook", True, False, FROM_START, (0, 1, 4)),
        ("bead", True, False, ALL, ()),
        # The session was attached to a run that started at 17:00. It is left with what was used before the move.
        ("person", False, False, FROM_ATTACHMENT, ()),
        ("person", False, True, (0, *FROM_ATTACHMENT), ()),
        ("hook", False, False, FROM_ATTACHMENT, ()),
        ("bead", False, False, (), ()),
    ],
)
def test_what_an_attachment_counts(
    tmp_path: Path,
    by: Literal["person", "start", "hook", "bead"],
    is_first: bool,
    whole: bool,
    counted: tuple[int, ...],
    earlier: tuple[int, ...],
) -> None:
    """Every response counts for one run, or is earlier usage."""

    async def body() -> None:
        clock = Clock(START - 355 * SECOND)
        async with world_over(tmp_path, clock) as world:
            await world.start("old", None if is_first else "s1")
            clock.at = START
            if by == "start":
                await world.start("r", "s1", whole=whole)
            else:
                await world.start("r")
            clock.at = ATTACHED
            if by == "person":
                answer = await world.change(messages.RunAttach(attach="s1", run="r", whole=whole))
                assert (answer.changed, answer.moved_from) == (True, None if is_first else "old")
            elif by == "hook":
                if not is_first:
                    await world.change(messages.RunFinish(run="old"))
                await world.hook("r")
            elif by == "bead":
                interstat = Interstat(tmp_path / "metrics.db")
                interstat.insert("s1", bead_id="b-r", input_tokens=0, output_tokens=0)
                interstat.close()
            clock.at = ATTACHED + 10 * SECOND
            for index, at in enumerate(TIMES):
                world.transcript.response(f"m{index}", request=f"r{index}", tokens=(1 << index, 0, 0, 0), at=at)
            shown, old = await world.show("r"), await world.show("old")
            assert indexes(shown.totals.billing) == counted
            assert indexes(shown.earlier.billing) == earlier
            # Without its first attachment, the old run has nothing.
            rest = () if is_first else tuple(index for index in ALL if index not in counted)
            assert indexes(old.totals.billing + old.earlier.billing) == rest
            status = await world.ask(messages.Status())
            assert isinstance(status, messages.StatusAnswer)
            assert status.unattributed.billing == 0

    anyio.run(body)


@pytest.mark.parametrize(
    ("counts_from", "at", "expected"),
    [
        (START, START, True),
        (START, START - 1, False),
        (START, START - 400_000, True),  # the whole second in which the period begins
        (START, START - 400_000 - SECOND, False),
        (START + 100_600_000, START + 100_600_000 - SECOND, False),  # a whole second that has just ended
        (START + 700, START, True),  # the whole millisecond
        (START + 700, START + 699, False),
        (START + 1000, START, False),
        (0, -(10**15), True),  # the whole session, even with a clock of the year 1938
    ],
)
def test_time_stands_for_as_much_as_it_says(counts_from: int, at: int, expected: bool) -> None:
    """A time without a fraction stands for its whole second, a transcript's time for its whole millisecond."""
    period = Attachment(
        session="s", run="r", since=START + HOUR, until=START + 2 * HOUR, counts_from=counts_from, origin="asked"
    )
    assert period.covers(at) == expected
    assert period.follows(at) == (not expected)
    assert not period.covers(START + 2 * HOUR)
    assert period.covers(START + 2 * HOUR - 1)


def test_time_that_is_missing_belongs_to_the_last_attachment() -> None:
    ended = Attachment(session="s", run="r", since=START, until=START + 1, counts_from=0, origin="asked")
    lasting = Attachment(session="s", run="r", since=START + 1, until=None, counts_from=START + 1, origin="asked")
    assert [each.covers(None) for each in (ended, lasting)] == [False, True]


def test_attachment_is_widened(tmp_path: Path) -> None:
    """`whole` on a session that is attached already is a change of the run, once, and survives a restart."""

    async def body() -> None:
        clock = Clock(START)
        async with world_over(tmp_path, clock) as world:
            world.transcript.response("m1", request="r1", tokens=(5, 0, 0, 0), at="2026-02-20T17:00:00.000Z")
            await world.start("r", "s1")
            shown = await world.show("r")
            (source,), (attachment,) = shown.sources, shown.attachments
            assert (shown.spend.measured, shown.earlier.billing, source.earlier.billing) == (0, 5, 5)
            assert attachment.since == shown.run.started_at
            widen = messages.RunAttach(attach="s1", run="r", whole=True)
            assert (await world.change(widen)).changed
            assert not (await world.change(widen)).changed
            assert not (await world.change(messages.RunAttach(attach="s1", run="r"))).changed
        async with world_over(tmp_path, clock) as world:
            shown = await world.show("r")
            assert (shown.spend.measured, shown.earlier.billing) == (5, 0)
            assert shown.attachments[0].since is None
            events = await world.service.events.after(0)
            changes = [event.data for event in events if event.kind == "run.changed"]
            assert changes == [{"attached": "s1", "usage": "whole"}]

    anyio.run(body)


# --- a clock that is set back


def written(at: int) -> str:
    """Return a time as a transcript writes it."""
    return datetime.fromtimestamp(at / SECOND, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize("steps", range(1, 6))
def test_clock_that_is_set_back_loses_nothing(tmp_path: Path, steps: int) -> None:
    """It is set back by an hour after some of: start, attachment, first response, advance, second response."""

    async def body() -> None:
        clock = Clock(START)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            clock.at += -HOUR if done == steps else SECOND

        async with world_over(tmp_path, clock) as world:
            await world.start("r")
            step()
            await world.change(messages.RunAttach(attach="s1", run="r"))
            assert await world.measured("r") == 0
            step()
            world.transcript.response("m1", request="r1", tokens=(1, 0, 0, 0), at=written(clock.at))
            assert await world.measured("r") == 1
            step()
            await world.ask(messages.Advance(run="r", from_phase="brainstorm"))
            step()
            world.transcript.response("m2", request="r2", tokens=(20, 0, 0, 0), at=written(clock.at))
            assert await world.measured("r") == 21
            step()
            await world.change(messages.RunFinish(run="r"))
            world.transcript.response("m3", request="r3", tokens=(300, 0, 0, 0), at=written(clock.at))
            shown = await world.show("r")
            assert (shown.spend.measured, shown.earlier.billing) == (321, 0)
            left, entered, *_ = shown.by_phase
            assert (left.state, entered.state) == ("completed", "current")
            assert left.until is not None
            assert shown.run.ended_at is not None
            times = [shown.run.started_at, left.until, shown.run.ended_at]
            assert times == sorted(times)
            assert left.since == shown.run.started_at
            assert entered.since == left.until
            assert all(line.billing >= 0 for line in shown.by_phase)
            # New usage counts for the phase in which it arrived.
            assert sum(line.billing for line in shown.by_phase) == 321
            assert entered.billing >= 320
            events = await world.service.events.after(0)
            assert [event.at for event in events] == sorted(event.at for event in events)

    anyio.run(body)


def test_clock_that_is_set_back_between_two_runs(tmp_path: Path) -> None:
    """A session moves to a run that seems older. A scope's next run is the newer one all the same."""

    async def body() -> None:
        clock = Clock(START)
        async with world_over(tmp_path, clock) as world:
            await world.start("one", "s1")
            world.transcript.response("m1", request="r1", tokens=(1, 0, 0, 0), at=written(clock.at))
            assert await world.measured("one") == 1
            await world.change(messages.RunFinish(run="one"))
            clock.at -= HOUR
            request = messages.RunStart(id="two", scope="b-one", project_dir="/p", session="s1")
            assert (await world.change(request)).moved_from == "one"
            clock.at += SECOND
            world.transcript.response("m2", request="r2", tokens=(20, 0, 0, 0), at=written(clock.at))
            assert (await world.measured("one"), await world.measured("two")) == (1, 20)
            named = await world.ask(messages.RunShow(scope="b-one"))
            assert isinstance(named, messages.RunShowAnswer)
            assert named.run.id == "two"
            listed = await world.ask(messages.RunList(all=True))
            assert isinstance(listed, messages.RunListAnswer)
            assert [line.run.id for line in listed.runs] == ["two", "one"]

    anyio.run(body)


# --- older ledgers


def test_attachments_of_older_ledgers_keep_their_reach(tmp_path: Path) -> None:
    """In them, a session's first attachment includes all of its usage. A later one begins when it was made."""
    connection = sqlite3.connect(tmp_path / "ledger.db")
    for step in STEPS[:4]:
        connection.executescript(step)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 4")
    rows = [
        ("s1", START, START + 5, "one", 1, "asked"),
        ("s1", START + 5, None, "two", 0, "asked"),
        ("s2", 0, START, "one", 1, "bead"),
    ]
    connection.executemany("INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()

    async def body() -> None:
        ledger, moved = await open_ledger(str(tmp_path))
        assert moved is None
        found = [
            (each.session, each.since, each.until, each.run, each.counts_from, each.origin)
            for each in await ledger.runs.attachments()
        ]
        assert found == [
            ("s1", START, START + 5, "one", 0, "asked"),
            ("s1", START + 5, None, "two", START + 5, "asked"),
            ("s2", 0, START, "one", 0, "bead"),
        ]
        await ledger.close()

    anyio.run(body)
