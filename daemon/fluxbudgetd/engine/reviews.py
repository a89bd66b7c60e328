"""Reviews: what agents may cost, which of them are launched, what they have cost, and what is learned from that."""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import anyio
import anyio.to_thread

from fluxbudgetd import __version__
from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.engine.book import RunState
from fluxbudgetd.engine.parts import Parts
from fluxbudgetd.errors import BadInputError, RequestTimeoutError
from fluxbudgetd.model import AgentRow, Balance, Run, Triage, Usage, to_text
from fluxbudgetd.policy import advance, calibrate, estimates, report, triage
from fluxbudgetd.policy.estimates import Measured
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.wire.messages import AgentCalibration, Calibration, CostReport, Provenance, TriageRequest

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_MAX_MODEL = 200
_MODELS = 16


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
    """Asks the history of all agents through a connection of its own, since that goes through the whole table.

    It is let go of after each look: while we have the file open, its writers cannot put their WAL away.
    """

    def __init__(self, parts: Parts, interstat_path: str) -> None:
        self._book = parts.book
        self._refresher = parts.refresher
        self._ledger = parts.ledger
        self._settings = parts.settings
        self._clock = parts.clock
        self._history = InterstatSource(interstat_path)
        self._reader = anyio.CapacityLimiter(1)
        # model → the source's epoch that its means show, and the means
        self._means: dict[str, tuple[int, dict[str, Measured]]] = {}

    async def means(self, model: str | None, deadline: float) -> tuple[dict[str, Measured], str | None]:
        """Return what agents have cost so far on a model, and why that is not up to date (None: it is)."""
        name = estimates.DEFAULT_MODEL if model is None else model
        if not 0 < len(name) <= _MAX_MODEL:
            raise BadInputError(f"a model name of {len(name)} characters", f"1 to {_MAX_MODEL} are allowed")
        epoch = self._refresher.epoch()
        in_time = self._is_known(name, epoch)
        if not in_time:
            with anyio.CancelScope(deadline=deadline):
                await anyio.to_thread.run_sync(self._learn, name, epoch, abandon_on_cancel=True, limiter=self._reader)
                in_time = True
        known = self._means.get(name)
        if known is not None and known[0] >= epoch:
            return known[1], None
        status = self._history.status
        if not in_time:
            if known is None:
                raise RequestTimeoutError(
                    "the agents' history is still being read", "ask again, or give more --timeout"
                )
            return known[1], f"{status.name}: slow: means as of an earlier look"
        return ({} if known is None else known[1]), f"{status.name}: {status.state}: {status.detail}"

    def _is_known(self, model: str, epoch: int) -> bool:
        return model in self._means and self._means[model][0] >= epoch

    def _learn(self, model: str, epoch: int) -> None:
        """Read an agent's history, in a worker thread; what was learned is kept, even when nobody waits any more."""
        if self._is_known(model, epoch):
            return
        found = self._history.samples(model)
        self._history.reopen()
        if found is not None:
            while len(self._means) >= _MODELS and model not in self._means:
                self._means.pop(next(iter(self._means)), None)
            self._means[model] = epoch, estimates.measured(found)

    def _look_back(self, agents: list[str]) -> tuple[dict[str, AgentCalibration], tuple[AgentRow, ...]] | None:
        try:
            return self._history.calibration(agents)
        finally:
            self._history.reopen()

    async def rules(self, project_dir: str | None, deadline: float) -> ReviewBudget:
        """Return flux-drive's rules for a project; raises `ConfigError` when one of its files is wrong."""
        await self._settings.refresh(deadline)
        with anyio.CancelScope(deadline=deadline):
            return await self._settings.review_budget(project_dir)
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
        lines = triage.candidates(asked.agents, known, rules, limit.basis, slicing=asked.slicing)
        reason = advance.reason(asked.override)
        decided = triage.cut(lines, limit.budget, rules.min_agents, limit.enforcement, reason)
        session = asked.session or next(iter(asked.hints.sessions), None)
        before = () if session is None else (await self._refresher.records(session, deadline))[0]
        kept = Triage(
            id=_new_id(),
            at=self._clock(),
            run=None if run is None else run.id,
            session=session,
            last_key=max((record.key for record in before), default=0),
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
        return Decided(kept, decided.note, stale_why)

    async def report(self, name: str, deadline: float) -> tuple[Triage, Reported]:
        """Return a triage and its cost report; raises `BadInputError` for one that does not exist."""
        found = await self._ledger.triage(name)
        if found is None:
            raise BadInputError(f"there is no triage {name[:60]!r}", "'fluxbudgetctl triage' prints the id of each")
        records, stale_why = await self._records(found, deadline)
        return found, Reported(report.of_triage(found, report.actuals(found, records)), (found.id,), stale_why)

    async def report_run(self, state: RunState, deadline: float) -> Reported:
        """Return the cost report of all of a run's reviews."""
        triages = await self._ledger.triages(state.run.id)
        reviews, stale_why = [], None
        for one in triages:
            records, stale = await self._records(one, deadline)
            stale_why = stale_why or stale
            reviews.append((one, records))
        made = report.of_run(state.run.token_budget, state.run.cost_basis, reviews)
        return Reported(made, tuple(one.id for one in triages), stale_why)

    async def _records(self, of: Triage, deadline: float) -> tuple[list[Usage], str | None]:
        """Return the usage of a triage's session; without one, of all sessions of its run."""
        sessions: Iterable[str] = () if of.session is None else (of.session,)
        if of.session is None and of.run in self._book.runs:
            sessions = sorted(self._book.runs[of.run].sessions)
        records: list[Usage] = []
        stale_why = None
        for session in sessions:
            found, stale = await self._refresher.records(session, deadline)
            records += found
            stale_why = stale_why or stale
        return records, stale_why

    async def calibrate(self, deadline: float) -> tuple[Calibration, str | None]:
        """Return what history teaches; raises `RequestTimeoutError` when it could not be read in time."""
        rules = await self.rules(None, deadline)
        triages = await self._ledger.triages()
        phases = [
            calibrate.measured_phases(self._book.timelines[run_id], self._book.by_phase(state))
            for run_id, state in self._book.runs.items()
        ]
        agents = sorted(calibrate.sliced_agents(triages))
        with anyio.CancelScope(deadline=deadline) as scope:
            found = await anyio.to_thread.run_sync(
                self._look_back, agents, abandon_on_cancel=True, limiter=self._reader
            )
        if scope.cancelled_caught:
            raise RequestTimeoutError("the agents' history could not be read in time", "give more --timeout")
        status = self._history.status
        spreads, rows = found or ({}, ())
        made = Calibration(
            provenance=Provenance(
                at=to_text(self._clock()),
                version=__version__,
                ledger=self._ledger.path,
                interstat=status.path,
                runs=sum(bool(measured) for measured in phases),
                rows=sum(one.sample_size for one in spreads.values()),
                triages=len(triages),
            ),
            phases=calibrate.phases(phases),
            agents=spreads,
            slicing=calibrate.slicing(triages, rows, rules.slicing_multiplier),
        )
        return made, None if found is not None else f"{status.name}: {status.state}: {status.detail}"


def _new_id() -> str:
    return f"triage-{datetime.now(UTC):%Y%m%d}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(8))}"
