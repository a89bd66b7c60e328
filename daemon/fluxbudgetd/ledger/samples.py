"""Samples as stored, and the transcripts of sub-agents that have no sample of their present content yet."""

import itertools
import operator
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.ledger.transcripts import FILE_COLUMNS, stored_file
from fluxbudgetd.model import Sample, TranscriptFile
from fluxbudgetd.threads import off_loop

_COLUMNS = "session, instance, agent, model, sliced, input, output, total, started_at, ended_at, source, round"

# A row id is looked up for each sample, because only a subquery can limit the samples of each agent.
_NEWEST = f"""
WITH RECURSIVE wanted(name) AS ({{agents}})
SELECT {_COLUMNS} FROM wanted JOIN samples ON samples.rowid IN (
  SELECT rowid FROM samples WHERE agent = wanted.name ORDER BY ended_at DESC, rowid DESC LIMIT :most
)
ORDER BY samples.agent, ended_at DESC, samples.rowid DESC
"""  # noqa: S608  our own names
# One step of the index for each agent, however many samples it has.
_EVERY_AGENT = """
  SELECT min(agent) FROM samples
  UNION ALL SELECT (SELECT min(agent) FROM samples WHERE agent > name) FROM wanted WHERE name IS NOT NULL
"""
_THESE_AGENTS = "SELECT value FROM json_each(:agents)"

# A sub-agent that was resumed has used more than before. A row may be measured again.
_PUT = (
    f"INSERT INTO samples({_COLUMNS}) VALUES ({', '.join('?' * 12)})"  # noqa: S608  our own names
    " ON CONFLICT(session, instance) DO UPDATE SET agent = excluded.agent, model = excluded.model,"
    " sliced = excluded.sliced, input = excluded.input, output = excluded.output, total = excluded.total,"
    " started_at = excluded.started_at, ended_at = excluded.ended_at, round = excluded.round"
    " WHERE excluded.total >= samples.total OR excluded.source = 'interstat'"
)
# What transcripts say about a session replaces what interstat says about it.
_DROP_ROWS = """
DELETE FROM samples WHERE source = 'interstat' AND session IN (
  SELECT session FROM samples WHERE source = 'transcripts' AND session IN (SELECT value FROM json_each(?))
)
"""
_REPLACED = """
SELECT agent FROM json_each(?) AS wanted JOIN samples
  ON session = json_extract(wanted.value, '$[0]') AND instance = json_extract(wanted.value, '$[1]')
UNION SELECT agent FROM samples WHERE source = 'interstat' AND session IN (SELECT value FROM json_each(?))
"""


class SubAgentFile(NamedTuple):
    """A sub-agent's transcript, as far as it was read."""

    session: str
    file: TranscriptFile


class StoredSamples:
    """Samples by session and instance. They outlive their sources."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self, most: int, agents: Collection[str] | None = None) -> dict[str, tuple[Sample, ...]]:
        """Return the newest samples, at most `most`, of each of these agents (plain names) or of all, by agent."""
        which = _EVERY_AGENT if agents is None else _THESE_AGENTS
        named = msgspec.json.encode(sorted(agents or ())).decode()
        parameters = {"most": most} if agents is None else {"most": most, "agents": named}
        rows = await self._database.rows(_NEWEST.format(agents=which), parameters)
        return await off_loop(len(rows), _by_agent, rows)

    async def replaced_by(self, samples: Collection[Sample]) -> set[str]:
        """Return the agents of the stored samples that saving these replaces or drops."""
        instances = msgspec.json.encode([(each.session, each.instance) for each in samples]).decode()
        sessions = _json({each.session for each in samples if each.source == "transcripts"})
        return {agent for (agent,) in await self._database.rows(_REPLACED, (instances, sessions))}

    async def unsampled(self) -> dict[str, list[SubAgentFile]]:
        """Return the transcripts of sub-agents that have changed since their samples were taken, by session."""
        rows = await self._database.rows(
            f"SELECT session, {FILE_COLUMNS} FROM transcripts INDEXED BY transcripts_unsampled"  # noqa: S608  our own names
            " WHERE is_sampled = 0 AND agent <> 'main-session' AND number > 0 ORDER BY session, number"
        )
        return await off_loop(len(rows), _by_session, rows)

    async def save(self, samples: Sequence[Sample], sampled: Sequence[SubAgentFile] = ()) -> None:
        """Add or replace samples, and note that these transcripts have none to give until they change.

        A sample of a transcript with fewer tokens than the one before is ignored. A session has samples from
        transcripts or, if it has none of those, from interstat.
        """
        rows = await off_loop(len(samples), _rows, samples)
        done = [(session, file.number, file.offset, file.agent) for session, file in sampled]
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany(_PUT, rows)
            await transaction.executemany(
                # It may have grown meanwhile.
                "UPDATE transcripts SET is_sampled = 1 WHERE session = ? AND number = ? AND offset = ? AND agent = ?",
                done,
            )
            await transaction.execute(_DROP_ROWS, (_json({sample.session for sample in samples}),))


def _json(values: Iterable[str]) -> str:
    return msgspec.json.encode(sorted(values)).decode()


def _files(rows: Sequence[Sequence[Any]]) -> list[SubAgentFile]:
    return [SubAgentFile(session, stored_file(row)) for session, *row in rows]


def _by_session(rows: Iterable[Sequence[Any]]) -> dict[str, list[SubAgentFile]]:
    return {
        session: _files(list(of_session)) for session, of_session in itertools.groupby(rows, operator.itemgetter(0))
    }


def _rows(samples: Iterable[Sample]) -> list[tuple[object, ...]]:
    return [msgspec.structs.astuple(sample) for sample in samples]


def _by_agent(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[Sample, ...]]:
    found: dict[str, list[Sample]] = {}
    for row in rows:
        sample = _sample(row)
        found.setdefault(sample.agent, []).append(sample)
    return {agent: tuple(samples) for agent, samples in found.items()}


def _sample(row: Sequence[Any]) -> Sample:
    session, instance, agent, model, sliced, input_, output, total, started_at, ended_at, source, round_ = row
    # The same few names are in thousands of samples.
    return Sample(
        session=sys.intern(session),
        instance=instance,
        agent=sys.intern(agent),
        model=sys.intern(model),
        sliced=bool(sliced),
        input=input_,
        output=output,
        total=total,
        started_at=started_at,
        ended_at=ended_at,
        source=source,
        round=round_,
    )
