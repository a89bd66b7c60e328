"""What is read from a database: the runs that are active or followed, and the rows of other tables that concern them.

The number of queries does not depend on the number of runs, and each query uses an index, or reads only the newest rows
of a table. A query also returns the run's id, because in a damaged database, an index may lead to another run's rows.
"""

import os
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from fluxbudgetd.model import Counts, IcRun, IntercoreReading, PhaseMove, SessionClaim, Usage
from fluxbudgetd.sources.databases import fetch
from fluxbudgetd.sources.intercore import faults, rows
from fluxbudgetd.sources.intercore.schema import NEWEST, Schema, number, short
from fluxbudgetd.sources.values import text
from fluxbudgetd.wire.text import shown_path

#: Our own row of a run has this prefix before the run's id.
OWN_PREFIX = "fluxbudget-"
OWN_AGENT = "fluxbudget"

# No sprint comes near these limits. They bound the cost of a hostile database.
_MOST_RUNS = 1_000
_MOST_MOVES = 20_000
# Each becomes a phase that the run has completed, which is kept in memory and shown.
_MOST_MOVES_OF_RUN = 500
_MOST_DISPATCHES = 50_000
# The tables only grow. Sessions that work for a run now are among the newest rows.
_NEWEST_CLAIMS = 2_000
_MOST_SESSION_ID = 512


def read_contents(connection: sqlite3.Connection, path: str, followed: Mapping[str, int]) -> IntercoreReading:
    """Return a reading of the database at `path` (of the operating system); raises `FaultError` and `sqlite3.Error`."""
    schema = Schema.of(connection)
    return _Contents(connection, schema, path).reading(followed)


