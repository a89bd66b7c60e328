"""What one more row costs its writer and the next request, depending on the size of the file."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from common import Row, grouped, ratio, spread, timed, world
from databases import LARGE, MIDDLE, SMALL, database
from fluxbudgetd.wire import messages
from harness import daemon as harness

_INSERT = (
    "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens)"
    " VALUES ('2026-01-01T00:00:00Z', ?, 'x', 1, 1)"
)


class _Side(NamedTuple):
    wire: harness.Wire
    run: str
    writer: sqlite3.Connection
    commits: list[float]
    answers: list[float]


def _side(stack: ExitStack, base: Path, rows: int) -> _Side:
    home = stack.enter_context(world(f"{rows}", base))
    database(base, home.interstat, rows)
    home.start()
    run = harness.started(home, session="s5", whole=True, scope="b1", token_budget="none")
    writer = sqlite3.connect(home.interstat, isolation_level=None)
    stack.callback(writer.close)
    writer.execute("PRAGMA synchronous=NORMAL")
    return _Side(stack.enter_context(harness.Wire(home.socket)), run, writer, [], [])


def insert_cost(base: Path, rounds: int) -> Iterator[Row]:
    """Commit one row and ask what remains, with files of three sizes in turn."""
    with ExitStack() as stack:
        sides = {rows: _side(stack, base, rows) for rows in (SMALL, MIDDLE, LARGE)}
        turns = [*sides.values()]
        for number in range(rounds):
            # Most rows belong to other sessions, but every commit makes the daemon read.
            session = "s5" if number % 20 == 0 else "s6"
            for side in turns[:: 1 if number % 2 else -1]:
                request = messages.Remaining(run=side.run, wait_ms=5000)
                side.commits.append(timed(lambda: side.writer.execute(_INSERT, (session,))))  # noqa: B023  used at once
                side.answers.append(timed(lambda: side.wire.ask(request)))  # noqa: B023  likewise
    small, large = sides[SMALL], sides[LARGE]
    yield ratio("answer after one insert, 1 000 000-row file ÷ 10 000-row file", large.answers, small.answers, 1.5)
    for rows, side in sides.items():
        yield Row(f"… in the {grouped(rows)}-row file", spread(side.answers), "", None)
    yield ratio("insert, for its writer, 1 000 000-row file ÷ 10 000-row file", large.commits, small.commits)
    for rows, side in sides.items():
        yield Row(f"… in the {grouped(rows)}-row file", spread(side.commits), "", None)
