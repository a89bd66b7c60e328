"""Reviews: what agents are expected to cost, which ones fit the budget, and what they have cost."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import Answer, CostBasis, Enforcement, Hints, Naming, Request

TriageAction = Literal["Selected", "Deferred (budget)", "Blocked"]
TriageVerdict = Literal["ok", "over_budget", "overridden", "blocked"]
#: `review`: the first round. `reaction`: its agents react to each other's findings.
TriageRound = Literal["review", "reaction"]
#: The limits of a triage: the input type's budget, and what the run has left.
LimitName = Literal["type", "run"]
#: What an estimate comes from: samples from interstat alone, from transcripts alone, from both; the calibration; the
#: default of the agent's category.
CostSource = Literal["interstat", "transcripts", "samples", "calibrated", "default"]
#: A number of tokens that may not have been measured yet.
Arrived = int | Literal["pending"]


class Estimates(Request, frozen=True, kw_only=True, tag="estimates"):
    """Return what each agent is expected to cost."""

    model: str | None = None
    """Use the rows of this model and those without a model; `claude-opus-4-6` if omitted."""
    slicing: bool = False
    project_dir: str | None = None
    """The project whose `.claude/flux-drive-budget.yaml` applies; if omitted, that of the run."""
    hints: Hints = Hints()


class TriageAgent(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate for a review."""

    name: str
    score: float
    """Finite; Stage 2 is considered by score, highest first."""
    stage: int
    """1: runs first, always selected. 2: the expansion pool."""
    category: str | None = None
    """One of the budget file's `agent_defaults`; derived from the name if omitted."""
    sliced: bool | None = None
    """True if it gets a slice of the document; the request's `slicing` if omitted."""


class TriageRequest(Naming, frozen=True, kw_only=True, tag="triage"):
    """Decide which of these agents may be launched. The answer is stored, so that `report` can compare."""

    agents: tuple[TriageAgent, ...]
    input_type: str = "other"
    model: str | None = None
    """The model that they are launched with; that of the session if omitted, or else `claude-opus-4-6`."""
    slicing: bool = False
    override: str | None = None
    """Under soft enforcement: select all of them, for this reason."""
    round: TriageRound = "review"
    sprint_remaining: int | None = None
    """The client's `FLUX_BUDGET_REMAINING`: if no run is found, it counts as what is left, in billing tokens."""


class Report(Naming, frozen=True, kw_only=True, tag="report"):
    """Return what a triage's agents have cost. Without a triage: those of all the run's triages."""

    triage: str | None = None


class AgentEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of what an agent has cost so far."""

    est_tokens: int
    """All kinds of tokens."""
    est_billing: int
    sample_size: int
    source: Literal["interstat"] = "interstat"


class AgentHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's samples of all models say. A mean is null if there are fewer than three."""

    est_tokens: int | None
    """All kinds of tokens, of a whole document."""
    est_billing: int | None
    sample_size: int
    sliced_tokens: int | None
    """All kinds of tokens, of a slice of the document."""
    sliced_billing: int | None
    sliced_size: int | None
    """Null: no sample is of a slice."""
    source: CostSource


class EstimatesAnswer(Answer, frozen=True, kw_only=True, tag="estimates"):
    """Means for the agents with enough rows, defaults by category for the others."""

    estimates: dict[str, AgentEstimate]
    defaults: dict[str, int]
    slicing_multiplier: float
    """1 unless slicing is on."""
    stale_why: str | None
    history: dict[str, AgentHistory] | None = {}  # noqa: RUF012  msgspec copies it for each answer
    """By agent, without the plugin's prefix; null: there is no sample; empty: the daemon is of an earlier version."""


class TriageLine(msgspec.Struct, frozen=True, kw_only=True):
    """The decision about one agent."""

    name: str
    score: float
    stage: int
    category: str
    protected: bool
    """Always selected: Stage 1, and exempt agents."""
    est_tokens: int
    """In tokens of the triage's cost basis."""
    source: CostSource
    sample_size: int
    sliced: bool
    """It gets a slice of the document, and the estimate is that of a slice."""
    action: TriageAction
    model: str | None = None
    """The model that the samples are of; null: all models, or no samples."""
    est_billing: int | None = None
    """The estimate in billing tokens; null in triages of earlier versions."""
    est_total: int | None = None
    """The estimate in all kinds of tokens; null in triages of earlier versions."""


