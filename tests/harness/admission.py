"""Reservations seen from outside, and what ends them."""

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from harness.daemon import Home
from harness.hooks import Said
from harness.transcripts import Transcript

#: What a review agent, and any other, is expected to cost while nothing is known (flux-drive's defaults).
REVIEW, GENERATED, RESEARCH, ORACLE = 40_000, 40_000, 15_000, 80_000
#: How many random histories are played; more of them by hand, after a change.
SEEDS = 3
HALF_AN_HOUR = 30 * 60 * 1_000_000


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reserved(home: Home, run: str) -> int:
    return home.spend(run).reserved


def measures(
    home: Home,
    session: str,
    agent_id: str,
    agent: str = "fd-quality",
    *,
    tokens: int = 100,
    deeper: tuple[str, ...] = (),
) -> None:
    """Write a response into a sub-agent's transcript."""
    writer = Transcript(home.root / "claude", session).agent(agent_id, *deeper)
    writer.meta(agentType=agent)
    writer.response(f"m-{agent_id}", tokens=(tokens, 0, 0, 0), at=now())


def age_reservations(home: Home, micros: int) -> None:
    """Make every reservation in the ledger of a stopped daemon older."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        with connection:
            assert connection.execute("UPDATE reservations SET at = at - ?", (micros,)).rowcount
    finally:
        connection.close()


def together(count: int, call: Callable[[int], Said]) -> list[Said]:
    """Call so many at once, and return what each was told."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Said:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def kept_reservations(home: Home) -> list[tuple[Any, ...]]:
    """Return what the ledger has of reservations: agent's id, time, end."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        return connection.execute("SELECT agent_id, at, ended_at FROM reservations ORDER BY id").fetchall()
