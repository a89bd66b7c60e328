"""Reviews: what agents may cost, which of them are launched, what they have cost, and what is learned from that."""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import anyio
import anyio.lowlevel

from fluxbudgetd import __version__
from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.engine.book import RunState
from fluxbudgetd.engine.history import History
from fluxbudgetd.engine.parts import Parts
from fluxbudgetd.errors import BadInputError, ConfigError, RequestTimeoutError
from fluxbudgetd.model import Balance, Run, Triage, Usage, to_text
from fluxbudgetd.policy import advance, calibrate, estimates, report, triage
from fluxbudgetd.policy.estimates import Measured
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.threads import off_loop
from fluxbudgetd.wire.messages import (
    AgentCalibration,
    Calibration,
    CostReport,
    Provenance,
    SlicingCalibration,
    TriageRequest,
)

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_MAX_MODEL = 200
# A calibration has to fit into a frame, and into a file that is read again.
_MOST_AGENTS = 1000
# So many runs are looked at before anybody else is let on.
_AT_A_TIME = 64
_PATIENCE_SECONDS = 0.03
# 30 ms of the 150 ms that a hook usually has.
_RULES_SHARE = 0.2


class Decided(NamedTuple):
    """A triage, what a person should know of it, and why its numbers are not the present ones (None: they are)."""

    triage: Triage
    note: str
    stale_why: str | None


class Reported(NamedTuple):
    """A cost report, the triages it is about, and why its numbers are not the present ones (None: they are)."""

    report: CostReport
    triages: tuple[str, ...]
    stale_why: str | None


