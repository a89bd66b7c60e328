"""Samples of sub-agents that have ended, collected from transcripts and from interstat's rows.

All samples are in the ledger; memory has the newest ones of each agent. A request has them collected and waits until
its deadline. What takes longer continues in a task of its own, and the next request gets it. A source that hangs does
not delay the other one. `policy.samples` has the rules.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import anyio

from fluxbudgetd.decisions.collector import Collector, NotCollectedError
from fluxbudgetd.decisions.reservations import Reservations
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, SubAgentFile
from fluxbudgetd.model import MeasuredRow, NewRows, Response, RowMark, Sample, TranscriptFile, Triage
from fluxbudgetd.policy import samples as policy
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import agent_id, plain_agent
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.accounts import Accounts

T = TypeVar("T")

#: Only this many samples of each agent count, because costs drift.
MOST_PER_AGENT = 200
# A transaction is short, so that it delays no other.
_SUB_AGENTS_PER_TRANSACTION = 20
_ROWS_PER_TRANSACTION = 1000
_SESSIONS_PER_UPDATE = 100
_SAVE_SECONDS = 5.0
_FIRST_SECONDS = 30.0


class _SubAgent(NamedTuple):
    """A sub-agent of a session and the transcripts that it has had."""

    session: str
    id: str
    files: tuple[SubAgentFile, ...]


class Samples:
    """The samples of each agent, newest first. Names are plain."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        reservations: Reservations,
        ledger: Ledger,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._saver = totals.saver
        self._history = totals.history
        self._reservations = reservations
        self._ledger = ledger
        self._clock = clock
        self._by_agent: dict[str, tuple[Sample, ...]] = {}
        self._mark = RowMark()
        # Agents with samples in the ledger that memory does not have.
        self._outdated: set[str] = set()
        self._lock = anyio.Lock()
        self._collectors = (
            Collector("samples of transcripts", self._collect_transcripts),
            Collector("samples of interstat", self._collect_rows),
        )

    async def load(self) -> None:
        """Read the ledger's newest samples; raises `LedgerError`."""
        self._by_agent = await self._ledger.samples.newest(MOST_PER_AGENT)

    @property
    def has_any(self) -> bool:
        """Return True if there is a sample of any agent."""
        return bool(self._by_agent)

    def agents(self) -> Sequence[str]:
        """Return the agents that have samples, in alphabetical order."""
        return sorted(self._by_agent)

    def of(self, agent: str) -> Sequence[Sample]:
        """Return an agent's newest samples, newest first; at most `MOST_PER_AGENT`."""
        return self._by_agent.get(agent, ())

    async def collect(self, deadline: float) -> str | None:
        """Take the samples of all sub-agents that have ended, as far as their sources have been read.

        Return why some may be missing; None if there are all.
        """
        requests = [(collector, collector.request(deadline)) for collector in self._collectors]
        reasons = [await collector.wait(number, deadline) for collector, number in requests]
        return "; ".join(filter(None, reasons)) or None

    async def serve(self) -> None:
        """Collect as requested, until cancelled.

        If there is no sample yet, collect at once: a launch does not wait until a large table has been read.
        """
        if not self.has_any:
            for collector in self._collectors:
                collector.request(anyio.current_time() + _FIRST_SECONDS)
        async with anyio.create_task_group() as tasks:
            for collector in self._collectors:
                tasks.start_soon(collector.serve)

    async def _collect_transcripts(self, _deadline: float) -> None:
        if not await self._saver.save_all(_SAVE_SECONDS):
            raise NotCollectedError("the latest usage could not be written to the ledger")
        try:
            for number, (session, files) in enumerate((await self._ledger.samples.unsampled()).items(), 1):
                ended = await self._ended(session, files)
                for batch in _batches(ended, _SUB_AGENTS_PER_TRANSACTION):
                    await self._sample(session, batch)
                if number % _SESSIONS_PER_UPDATE == 0:
                    await self._update()
        finally:
            # If one session fails, those before it count.
            await self._update()

    async def _ended(self, session: str, changed: Sequence[SubAgentFile]) -> list[_SubAgent]:
        """Return the sub-agents that have ended, of those with changed transcripts."""
        over, now = self._reservations.over(session), self._clock()
        ids = await off_loop(len(changed), _ids_of_ended, changed, over, now)
        if not ids:
            return []
        # One that was replaced, or is in the session's former directory, has not changed but counts.
        files = await self._ledger.transcripts.files(session)
        return await off_loop(len(files), _sub_agents, session, files, ids)

    async def _sample(self, session: str, ended: Sequence[_SubAgent]) -> None:
        """Take the samples of a session's ended sub-agents."""
        numbers = [each.file.number for sub_agent in ended for each in sub_agent.files]
        responses = await self._ledger.transcripts.of_files(session, numbers)
        triages, runs = await self._triages([session])
        names = {each.id: self._name(each) for each in ended}
        taken = await off_loop(len(responses), _of_responses, session, ended, names, responses, triages, runs)
        await self._save(taken, [each for sub_agent in ended for each in sub_agent.files])

    def _name(self, sub_agent: _SubAgent) -> str | None:
        """Return a sub-agent's type. Without a companion, its transcript does not name it, but a hook may have."""
        unnamed = plain_agent(sub_agent.files[-1].file.path)
        for each in reversed(sub_agent.files):
            if each.file.agent != unnamed:
                return each.file.agent
        name = self._reservations.type_of(sub_agent.session, sub_agent.id)
        return None if name == unnamed else name

    async def _collect_rows(self, deadline: float) -> None:
        mark = self._mark

        def scan(source: InterstatSource) -> NewRows | None:
            return source.new_rows(mark)

        found = await self._history.ask("samples", scan, deadline)
        if found.value is not None:
            rows = found.value.rows
            for batch in _batches(rows, _ROWS_PER_TRANSACTION):
                await self._sample_rows(batch)
            await self._update()
            # The history keeps its last result, which must not be large.
            rows.clear()
            self._mark = found.value.mark
        # Without interstat, transcripts have all samples.
        is_unused = found.in_time and found.value is None and self._history.status.state in ("absent", "empty")
        if found.stale_why is not None and not is_unused:
            raise NotCollectedError(found.stale_why)

    async def _sample_rows(self, rows: Sequence[MeasuredRow]) -> None:
        triages, runs = await self._triages({row.session for row in rows})
        await self._save(await off_loop(len(rows) + len(triages), _of_rows, rows, triages, runs), ())

    async def _save(self, taken: Sequence[Sample], sampled: Sequence[SubAgentFile]) -> None:
        stored = self._ledger.samples
        self._outdated |= {sample.agent for sample in taken} | await stored.replaced_by(taken)
        await stored.save(taken, sampled)

    async def _update(self) -> None:
        """Read the newest samples of the agents that have others than before.

        This costs more than saving a few, so it is done once for many.
        """
        async with self._lock:
            agents, self._outdated = self._outdated, set()
            try:
                newest = await self._ledger.samples.newest(MOST_PER_AGENT, agents)
            except LedgerError:
                self._outdated |= agents
                raise
            for agent in agents:
                self._by_agent.pop(agent, None)
            self._by_agent.update(newest)

    async def _triages(self, sessions: Collection[str]) -> tuple[list[Triage], dict[str, list[str]]]:
        """Return the triages that may have launched sub-agents of these sessions, and the runs of each session."""
        runs = {
            session: [attachment.run for attachment in account.current]
            for session in sessions
            if (account := self._accounts.sessions.get(session)) is not None
        }
        return await self._ledger.reviews.of_sessions(sessions, set(chain.from_iterable(runs.values()))), runs


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _ids_of_ended(changed: Iterable[SubAgentFile], over: Collection[str], now: int) -> set[str]:
    """Return the ids of the sub-agents that have ended."""
    by_id: dict[str, list[TranscriptFile]] = {}
    for _, file in changed:
        by_id.setdefault(_id(file), []).append(file)
    return {name for name, files in by_id.items() if policy.has_finished(files, now, is_over=name in over)}


