"""Responses between memory and the ledger: what is looked up, saved and read again makes the same sums."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import aiosqlite
import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, TranscriptChanges, Wanted, open_ledger
from fluxbudgetd.ledger.database import Database
from fluxbudgetd.ledger.transcripts import StoredTranscripts
from fluxbudgetd.model import SIDECHAIN, Copy, Response, TranscriptFile
from fluxbudgetd.policy.responses import records
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.totals.transcript_store import KeptFile, TranscriptStore
from harness.responses import Responses, anonymous, any_copy, reading_of, requested

FILES = tuple(TranscriptFile(number, f"/p/{number}", 1, 2, 3, b"mark", "main-session") for number in (1, 2))


class Read(NamedTuple):
    """A session's files are read."""

    session: str
    copies: list[Copy]


Step = Read | Literal["save", "fail", "restart"]

reads = st.builds(Read, st.sampled_from("ab"), st.lists(any_copy(), max_size=4))
steps = st.lists(st.one_of(reads, reads, st.sampled_from(("save", "fail", "restart"))), max_size=14)


async def opened(directory: str) -> tuple[Ledger, TranscriptStore]:
    ledger, _ = await open_ledger(directory)
    store = TranscriptStore(TranscriptSource([directory]), ledger)
    await store.load()
    return ledger, store


async def fail_to_save(ledger: Ledger, store: TranscriptStore) -> None:
    async def failing(_changes: TranscriptChanges) -> None:
        raise LedgerError("disk full", "make room")

    stored = ledger.transcripts
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stored, "save", failing)
        with pytest.raises(LedgerError):
            await store.save()


def comparable(responses: Iterable[Response]) -> list[Response]:
    """Return responses without their numbers, which are not used again after a response is gone."""
    return [msgspec.structs.replace(each, born=0) for each in sorted(responses, key=lambda each: each.born)]


@settings(max_examples=60, deadline=None)
@given(steps)
def test_partial_knowledge_gives_the_same_result(steps: list[Step]) -> None:
    """The store asks the ledger for little, and may lose what it has not saved. Then the files are read again."""

    async def body(directory: str) -> None:
        ledger, store = await opened(directory)
        expected = Responses()
        unsaved: list[Read] = []
        for step in steps:
            if isinstance(step, Read):
                expected.add(step.session, *step.copies)
                await store.apply(step.session, reading_of(*step.copies, files=FILES))
                unsaved.append(step)
            elif step == "save":
                await store.save()
                unsaved.clear()
            elif step == "fail":
                await fail_to_save(ledger, store)
            else:
                await ledger.close()
                ledger, store = await opened(directory)
                for read in unsaved:
                    await store.apply(read.session, reading_of(*read.copies, files=FILES))
            for session in "ab":
                usage = [record for each in expected.of(session) for record in records(each)]
                assert sorted(await store.usage(session), key=str) == sorted(usage, key=str)
        await store.save()
        stored = [each for session in "ab" for each in await ledger.transcripts.responses(session)]
        assert comparable(stored) == comparable(expected.known.values())
        assert {session for session in "ab" if store.shares(session)} == expected.sharing
        await ledger.close()

    with tempfile.TemporaryDirectory() as directory:
        anyio.run(body, directory)


def test_renamed_agent_is_stored(tmp_path: Path) -> None:
    """Both its saved responses and those that are not saved yet get the new name, and no other response does."""
    sidechain = {"place": SIDECHAIN, "file": 2, "agent": "agent-1", "output": 1}
    before = (FILES[0], msgspec.structs.replace(FILES[1], agent="agent-1"))
    after = (FILES[0], msgspec.structs.replace(FILES[1], agent="fd-x"))

    async def body() -> None:
        ledger, store = await opened(str(tmp_path))
        await store.apply("a", reading_of(requested(1, 1), requested(2, 1, **sidechain), files=before))
        await store.save()
        await store.apply("a", reading_of(requested(3, 1, **sidechain), files=before))
        deltas = await store.apply("a", reading_of(files=after))
        assert [response.agent for response in deltas["a"].new] == ["fd-x"] * 2
        await store.save()
        stored = await ledger.transcripts.responses("a")
        assert [response.agent for response in stored] == ["main-session", "fd-x", "fd-x"]
        await ledger.close()

    anyio.run(body)


def test_responses_of_files_that_are_gone_are_counted(tmp_path: Path) -> None:
    """A path may have had several files. Responses found in another file again are not missed."""
    gone = msgspec.structs.replace(FILES[0], is_gone=True)
    now = msgspec.structs.replace(FILES[0], number=3)
    copies = [requested(number, 1, output=1, file=1) for number in (1, 2, 3)]

    async def body() -> None:
        ledger, store = await opened(str(tmp_path))
        await store.apply("a", reading_of(*copies, requested(4, 1, file=2), files=FILES))
        await store.save()
        assert await store.kept("a") == ()
        again = requested(1, 1, output=1, file=3)
        await store.apply("a", reading_of(again, files=(gone, FILES[1], now), kept=frozenset({1, 2})))
        await store.save()
        assert await store.kept("a") == (KeptFile("/p/1", 2, True), KeptFile("/p/2", 1, False))
        assert sum([usage.output for usage in await store.usage("a")]) == 3
        await ledger.close()

    anyio.run(body)


def test_positions_that_did_not_change_are_not_written_again(tmp_path: Path) -> None:
    """A session may have tens of thousands of files."""
    written: list[int] = []

    async def body() -> None:
        ledger, store = await opened(str(tmp_path))
        save = ledger.transcripts.save

        async def noted(changes: TranscriptChanges) -> None:
            written.extend(file.number for _, file in changes.files)
            await save(changes)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ledger.transcripts, "save", noted)
            await store.apply("a", reading_of(files=FILES))
            await store.save()
            await store.apply("a", reading_of(files=(FILES[0], msgspec.structs.replace(FILES[1], offset=9))))
            await store.save()
        await ledger.close()

    anyio.run(body)
    assert written == [1, 2, 2]


@pytest.mark.parametrize("message", [pytest.param(0, id="many messages"), pytest.param(7, id="one id for everything")])
def test_lookup_costs_the_same_however_much_is_stored(tmp_path: Path, message: int) -> None:
    """The cost is in steps of SQLite's virtual machine, so that the result does not depend on the computer."""

    async def cost(size: int) -> int:
        connection = await aiosqlite.connect(tmp_path / str(size) / "ledger.db", isolation_level=None)
        stored = StoredTranscripts(await Database.prepare(connection, str(tmp_path), lambda _events: None))
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1

        await connection.set_progress_handler(tick, 1)
        # One that is neither among the first nor among the last.
        middle = size // 2
        name = message or middle
        found, aliases = await stored.find(
            "a", Wanted({middle, 2 * 10**6}, {name}, {(name, 1)}, {(name, "main-session")}, {name})
        )
        assert (found[0].key, aliases) == (middle, {})
        await connection.close()
        return ticks

    async def fill(size: int) -> None:
        (tmp_path / str(size)).mkdir()
        ledger, store = await opened(str(tmp_path / str(size)))
        copies = [anonymous(message or line, line, is_final=True, input=line, output=1) for line in range(1, size + 1)]
        await store.apply("a", reading_of(*copies, files=FILES))
        await store.save()
        await ledger.close()

    async def body() -> None:
        await fill(20)
        await fill(5000)
        few, many = await cost(20), await cost(5000)
        assert many < 1.2 * few

    anyio.run(body)
