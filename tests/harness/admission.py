"""Reservations of sub-agents, observed from outside the daemon."""

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from harness.daemon import Home
from harness.hooks import HookOutput
from harness.transcripts import Transcript, timestamp

#: Estimates of billing tokens by category of agent, used while there is no history (flux-drive's defaults).
REVIEW, GENERATED, RESEARCH, ORACLE = 40_000, 40_000, 15_000, 80_000
#: How long a reservation counts at most, in microseconds.
HALF_AN_HOUR = 30 * 60 * 1_000_000


def reserved(home: Home, run: str) -> int:
    return home.spend(run).reserved


def write_agent_usage(
    home: Home,
    session: str,
    agent_id: str,
    agent: str = "fd-quality",
    *,
    tokens: int = 100,
    deeper: tuple[str, ...] = (),
    call: str | None = None,
    message: str = "",
) -> None:
    """Write a response into a sub-agent's transcript. `call` is the tool call that launched the sub-agent."""
    writer = Transcript(home.root / "claude", session).agent(agent_id, *deeper)
    writer.meta(None, agentType=agent, **({} if call is None else {"toolUseId": call}))
    writer.response(f"m-{agent_id}{message}", tokens=(tokens, 0, 0, 0), at=timestamp())


def age_reservations(home: Home, micros: int) -> None:
    """Make every reservation in a stopped daemon's ledger older by this much."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        with connection:
            assert connection.execute(
                "UPDATE reservations SET at = at - :by, seen_at = seen_at - :by", {"by": micros}
            ).rowcount
    finally:
        connection.close()


def concurrently(count: int, call: Callable[[int], HookOutput]) -> list[HookOutput]:
    """Make this many calls at the same moment; return the outputs."""
    barrier = threading.Barrier(count)

    def one(number: int) -> HookOutput:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def stored_reservations(home: Home) -> list[tuple[Any, ...]]:
    """Return the reservations in the ledger: the agent's id, when it was made, when it ended."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        return connection.execute("SELECT agent_id, at, ended_at FROM reservations ORDER BY id").fetchall()
