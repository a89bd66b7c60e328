"""A slow, obvious recount of every row of interstat's database. It shares no code with the daemon.

The rules:

* A row whose bead is a run's scope belongs to the run with that scope that started last before the row's time, or to
  the first if none did.
* Otherwise it belongs to the run to which its session was attached at the row's time. A session's first attachment
  reaches back to the start of the run.
* A session that was never attached counts as attached, from its start, to the run of its earliest row with a known
  bead.
* What then belongs to no run belongs to the run that its session was attached to as a whole, if it is not newer than
  that attachment.
* A row counts for the phase that it names if the run has that phase, otherwise for the phase of the row's time.
* A completed phase counts its estimate until the phase has tokens, or a session that worked in it has.
"""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple


class StartedRun(NamedTuple):
    name: str
    scope: str | None
    at: float


class Attached(NamedTuple):
    """A session belongs to a run (None: to no run) from a time on (None: from its start).

    `noted_at` is when the daemon was asked to attach it; None if the session's rows implied it. `whole`: it has all of
    the session's usage that belongs to no other run.
    """

    session: str
    run: str | None
    at: float | None
    noted_at: float | None
    whole: bool = False


class Left(NamedTuple):
    """A completed phase of a run, its end, and its estimate in tokens."""

    phase: str
    until: float
    estimate: int


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
        self.attachments: list[Attached] = []
        self.left: dict[str, list[Left]] = {}
        self.chains: dict[str, tuple[str, ...]] = {}

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

    def attach(self, session: str, run: str | None, at: float, started: float, *, whole: bool = False) -> None:
        """Record that a session was attached to a run that had `started`, or, with None, detached."""
        known = [one for one in self.attachments if one.session == session]
        if not known and (before := self.implied(session)) is not None:
            self.attachments.append(Attached(session, before, None, None))
            known = [self.attachments[-1]]
        self.attachments.append(Attached(session, run, at if known else started, at, whole))

    def widen(self, session: str) -> None:
        """Record that a session's last attachment has been made one of the whole session."""
        index = max(index for index, one in enumerate(self.attachments) if one.session == session)
        self.attachments[index] = self.attachments[index]._replace(whole=True)

    def owner(self, row: dict[str, object], implied: dict[str, str | None]) -> str | None:
        at = seconds(row["timestamp"])
        by_bead = self.run_of_bead(row["bead_id"], at)
        if by_bead is not None:
            return by_bead
        known = [one for one in self.attachments if one.session == row["session_id"]]
        if not known:
            return implied[str(row["session_id"])]
        answer = None
        for one in known:
            if one.at is None or at is None or one.at <= at:
                answer = one.run
        if answer is None and at is not None:
            ends = [one.at or 0 for one in known[1:]]
            for one, end in zip(known, [*ends, None], strict=True):
                if one.whole and (end is None or at < end):
                    return one.run
        return answer

    def phase(self, row: dict[str, object], run: str) -> str:
        if row["phase"] in self.chains[run]:
            return str(row["phase"])
        at = seconds(row["timestamp"])
        for left in self.left[run]:
            if at is not None and at < left.until:
                return left.phase
        return self.chains[run][len(self.left[run])]

    def phases(self, run: str) -> dict[str, tuple[int, int]]:
        """Return phase → (measured billing tokens, estimate that counts)."""
        rows = self.rows()
        implied = {str(row["session_id"]): self.implied(str(row["session_id"]), rows) for row in rows}
        mine = [row for row in rows if self.owner(row, implied) == run]
        used = {str(row["session_id"]): 0 for row in rows}
        sums = dict.fromkeys(self.chains[run], 0)
        whole = dict.fromkeys(self.chains[run], 0)
        for row in mine:
            billing = count(row["input_tokens"]) + count(row["output_tokens"])
            total = billing + count(row["cache_read_tokens"]) + count(row["cache_creation_tokens"])
            used[str(row["session_id"])] += total
            sums[self.phase(row, run)] += billing
            whole[self.phase(row, run)] += total
        estimates = dict.fromkeys(self.chains[run], 0)
        began = next(started.at for started in self.runs if started.name == run)
        for left in self.left[run]:
            worked = [
                session
                for session, tokens in used.items()
                if tokens and self.worked(session, run, implied[session], rows, began, left.until)
            ]
            if not whole[left.phase] and not worked:
                estimates[left.phase] = left.estimate
            began = left.until
        return {phase: (sums[phase], estimates[phase]) for phase in self.chains[run]}

    def worked(
        self,
        session: str,
        run: str,
        implied: str | None,
        rows: list[dict[str, object]],
        since: float,
        until: float,
    ) -> bool:
        """True if a session worked for a run at any time from `since` until before `until`."""
        times = [at for row in rows if row["session_id"] == session and (at := seconds(row["timestamp"])) is not None]
        known = [one for one in self.attachments if one.session == session]
        if not known:
            return implied == run and min(times, default=0.0) < until
        # A row that is too old for every attachment does not show that the session was working for a run.
        counts_from = [0.0 if one.at is None or one.whole else one.at for one in known]
        earliest = min((at for at in times if at >= min(counts_from)), default=None)
        for index, one in enumerate(known):
            counted = None if earliest is None else max(earliest, counts_from[index])
            begin = min((at for at in (one.noted_at, counted) if at is not None), default=0.0)
            end = known[index + 1].at if index + 1 < len(known) else None
            if one.run == run and begin < until and (end is None or end > since):
                return True
        return False

    def totals(self) -> dict[str | None, tuple[int, int]]:
        """Return run → (billing, total) tokens; None stands for no run."""
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
