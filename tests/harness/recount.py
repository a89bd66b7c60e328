"""The slow, obvious recount: every row of the database, one after the other, against everything that was ever said.

It shares no code with the daemon. It knows the rules as sentences:

* a row whose bead is a run's scope belongs to that run (the last one started at its time, else the first);
* else it belongs to the run that its session was attached to at its time, a session's first attachment reaching back;
* a session that was never attached counts as attached to the run of its earliest row with a known bead.
"""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple


class StartedRun(NamedTuple):
    name: str
    scope: str | None
    at: float


class Said(NamedTuple):
    """A session belongs to a run (None: to no run) from then on; `at` None: from its start."""

    session: str
    run: str | None
    at: float | None


def seconds(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


class Recount:
    def __init__(self, database: Path) -> None:
        self.database = database
        self.runs: list[StartedRun] = []
        self.said: list[Said] = []

    def rows(self) -> list[dict[str, object]]:
        connection = sqlite3.connect(self.database)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute("SELECT * FROM agent_runs ORDER BY id")]
        finally:
            connection.close()

    def run_of_bead(self, bead: object, at: float | None) -> str | None:
        candidates = [run for run in self.runs if run.scope is not None and run.scope == bead]
        if not candidates:
            return None
        if at is None:
            return candidates[-1].name
        answer = candidates[0].name
        for run in candidates:
            if run.at <= at:
                answer = run.name
        return answer

    def implied(self, session: str, rows: list[dict[str, object]] | None = None) -> str | None:
        best = None
        for row in self.rows() if rows is None else rows:
            if row["session_id"] != session:
                continue
            at = seconds(row["timestamp"])
            run = self.run_of_bead(row["bead_id"], at)
            if run is not None and (best is None or (at is None, at or 0, row["id"]) < best[0]):
                best = ((at is None, at or 0, row["id"]), run)
        return None if best is None else best[1]

    def say(self, session: str, run: str | None, at: float) -> None:
        """Note an attachment (or, with None, a detachment) that the daemon was told of now."""
        spoken = [said for said in self.said if said.session == session]
        if not spoken and (before := self.implied(session)) is not None:
            self.said.append(Said(session, before, None))
            spoken = [self.said[-1]]
        self.said.append(Said(session, run, at if spoken else None))

    def owner(self, row: dict[str, object], implied: dict[str, str | None]) -> str | None:
        at = seconds(row["timestamp"])
        by_bead = self.run_of_bead(row["bead_id"], at)
        if by_bead is not None:
            return by_bead
        spoken = [said for said in self.said if said.session == row["session_id"]]
        if not spoken:
            return implied[str(row["session_id"])]
        answer = None
        for said in spoken:
            if said.at is None or at is None or said.at <= at:
                answer = said.run
        return answer

    def totals(self) -> dict[str | None, tuple[int, int]]:
        """Return run → (billing, total) tokens; under None what belongs to no run."""
        sums: dict[str | None, tuple[int, int]] = {run.name: (0, 0) for run in self.runs}
        rows = self.rows()
        sessions = {str(row["session_id"]) for row in rows}
        implied = {session: self.implied(session, rows) for session in sessions}
        for row in rows:
            billing = count(row["input_tokens"]) + count(row["output_tokens"])
            total = billing + count(row["cache_read_tokens"]) + count(row["cache_creation_tokens"])
            owner = self.owner(row, implied)
            before = sums.get(owner, (0, 0))
            sums[owner] = (before[0] + billing, before[1] + total)
        return sums