def _sub_agents(session: str, files: Iterable[TranscriptFile], ids: Collection[str]) -> list[_SubAgent]:
    by_id: dict[str, list[SubAgentFile]] = {}
    for file in files:
        if file.number > 0 and (name := _id(file)) in ids:
            by_id.setdefault(name, []).append(SubAgentFile(session, file))
    return [_SubAgent(session, name, tuple(found)) for name, found in by_id.items()]


def _id(file: TranscriptFile) -> str:
    return agent_id(file.path) or plain_agent(file.path)


def _of_responses(
    session: str,
    ended: Iterable[_SubAgent],
    names: Mapping[str, str | None],
    responses: Iterable[Response],
    triages: Iterable[Triage],
    runs: Mapping[str, Collection[str]],
) -> list[Sample]:
    reviews = ReviewAgents(triages, runs)
    by_file: dict[int, list[Response]] = {}
    for response in responses:
        by_file.setdefault(response.file, []).append(response)
    found = []
    for sub_agent in ended:
        name = names[sub_agent.id]
        own = [response for each in sub_agent.files for response in by_file.get(each.file.number, ())]
        sample = None if name is None else policy.of_responses(session, f"agent-{sub_agent.id}", name, own, reviews)
        if sample is not None:
            found.append(sample)
    return found


def _of_rows(
    rows: Iterable[MeasuredRow], triages: Iterable[Triage], runs: Mapping[str, Collection[str]]
) -> list[Sample]:
    reviews = ReviewAgents(triages, runs)
    taken = (policy.of_row(row, reviews) for row in rows)
    return [sample for sample in taken if sample is not None]
