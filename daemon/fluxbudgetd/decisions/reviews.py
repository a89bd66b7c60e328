"""Reviews: estimate what agents cost, decide which are launched, report what they cost."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import anyio

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.samples import Samples
from fluxbudgetd.errors import BadInputError, ConfigError, LedgerError, RequestTimeoutError
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Balance, Run, Sample, Triage, Usage
from fluxbudgetd.policy import advance, estimates, limits, report, review_agents, review_limits, triage
from fluxbudgetd.policy.estimates import AgentEstimate, Measured
from fluxbudgetd.policy.review_agents import ReviewAgent
from fluxbudgetd.policy.review_limits import Limit
from fluxbudgetd.policy.triage import Known
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import AgentCalibration, AgentHistory, CostReport, TriageRequest

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_MAX_MODEL = 200
# An answer must fit into a frame.
_MOST_AGENTS = 1000
_SAMPLES_SECONDS = 0.03
# A launch belongs to one of the latest reviews of its session. The number bounds the time.
_NEWEST_REVIEWS = 20
# 30 ms of the 150 ms that a hook usually has to answer.
_RULES_SHARE = 0.2


class TriageResult(NamedTuple):
    """A triage, a note about it for people, and why its numbers are stale (None: fresh).

    `overridable`: an override would launch more agents. `has_history`: there are samples of any agent.
    """

    triage: Triage
    note: str
    stale_why: str | None
    overridable: bool
    has_history: bool


class ReportResult(NamedTuple):
    """A cost report, the triages it covers, and why its numbers are stale (None: fresh)."""

    report: CostReport
    triages: tuple[str, ...]
    stale_why: str | None


class Reviews:
    """Estimates, triages and reports. A triage is in the ledger before it is answered."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        samples: Samples,
        ledger: Ledger,
        settings: Settings,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._totals = totals
        self._samples = samples
        self._refresher = totals.refresher
        self._history = totals.history
        self._ledger = ledger
        self._settings = settings
        self._clock = clock

    async def means(self, model: str | None, deadline: float) -> tuple[dict[str, Measured], str | None]:
        """Return what agents have cost so far on a model by interstat alone, and why that is stale (None: fresh).

        It follows flux-drive's own estimator. None is the default model. Raises `RequestTimeoutError` if nothing has
        been read by the deadline.
        """
        name = _checked_model(model) or estimates.DEFAULT_MODEL

        def scan(source: InterstatSource) -> dict[str, Measured] | None:
            samples = source.samples(name)
            return None if samples is None else estimates.measured(samples)

        found = await self._history.ask(f"means of {name}", scan, deadline)
        if found.value is None and not found.in_time:
            raise RequestTimeoutError("the agents' history is still being read", "ask again, or give more --timeout")
        return found.value or {}, found.stale_why

    async def history(self, deadline: float) -> tuple[dict[str, AgentHistory] | None, str | None]:
        """Return what the agents' samples say, and why some may be missing (None: none is).

        None in place of a history: there is no sample. Of very many agents, those with the most samples are returned.
        """
        stale_why = await self._collect(deadline)
        if not self._samples.has_any:
            return None, stale_why
        samples = {name: self._samples.of(name) for name in self._samples.agents()}
        most = sorted(samples, key=lambda name: (-len(samples[name]), name))[:_MOST_AGENTS]
        chosen = {name: samples[name] for name in sorted(most)}
        return await off_loop(sum(map(len, chosen.values())), _histories, chosen), stale_why

    async def expected(self, agent: str, model: str | None, session: str, run: Run, deadline: float) -> AgentEstimate:
        """Return what a launch of an agent in a run is expected to cost, in tokens of the run's cost basis.

        `model`: what it is launched with, None if that is not known. If a review of the session has selected the agent,
        the latest one says its category, its round, and whether it has a slice of the document.

        The project's budget file gets a share of the caller's time, because otherwise the decision would ignore the
        project's latest settings. If it is broken or takes longer, its last good version counts. Sub-agents that have
        just ended count only if their samples can be taken within 30 ms.
        """
        now = anyio.current_time()
        try:
            rules = await self.rules(run.project_dir, now + (deadline - now) * _RULES_SHARE)
        except (ConfigError, RequestTimeoutError):
            rules = self._settings.last_review_budget(run.project_dir)
        now = anyio.current_time()
        await self._samples.collect(now + min(_SAMPLES_SECONDS, (deadline - now) / 2))
        name = estimates.plain_name(agent)
        reviewed = await self._reviewed(name, session, run, deadline)
        return estimates.for_launch(
            name,
            estimates.category(name) if reviewed is None else reviewed.line.category,
            model,
            self._samples.of(name),
            self._calibrated.get(name),
            rules,
            run.cost_basis,
            slicing=reviewed is not None and reviewed.line.sliced,
            round_="review" if reviewed is None else reviewed.triage.round,
        )

    async def _reviewed(self, name: str, session: str, run: Run, deadline: float) -> ReviewAgent | None:
        """Return the latest review of a session that has selected an agent; None also if that is not known in time."""
        now = anyio.current_time()
        limit = min(now + _SAMPLES_SECONDS, now + (deadline - now) / 2)
        with anyio.CancelScope(deadline=limit), suppress(LedgerError):
            triages = await self._ledger.reviews.newest(session, run.id, _NEWEST_REVIEWS)
            return review_agents.latest_selecting(name, triages)
        return None

    async def _collect(self, deadline: float) -> str | None:
        """Have the samples of ended sub-agents taken, in half of the time; return why some may be missing."""
        now = anyio.current_time()
        deadline = now + (deadline - now) / 2
        await self._totals.refresh_sources(deadline)
        return await self._samples.collect(deadline)

    @property
    def _calibrated(self) -> Mapping[str, AgentCalibration]:
        calibration = self._settings.calibration
        return {} if calibration is None else calibration.agents

    async def rules(self, project_dir: str | None, deadline: float, *, calibrated: bool = True) -> ReviewBudget:
        """Return flux-drive's rules for a project, with the calibration applied if `calibrated`.

        Raises `ConfigError` if one of its files is wrong, `RequestTimeoutError` if they cannot be read in time.
        """
        await self._settings.refresh(deadline)
        with anyio.CancelScope(deadline=deadline):
            return await self._settings.review_budget(project_dir, calibrated=calibrated)
        raise RequestTimeoutError("flux-drive's budget file could not be read in time", "give more --timeout")

    async def triage(
        self, request: TriageRequest, run: Run | None, balance: Balance | None, deadline: float
    ) -> TriageResult:
        """Decide which agents are launched, and write the decision. `run` and `balance` are None outside a run."""
        project = request.hints.cwd if run is None else run.project_dir
        session = request.session or next(iter(request.hints.sessions), None)
        of_session = None if session is None else self._totals.model_of(session)
        model = _checked_model(request.model) or of_session or estimates.DEFAULT_MODEL
        rules = review_limits.for_round(await self.rules(project, deadline), request.round)
        has_time = run is not None and limits.has_time(run, self._clock())
        remaining = None if balance is None or has_time else balance.remaining
        if run is None and (request.sprint_remaining or 0) > 0:
            remaining = request.sprint_remaining
        all_limits = review_limits.limits(
            request.input_type,
            rules,
            remaining,
            "billing" if run is None else run.cost_basis,
            "soft" if run is None else run.enforcement,
        )
        stale_why = await self._collect(deadline)
        names = {estimates.plain_name(agent.name) for agent in request.agents}
        samples = {name: self._samples.of(name) for name in names}
        size = len(request.agents) + sum(map(len, samples.values()))
        known = Known(samples, self._calibrated, model)
        decided = await off_loop(size, _decide, request, known, rules, all_limits)
        before, _ = await self._records(session, None if run is None else run.id, deadline)
        note = decided.note
        if session is None and run is None:
            unknown = "neither session nor run is known, so 'report' will find none of this triage's tokens"
            note = "; ".join(filter(None, (note, unknown)))
        decision = Triage(
            id=_new_id(),
            at=self._clock(),
            run=None if run is None else run.id,
            session=session,
            # The keys of transcripts are not ordered, but their times are exact.
            last_key=None if self._is_live(session) else max((record.key for record in before), default=0),
            input_type=request.input_type,
            model=model,
            slicing=request.slicing,
            cost_basis=decided.limit.unit,
            enforcement=decided.enforcement,
            min_agents=rules.min_agents,
            type_budget=all_limits[0].budget,
            sprint_remaining=remaining,
            sprint_constrained=decided.limit.name == "run",
            budget=decided.limit.budget,
            verdict=decided.verdict,
            override=decided.override,
            agents=decided.lines,
            round=request.round,
        )
        await self._ledger.reviews.add(decision)
        return TriageResult(decision, note, stale_why, decided.overridable, self._samples.has_any)

    async def report(self, name: str, deadline: float) -> tuple[Triage, ReportResult]:
        """Return a triage and its cost report; raises `BadInputError` if there is no such triage."""
        stored = await self._ledger.reviews.triage(name)
        if stored is None:
            raise BadInputError(f"there is no triage {name[:60]!r}", "'fluxbudgetctl triage' prints the id of each")
        if stored.run in self._accounts.runs:
            # Only a refreshed run knows which source counts for a session.
            await self._refresher.refresh([stored.run], deadline=deadline)
        records, stale_why = await self._records(stored.session, stored.run, deadline)
        actuals = report.actuals(stored, records)
        return stored, ReportResult(report.of_triage(stored, actuals), (stored.id,), stale_why)

    async def report_run(self, account: RunAccount, deadline: float) -> ReportResult:
        """Return the cost report of all of a run's reviews."""
        triages = await self._ledger.reviews.triages(account.run.id)
        records: dict[str | None, list[Usage]] = {}
        stale_why = None
        for session in {each.session: None for each in triages}:
            records[session], stale = await self._records(session, account.run.id, deadline)
            stale_why = stale_why or stale
        size = sum(map(len, records.values())) + sum(len(each.agents) for each in triages)
        costs = await off_loop(size, report.of_run, account.run.token_budget, account.run.cost_basis, triages, records)
        return ReportResult(costs, tuple(each.id for each in triages[-report.MOST_LISTED :]), stale_why)

    def _is_live(self, session: str | None) -> bool:
        account = None if session is None else self._accounts.sessions.get(session)
        return account is not None and account.counts_transcripts

    async def _records(self, session: str | None, run: str | None, deadline: float) -> tuple[list[Usage], str | None]:
        """Return the usage of a triage's session, or of all sessions of its run, and why it is stale."""
        sessions: Iterable[str] = () if session is None else (session,)
        if session is None and run in self._accounts.runs:
            sessions = sorted(self._accounts.runs[run].sessions)
        records: list[Usage] = []
        stale_why = None
        for name in sessions:
            if records and anyio.current_time() > deadline:
                raise RequestTimeoutError("not all sessions could be read in time", "give more --timeout")
            of_session, stale = await self._totals.records(name, deadline)
            records += of_session
            stale_why = stale_why or stale
        return records, stale_why


def _decide(request: TriageRequest, known: Known, rules: ReviewBudget, all_limits: Sequence[Limit]) -> triage.Cut:
    lines = triage.candidates(request.agents, known, rules, request.round, slicing=request.slicing)
    return triage.cut(lines, all_limits, rules.min_agents, advance.reason(request.override))


def _histories(samples: Mapping[str, Sequence[Sample]]) -> dict[str, AgentHistory]:
    return {name: estimates.history(own) for name, own in samples.items()}


def _checked_model(name: str | None) -> str | None:
    if name is not None and not 0 < len(name) <= _MAX_MODEL:
        raise BadInputError(f"a model name of {len(name)} characters", f"1 to {_MAX_MODEL} are allowed")
    return name


def _new_id() -> str:
    return f"triage-{datetime.now(UTC):%Y%m%d}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(8))}"
