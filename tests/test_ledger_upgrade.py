"""Ledgers of older versions keep their totals, except for responses that they counted in two sessions."""

import shutil
import sqlite3
from hashlib import blake2b
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.ledger import open_ledger
from fluxbudgetd.ledger.schema import VERSION
from fluxbudgetd.model import Response
from harness.daemon import Home
from harness.events import Subscriber
from harness.service import service_over, within

FIXTURES = Path(__file__).parent / "fixtures"
INSERT = "INSERT INTO responses VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"


def key_of(message: int, request: str) -> int:
    """Return the key that version 4 gave a response."""
    digest = blake2b(message.to_bytes(8) + request.encode(), digest_size=8, person=b"request")
    return int.from_bytes(digest.digest()) >> 1


def row(
    session: str, message: int, request: str, tokens: tuple[int, int, int, int], sidechain: int = 0
) -> list[object]:
    """Return a response as version 4 stored it."""
    return [session, message, key_of(message, request), sidechain, 1, 1000 + message, "main-session", "opus", *tokens]


def ledger_with(directory: Path, *rows: list[object]) -> Path:
    """Write a ledger of version 4: s1 belongs to fixture-active since before s2 belongs to fixture-done."""
    path = directory / "ledger.db"
    directory.mkdir(exist_ok=True)
    shutil.copy(FIXTURES / "ledger-v4.db", path)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM responses")
    connection.execute("DELETE FROM transcripts")
    for session in {str(each[0]) for each in rows}:
        position = (session, 1, f"/nowhere/{session}.jsonl", 1, 1, 1, b"", "main-session", 0, 0)
        connection.execute("INSERT INTO transcripts VALUES (?,?,?,?,?,?,?,?,?,?)", position)
    connection.executemany(INSERT, rows)
    connection.commit()
    connection.close()
    return path


def test_response_counted_in_two_sessions_stays_with_the_first(home: Home) -> None:
    """The session that was attached first keeps it. Subscribers learn what the other one loses."""
    history = [(1, (1000, 500, 0, 0)), (2, (2000, 500, 30, 4))]
    ledger_with(
        home.state,
        *(row(session, message, f"r{message}", tokens) for message, tokens in history for session in ("s1", "s2")),
        row("s2", 3, "r3", (100, 50, 0, 0)),
        row("s2", 4, "", (7, 0, 0, 0)),
        row("s1", 4, "", (7, 0, 0, 0)),
        row("a-fork", 1, "r1", (1000, 500, 0, 0)),
        row("a-fork", 5, "r5", (9, 9, 9, 9)),
    )
    home.start()
    runs = {line["run"]["id"]: line["spend"] for line in home.json("run", "list", "--all")["runs"]}
    # s9's row names the scope of fixture-active.
    assert runs["fixture-active"]["spent"] == 1500 + 2500 + 7 + 100
    assert runs["fixture-done"]["spent"] == 150 + 7
    with Subscriber(home, since=8) as subscriber:
        subscriber.read_to(10)
    assert [(event.run, event.data) for event in subscriber.events if event.kind == "usage.corrected"] == [
        (None, {"session": "a-fork", "responses": 1, "billing": 1500, "total": 1500}),
        ("fixture-done", {"session": "s2", "responses": 2, "billing": 4000, "total": 4034}),
    ]


def test_session_with_only_anothers_responses_does_not_count_them_from_interstat(home: Home) -> None:
    """A fork's copies are in its rows, too."""
    path = ledger_with(home.state, row("s1", 1, "r1", (1000, 500, 0, 0)), row("s2", 1, "r1", (1000, 500, 0, 0)))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM usage WHERE session = 's2'").fetchone() == (1,)
    connection.close()
    home.start()
    runs = {line["run"]["id"]: line["spend"] for line in home.json("run", "list", "--all")["runs"]}
    assert runs["fixture-done"]["measured"] == 0


@pytest.mark.parametrize("first", ["s1", "s2"])
def test_attachment_decides_which_session_is_first(tmp_path: Path, first: str) -> None:
    """One without an attachment comes last."""
    path = ledger_with(tmp_path, *(row(session, 1, "r1", (1, 2, 3, 4)) for session in ("s1", "s2", "a-fork")))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE attachments SET since = 5 WHERE session = ?", (first,))
    connection.commit()
    connection.close()
    assert [response.session for response in upgraded(tmp_path)] == [first]


def test_responses_without_request_ids_keep_their_sessions(tmp_path: Path) -> None:
    """Version 4 gave those of one message the same key in all sessions."""
    ledger_with(
        tmp_path, row("s1", 1, "", (1, 0, 0, 0)), row("s2", 1, "", (2, 0, 0, 0), 1), row("s2", 2, "r", (4, 0, 0, 0))
    )
    found = [(each.session, each.input, each.place, each.has_request, each.is_final) for each in upgraded(tmp_path)]
    assert found == [("s1", 1, 0, False, True), ("s2", 2, 1, False, True), ("s2", 4, 0, True, False)]


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_samples_of_a_ledger_of_every_version(tmp_path: Path, version: int) -> None:
    """The transcripts that were read before give samples, even if they are gone."""
    path = tmp_path / "ledger.db"
    shutil.copy(FIXTURES / f"ledger-v{version}.db", path)
    has_responses = version >= 5
    if has_responses:
        connection = sqlite3.connect(path)
        connection.execute(
            "INSERT INTO transcripts(session, number, path, dev, ino, offset, mark, agent, skipped, anomalies, latest)"
            " VALUES ('s2', 9, '/gone/s2/subagents/agent-a9.jsonl', 1, 1, 100, x'', 'fd-old', 0, 0, 3000)"
        )
        connection.executemany(
            "INSERT INTO responses(key, session, message, has_request, place, is_final, file, at, agent, model,"
            " input, output, cache_read, cache_creation, cache_1h, is_fast)"
            " VALUES (?, 's2', ?, 1, 1, 1, 9, ?, 'fd-old', 'opus', 10, 20, 300, 4000, 0, 0)",
            [(901, 91, 1000), (902, 92, 3000)],
        )
        connection.commit()
        connection.close()

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            assert await service.samples.collect(within(60)) is None
            samples = service.samples.of("fd-old")
            found = [(each.input, each.output, each.total, each.duration, each.model) for each in samples]
            assert found == [(20, 40, 8660, 2000, "opus")] * has_responses
            assert len(await service.ledger.reviews.triages()) == (version >= 2)

    anyio.run(body)


def upgraded(directory: Path) -> list[Response]:
    """Open a ledger with this version, and return its responses."""

    async def body() -> list[Response]:
        ledger, moved = await open_ledger(str(directory))
        assert moved is None
        responses = [each for name in ("s1", "s2", "a-fork") for each in await ledger.transcripts.responses(name)]
        await ledger.close()
        return responses

    return anyio.run(body)
