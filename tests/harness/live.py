"""Live totals of a daemon: the transcripts that it reads, and what it answers about them."""

import sqlite3
from pathlib import Path

from harness.daemon import Home
from harness.transcripts import Transcript


def transcript(home: Home, session: str = "s1", project: str = "-home-me-work") -> Transcript:
    """Return the writer of a session's transcript in that home."""
    return Transcript(home.root / "claude", session, project)


def by_agent(home: Home, run: str) -> dict[str, int]:
    """Return agent → billing tokens."""
    return {line.name: line.billing for line in home.details(run).by_agent}


def offsets(home: Home) -> set[int]:
    """Return the positions in transcripts that the ledger has."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        return {offset for (offset,) in connection.execute("SELECT offset FROM transcripts")}
    finally:
        connection.close()


def append(directory: Path, session: str, first: int, count: int, tokens: int = 1) -> None:
    """Append `count` responses, the first of which is named after the number `first`."""
    writer = Transcript(directory, session)
    for number in range(first, first + count):
        writer.response(f"m{number}", tokens=(tokens, 0, 0, 0))