class Reviews:
    """`history` has the means of all agents, and what calibration learns from."""

    def __init__(self, parts: Parts, history: History) -> None:
        self._book = parts.book
        self._refresher = parts.refresher
        self._ledger = parts.ledger
        self._settings = parts.settings
        self._clock = parts.clock
        self._history = history

    async def means(self, model: str | None, deadline: float) -> tuple[dict[str, Measured], str | None]:
        """Return what agents have cost so far on a model, and why that is not up to date (None: it is)."""
        name = estimates.DEFAULT_MODEL if model is None else model
        if not 0 < len(name) <= _MAX_MODEL:
            raise BadInputError(f"a model name of {len(name)} characters", f"1 to {_MAX_MODEL} are allowed")

        def look(source: InterstatSource) -> dict[str, Measured] | None:
            samples = source.samples(name)
            return None if samples is None else estimates.measured(samples)

        found = await self._history.ask(f"means of {name}", self._refresher.epoch(), look, deadline)
        if found.value is None and not found.in_time:
            raise RequestTimeoutError("the agents' history is still being read", "ask again, or give more --timeout")
        return found.value or {}, found.why

    async def expected(self, agent: str, run: Run, deadline: float) -> int:
        """Return what an agent of a run's is expected to cost, in tokens of its cost basis, by what is known at once.

        The project's budget file has a share of the caller's time: to pass over it, because the machine is busy, is to
        decide by other numbers than the project's. The agents' whole history is not waited for.
        """
        now = anyio.current_time()
        try:
            rules = await self.rules(run.project_dir, now + (deadline - now) * _RULES_SHARE)
        except (ConfigError, RequestTimeoutError):
            rules = ReviewBudget()
        now = anyio.current_time()
        try:
            known, _ = await self.means(None, now + min(_PATIENCE_SECONDS, (deadline - now) / 2))
        except RequestTimeoutError:
            known = {}
        kind = estimates.category(agent)
        return estimates.of_agent(agent, kind, known, rules, run.cost_basis, slicing=False).tokens

    async def rules(self, project_dir: str | None, deadline: float, *, calibrated: bool = True) -> ReviewBudget:
        """Return flux-drive's rules for a project; raises `ConfigError` when one of its files is wrong."""
        await self._settings.refresh(deadline)
        with anyio.CancelScope(deadline=deadline):
            return await self._settings.review_budget(project_dir, calibrated=calibrated)
        raise RequestTimeoutError("flux-drive's budget file could not be read in time", "give more --timeout")

    async def triage(self, asked: TriageRequest, run: Run | None, balance: Balance | None, deadline: float) -> Decided:
        """Decide which agents are launched, and keep the decision; `run` and `balance` are the run's that applies."""
        project = asked.hints.cwd if run is None else run.project_dir
        rules = await self.rules(project, deadline)
        known, stale_why = await self.means(asked.model, deadline)
        remaining = None if balance is None else balance.remaining
        limit = triage.limit(
            asked.input_type,
            rules,
            remaining,
            "billing" if run is None else run.cost_basis,
            "soft" if run is None else run.enforcement,
        )
        decided = await off_loop(len(asked.agents), _decide, asked, known, rules, limit)
        session = asked.session or next(iter(asked.hints.sessions), None)
        before, _ = await self._records(session, None if run is None else run.id, deadline)
        note = decided.note
        if session is None and run is None:
            unknown = "neither session nor run is known, so 'report' will find none of this triage's tokens"
            note = "; ".join(filter(None, (note, unknown)))
        kept = Triage(
            id=_new_id(),
            at=self._clock(),
            run=None if run is None else run.id,
            session=session,
            # A transcript's keys say nothing of the order in which they came, but its times are exact.
            last_key=None if self._is_live(session) else max((record.key for record in before), default=0),
            input_type=asked.input_type,
            model=asked.model or estimates.DEFAULT_MODEL,
            slicing=asked.slicing,
            cost_basis=limit.basis,
            enforcement=limit.enforcement,
            min_agents=rules.min_agents,
            type_budget=limit.type_budget,
            sprint_remaining=remaining,
            sprint_constrained=limit.constrained,
            budget=limit.budget,
            verdict=decided.verdict,
            override=decided.override,
            agents=decided.lines,
        )
        await self._ledger.save_triage(kept)
        return Decided(kept, note, stale_why)

    async def report(self, name: str, deadline: float) -> tuple[Triage, Reported]:
        """Return a triage and its cost report; raises `BadInputError` for one that does not exist."""
        found = await self._ledger.triage(name)
        if found is None:
            raise BadInputError(f"there is no triage {name[:60]!r}", "'fluxbudgetctl triage' prints the id of each")
        if found.run in self._book.runs:
            # Which of its sources counts for a session is known when its run has been looked at.
            await self._refresher.refresh([found.run], deadline=deadline)
        records, stale_why = await self._records(found.session, found.run, deadline)
        return found, Reported(report.of_triage(found, report.actuals(found, records)), (found.id,), stale_why)

    async def report_run(self, state: RunState, deadline: float) -> Reported:
        """Return the cost report of all of a run's reviews."""
        triages = await self._ledger.triages(state.run.id)
        records: dict[str | None, list[Usage]] = {}
        stale_why = None
        for session in {one.session: None for one in triages}:
            records[session], stale = await self._records(session, state.run.id, deadline)
            stale_why = stale_why or stale
        size = sum(map(len, records.values())) + sum(len(one.agents) for one in triages)
        made = await off_loop(size, report.of_run, state.run.token_budget, state.run.cost_basis, triages, records)
        return Reported(made, tuple(one.id for one in triages[-report.MOST_LISTED :]), stale_why)

    def _is_live(self, session: str | None) -> bool:
        state = None if session is None else self._book.sessions.get(session)
        return state is not None and state.live

    async def _records(self, session: str | None, run: str | None, deadline: float) -> tuple[list[Usage], str | None]:
        """Return the usage of a triage's session; without one, of all sessions of its run."""
        sessions: Iterable[str] = () if session is None else (session,)
        if session is None and run in self._book.runs:
            sessions = sorted(self._book.runs[run].sessions)
        records: list[Usage] = []
        stale_why = None
        for name in sessions:
            if records and anyio.current_time() > deadline:
                raise RequestTimeoutError("not all sessions could be read in time", "give more --timeout")
            found, stale = await self._refresher.records(name, deadline)
            records += found
            stale_why = stale_why or stale
        return records, stale_why

    async def calibrate(self, deadline: float) -> tuple[Calibration, str | None]:
        """Return what history teaches; raises `RequestTimeoutError` when it could not be read in time."""
        # The multiplier that a calibration has proposed is not what the next one is measured against.
        rules = await self.rules(None, deadline, calibrated=False)
        triages = await self._ledger.triages()
        phases = []
        for number, (run_id, state) in enumerate(list(self._book.runs.items())):
            phases.append(calibrate.measured_phases(self._book.timelines[run_id], self._book.by_phase(state)))
            if number % _AT_A_TIME == 0:
                await anyio.lowlevel.checkpoint()
        agents = sorted(calibrate.sliced_agents(triages))

        def look(source: InterstatSource) -> tuple[dict[str, AgentCalibration], SlicingCalibration] | None:
            found = source.calibration(agents)
            if found is None:
                return None
            most = sorted(found[0], key=lambda name: (-found[0][name].sample_size, name))[:_MOST_AGENTS]
            spreads = {name: found[0][name] for name in sorted(most)}
            return spreads, calibrate.slicing(triages, found[1], rules.slicing_multiplier)

        # What slicing saves depends on the triages, too.
        key = f"calibration with {[one.id for one in triages[-1:]]}, {rules.slicing_multiplier}"
        found = await self._history.ask(key, self._refresher.epoch(), look, deadline)
        if not found.in_time:
            raise RequestTimeoutError("the agents' history is still being read", "ask again with more --timeout")
        spreads, slicing = found.value or ({}, calibrate.slicing((), (), rules.slicing_multiplier))
        made = Calibration(
            provenance=Provenance(
                at=to_text(self._clock()),
                version=__version__,
                ledger=self._ledger.path,
                interstat=self._history.status.path,
                runs=sum(bool(measured) for measured in phases),
                rows=sum(one.sample_size for one in spreads.values()),
                triages=len(triages),
            ),
            phases=await off_loop(len(phases), calibrate.phases, phases),
            agents=spreads,
            slicing=slicing,
        )
        return made, found.why


def _decide(asked: TriageRequest, known: dict[str, Measured], rules: ReviewBudget, limit: triage.Limit) -> triage.Cut:
    lines = triage.candidates(asked.agents, known, rules, limit.basis, slicing=asked.slicing)
    reason = advance.reason(asked.override)
    return triage.cut(lines, limit.budget, rules.min_agents, limit.enforcement, reason)


def _new_id() -> str:
    return f"triage-{datetime.now(UTC):%Y%m%d}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(8))}"