class _Contents:
    def __init__(self, connection: sqlite3.Connection, schema: Schema, path: str) -> None:
        self._connection = connection
        self._schema = schema
        self._path = path
        self._notes: list[str] = []

    def reading(self, followed: Mapping[str, int]) -> IntercoreReading:
        if self._schema.version > NEWEST:
            self._notes.append(f"schema {self._schema.version} is newer than {NEWEST}, the newest that was tested")
        runs = self._runs(followed)
        # Only ids that our runs may have. They pass through SQLite's JSON functions unchanged.
        keys = [key for key in runs if key.isascii() and key.isprintable()]
        moves = self._moves({key: followed.get(key, 0) for key in keys}, runs)
        last_moves = self._last_moves(keys)
        claims = self._claims(runs)
        dispatches = self._dispatches(keys)
        own = self._own(keys)
        status = faults.status(shown_path(self._path), "ok")
        return IntercoreReading(
            status=msgspec.structs.replace(status, notes=tuple(self._notes)),
            schema=self._schema.version,
            runs=runs,
            moves=moves,
            last_moves=last_moves,
            claims=claims,
            dispatches=dispatches,
            own=own,
        )

    def _fetch(self, sql: str, **parameters: object) -> list[Any]:
        return fetch(self._connection, sql, parameters)

    def _capped(self, found: list[Any], most: int, what: str) -> list[Any]:
        """Return at most `most` of the rows, which were read with a limit of one more; note if there are more."""
        if len(found) > most:
            self._notes.append(f"more than {most} {what}: the others are not read")
        return found[:most]

    def _runs(self, followed: Iterable[str]) -> dict[str, IcRun]:
        columns = self._schema.run_columns
        # Only with this condition alone does SQLite use the partial index.
        active = f"SELECT {columns} FROM runs WHERE status = 'active' ORDER BY rowid DESC LIMIT {_MOST_RUNS + 1}"  # noqa: S608  our own names
        by_key = f"SELECT {columns} FROM runs WHERE id IN (SELECT value FROM json_each(:keys))"  # noqa: S608  likewise
        found = self._capped(self._fetch(active), _MOST_RUNS, "active runs")
        found += self._fetch(by_key, keys=_json(sorted(followed)))
        project = shown_path(os.path.dirname(os.path.dirname(self._path)))
        runs = (rows.run_of(row, project) for row in found)
        return {run.id: run for run in runs if run.id}

    def _moves(self, known: Mapping[str, int], runs: Mapping[str, IcRun]) -> dict[str, tuple[PhaseMove, ...]]:
        sql = (
            f"SELECT known.key, phase_events.id, {short('from_phase')}, {short('to_phase')}, event_type, "  # noqa: S608  likewise
            f"{number('created_at')} "
            "FROM json_each(:known) AS known CROSS JOIN phase_events "
            "ON run_id = known.key AND phase_events.id > known.value "
            "WHERE event_type IN ('advance', 'override', 'rollback') "
            f"ORDER BY phase_events.id DESC LIMIT {_MOST_MOVES + 1}"
        )
        moves: dict[str, list[PhaseMove]] = {}
        invalid = 0
        skipped: dict[str, int] = {}
        for run, *row in self._capped(self._fetch(sql, known=_json(known)), _MOST_MOVES, "new phase events"):
            key = text(run)
            found = moves.setdefault(key, [])
            move = rows.move_of(row, runs[key].created_at)
            if move is None:
                invalid += 1
            elif len(found) == _MOST_MOVES_OF_RUN:
                skipped[key] = skipped.get(key, 0) + 1
            else:
                found.append(move)
        if invalid:
            self._notes.append(f"{invalid} phase events have no valid phase")
        self._notes += [
            f"run {key}: its {count} oldest new phase events are not read" for key, count in skipped.items()
        ]
        return {key: tuple(reversed(found)) for key, found in moves.items() if found}

    def _last_moves(self, keys: list[str]) -> dict[str, int]:
        sql = (
            "SELECT wanted.value, max(phase_events.id) FROM json_each(:keys) AS wanted CROSS JOIN phase_events "
            "ON run_id = wanted.value WHERE event_type IN ('advance', 'override', 'rollback') GROUP BY wanted.value"
        )
        return {text(run): last for run, last in self._fetch(sql, keys=_json(keys))}

    def _claims(self, runs: Mapping[str, IcRun]) -> tuple[SessionClaim, ...]:
        """Return the latest claim of each session whose run or bead is among the runs.

        A claim wins over an attribution, which is made for the whole machine, unless the claimed run has ended since.
        """
        claims = self._latest("run_agents", "name", "run_id", "NULL", "agent_type = 'session'", is_claim=True)
        attributions: dict[str, SessionClaim] = {}
        if self._schema.has_attributions:
            attributions = self._latest("session_attributions", "session_id", "run_id", "bead_id", "1", is_claim=False)
        beads = {run.scope for run in runs.values()} - {None}
        chosen = []
        for session in claims | attributions:
            claim, attribution = claims.get(session), attributions.get(session)
            if claim is None or (attribution is not None and attribution.at > claim.at and not _is_active(claim, runs)):
                claim = attribution
            if claim is not None and (claim.run in runs or (claim.run is None and claim.bead in beads)):
                chosen.append(claim)
        return tuple(chosen)

    def _latest(
        self, table: str, session: str, run: str, bead: str, condition: str, *, is_claim: bool
    ) -> dict[str, SessionClaim]:
        sql = (
            f"SELECT {short(session)}, {short(run)}, {short(bead)}, {number('created_at')} FROM {table} "  # noqa: S608  likewise
            f"WHERE rowid > (SELECT max(rowid) FROM {table}) - {_NEWEST_CLAIMS} AND {condition} ORDER BY rowid"
        )
        latest: dict[str, SessionClaim] = {}
        invalid = 0
        for session_id, run_id, bead_id, created in self._fetch(sql):
            name, at = text(session_id), rows.moment(created)
            if not 0 < len(name) <= _MOST_SESSION_ID:
                continue
            if at is None:
                invalid += 1
                continue
            latest[name] = SessionClaim(name, at, text(run_id) or None, text(bead_id) or None, is_claim)
        if invalid:
            self._notes.append(f"{invalid} rows of {table} have no valid time")
        return latest

    def _dispatches(self, keys: list[str]) -> dict[str, tuple[Usage, ...]]:
        columns = (
            *map(short, ("dispatches.id", "agent_type", "model")),
            *map(number, ("input_tokens", "output_tokens", "cache_hits", "created_at", "completed_at")),
        )
        sql = (
            f"SELECT wanted.value, {', '.join(columns)} FROM json_each(:keys) AS wanted CROSS JOIN dispatches "  # noqa: S608  likewise
            f"ON scope_id = wanted.value WHERE agent_type IS NOT '{OWN_AGENT}' "
            f"AND substr(dispatches.id, 1, {len(OWN_PREFIX)}) IS NOT '{OWN_PREFIX}' LIMIT {_MOST_DISPATCHES + 1}"
        )
        usage: dict[str, list[Usage]] = {}
        anomalies = 0
        for run, *row in self._capped(self._fetch(sql, keys=_json(keys)), _MOST_DISPATCHES, "dispatches"):
            record, invalid = rows.usage_of(row)
            usage.setdefault(text(run), []).append(record)
            anomalies += invalid
        if anomalies:
            self._notes.append(f"{anomalies} token counts of dispatches are invalid and count as 0")
        return {key: tuple(records) for key, records in usage.items()}

    def _own(self, keys: list[str]) -> dict[str, Counts | None]:
        columns = ", ".join(map(number, ("input_tokens", "output_tokens", "cache_hits")))
        sql = (
            f"SELECT wanted.value, {columns} FROM json_each(:keys) AS wanted CROSS JOIN dispatches "  # noqa: S608  likewise
            f"ON dispatches.id = '{OWN_PREFIX}' || wanted.value"
        )
        found = {text(run): rows.own_counts(values) for run, *values in self._fetch(sql, keys=_json(keys))}
        return {key: found.get(key) for key in keys}


def _is_active(claim: SessionClaim, runs: Mapping[str, IcRun]) -> bool:
    run = None if claim.run is None else runs.get(claim.run)
    return run is not None and run.status == "active"


def _json(value: Iterable[str] | Mapping[str, int]) -> str:
    return msgspec.json.encode(value).decode()