class TriagePart(msgspec.Struct, frozen=True, kw_only=True):
    """Some agents, and what they are expected to cost."""

    agents: int
    est_tokens: int


class TriageStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's agents."""

    selected: TriagePart
    deferred: TriagePart


class TriageAnswer(Answer, frozen=True, kw_only=True, tag="triage"):
    """Which agents are launched. If the verdict is `blocked`, none are."""

    triage_id: str
    verdict: TriageVerdict
    """`ok`; `over_budget`: launched although it does not fit; `overridden`: all, by an override; `blocked`."""
    run: str | None
    session: str | None
    input_type: str
    model: str
    slicing: bool
    cost_basis: CostBasis
    enforcement: Enforcement
    budget: int
    """The budget that applied: the tighter one of the two below, in tokens of `cost_basis`."""
    type_budget: int
    """In tokens of the budget file's cost basis; in the reaction round, a fraction of the input type's budget."""
    sprint_remaining: int | None
    """In tokens of the run's cost basis; null without a run, or without a budget."""
    sprint_constrained: bool
    selected: TriagePart
    deferred: TriagePart
    by_stage: dict[str, TriageStage]
    """`stage_1`, `stage_2`."""
    agents: tuple[TriageLine, ...]
    """In the order in which they were considered."""
    summary: str
    override: str | None
    note: str
    """What a person should know about the verdict; otherwise empty."""
    stale_why: str | None
    round: TriageRound = "review"
    limit: LimitName = "type"
    """The tightest limit: the one that `budget` and the estimates are of."""
    overridable: bool = False
    """Some agents were deferred, and an override would select them all."""
    history: Literal["samples", "none"] = "samples"
    """`none`: no agent has a sample, so all estimates are defaults or calibrated."""


class ReportAgent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was launched: expected and actual cost."""

    name: str
    stage: int
    estimated: int
    actual_billing: Arrived
    actual_total: Arrived
    cache_read: Arrived
    delta_pct: Arrived | None
    """(actual - estimated) / estimated · 100, in tokens of the cost basis; null for an estimate of 0."""
    partial: bool
    """Some of its rows have no tokens yet."""
    source: CostSource
    slicing_applied: bool
    sample_size: int = 0
    model: str | None = None
    """The model that the samples of the estimate are of; null: all models, or no samples."""


class ReportDeferred(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was not selected."""

    name: str
    stage: int
    estimated: int
    reason: str
    actual_billing: int | None
    """What it used although it was not selected; null if it did not run."""


class ReportStage(msgspec.Struct, frozen=True, kw_only=True):
    """The launched agents of a stage."""

    agents: int
    estimated: int
    actual: Arrived
    """In tokens of the cost basis."""
    partial: bool


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """Expected and actual cost of reviews. Numbers that have not arrived are `pending`, never 0."""

    budget: int | None
    budget_type: str
    """The input type; `run` for all of a run's reviews."""
    cost_basis: CostBasis
    estimated_total: int
    actual_billing: Arrived
    actual_total: Arrived
    cache_read_total: Arrived
    partial: bool
    """The actual sums are incomplete."""
    pending: tuple[str, ...]
    """The agents without any usage yet."""
    agents: tuple[ReportAgent, ...]
    deferred: tuple[ReportDeferred, ...]
    not_listed: int
    """How many agents of older reviews are in the sums but in none of the lists."""
    by_stage: dict[str, ReportStage]
    """`stage_1`, `stage_2`."""


class ReportAnswer(Answer, frozen=True, kw_only=True, tag="report"):
    """The cost report."""

    run: str | None
    triages: tuple[str, ...]
    report: CostReport
    stale_why: str | None
    news: str = ""
    """What a person should know beyond this report, announced once; otherwise empty."""
