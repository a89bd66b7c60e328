"""Requests and answers as msgspec structs: the protocol's one definition.

A request is a map `{"v": 1, "op": "…", …}`; its answer `{"ok": true, "op": "…", …}` or
`{"ok": false, "error": {"code", "message", "hint"}}`. Fields that the receiver does not know are ignored, so an older
daemon serves a newer client. Tokens are integers; percentages have one decimal (rounded down, so that a limit is never
shown before it is reached, and above 100 when more is spent); times are ISO-8601 UTC text. `docs/protocol.md` is
generated from this module.
"""

from typing import Literal, get_args

import msgspec

from fluxbudgetd.wire.codes import VERSION

#: A count of tokens on the wire never exceeds this: sums of absurd counts stop here instead of failing to encode.
MAX_TOKENS = 2**63 - 1

Enforcement = Literal["soft", "hard"]
CostBasis = Literal["billing", "total"]
RunStatus = Literal["active", "done", "cancelled"]
BudgetState = Literal["unlimited", "ok", "warning", "exceeded"]
TriageAction = Literal["Selected", "Deferred (budget)", "Blocked"]
ChannelState = Literal["ok", "off", "resting", "failing"]
TriageVerdict = Literal["ok", "over_budget", "overridden", "blocked"]
PhaseState = Literal["completed", "skipped", "current", "ahead"]
EstimateSource = Literal["calibration", "table"]
#: A number of tokens, or that it is not known yet.
Arrived = int | Literal["pending"]


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client's environment says of the run that is meant; used when the request names none."""

    run: str | None = None
    """`$FLUXBUDGET_RUN`: decides alone when it is set."""
    scope: str | None = None
    """`$CLAVAIN_BEAD_ID`."""
    sessions: tuple[str, ...] = ()
    """`$CLAUDE_CODE_SESSION_ID`, `$CLAUDE_SESSION_ID`, in this order."""
    cwd: str | None = None
    """The working directory, absolute, symlinks resolved."""


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """What every request has."""

    v: int = VERSION
    """The protocol version; 1 when left out."""
    wait_ms: int = 200
    """How long the sender will wait. A source that takes longer is left out: the answer has its last known numbers."""


class Naming(Request, frozen=True, kw_only=True):
    """A request about one run: by its id, its scope or one of its sessions, else by hints."""

    run: str | None = None
    scope: str | None = None
    session: str | None = None
    hints: Hints = Hints()


class Ping(Request, frozen=True, tag="ping"):
    """Are you there, and who are you?"""


class Remaining(Naming, frozen=True, tag="remaining"):
    """What is left of a run's budget?"""


class Check(Naming, frozen=True, kw_only=True, tag="check"):
    """May this run go on? A refusal, and an override that was needed, are events."""

    override: str | None = None
    """The reason to go on with an exceeded budget; counts under soft enforcement only."""


class Advance(Naming, frozen=True, kw_only=True, tag="advance"):
    """Check, then leave a phase for the next one. Of several at once, one wins."""

    from_phase: str
    """The phase that the sender thinks the run is in."""
    to_phase: str | None = None
    """A later phase; the next one when left out."""
    override: str | None = None
    """As for `check`."""


class Estimates(Request, frozen=True, kw_only=True, tag="estimates"):
    """What is each agent expected to cost?"""

    model: str | None = None
    """Rows of this model (or of none) count; `claude-opus-4-6` when left out."""
    slicing: bool = False
    project_dir: str | None = None
    """Whose `.claude/flux-drive-budget.yaml` counts; the project of the run that is meant when left out."""
    hints: Hints = Hints()


class TriageAgent(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate for a review."""

    name: str
    score: float
    """Finite; Stage 2 is considered by score, highest first."""
    stage: int
    """1: runs first, always selected. 2: the expansion pool."""
    category: str | None = None
    """One of the budget file's `agent_defaults`; by name when left out."""
    sliced: bool | None = None
    """Whether it gets a slice of the document; as the request's `slicing` when left out."""


class TriageRequest(Naming, frozen=True, kw_only=True, tag="triage"):
    """Which of these agents may be launched? The answer is kept, so that `report` can compare."""

    agents: tuple[TriageAgent, ...]
    input_type: str = "other"
    model: str | None = None
    slicing: bool = False
    override: str | None = None
    """Under soft enforcement: select all of them, for this reason."""


class Report(Naming, frozen=True, kw_only=True, tag="report"):
    """What have a triage's agents cost? Without a triage: those of all of a run's triages."""

    triage: str | None = None


class Calibrate(Request, frozen=True, tag="calibrate"):
    """What have phases and agents really cost, and what does slicing really save?"""


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """The active runs (or one run by id, scope or session), the sources, and what belongs to no run."""

    run: str | None = None
    scope: str | None = None
    session: str | None = None
    after: str | None = None
    """A page's `next`: the following page."""


class RunStart(Request, frozen=True, kw_only=True, tag="run_start"):
    """Start a run, or find the one that these arguments started before. A null field takes its default."""

    id: str | None = None
    scope: str | None = None
    project_dir: str
    """Absolute; used when a new run is made."""
    project_given: bool = False
    """True when the person named the directory: then it must agree with an existing run's."""
    goal: str | None = None
    complexity: int | None = None
    token_budget: int | Literal["none"] | None = None
    warn_pct: int | None = None
    enforcement: str | None = None
    cost_basis: str | None = None
    phases: tuple[str, ...] | None = None
    session: str | None = None
    """Attach this session too."""
    transcript: str | None = None
    """Where the session's transcript is; it is found by the session's id when left out."""


class RunList(Request, frozen=True, kw_only=True, tag="run_list"):
    """The active runs; with `all` the ended ones too."""

    all: bool = False
    after: str | None = None
    """A page's `next`: the following page."""


class RunShow(Naming, frozen=True, tag="run_show"):
    """One run with its totals by phase, macro-stage, agent, model and session."""


class RunSet(Naming, frozen=True, kw_only=True, tag="run_set"):
    """Change an active run's budget, warning percentage or enforcement. A null field stays as it is."""

    token_budget: int | Literal["none"] | None = None
    warn_pct: int | None = None
    enforcement: str | None = None


class RunAttach(Request, frozen=True, kw_only=True, tag="run_attach"):
    """From now on, `attach` belongs to this run (a session's first attachment reaches back to its start)."""

    attach: str
    """The session's id."""
    run: str | None = None
    scope: str | None = None
    transcript: str | None = None
    """Where the session's transcript is; it is found by the session's id when left out."""
    hints: Hints = Hints()


class RunDetach(Request, frozen=True, kw_only=True, tag="run_detach"):
    """From now on, `detach` belongs to no run."""

    detach: str
    """The session's id."""
    run: str | None = None
    scope: str | None = None


class RunFinish(Naming, frozen=True, tag="run_finish"):
    """The run is done. Its sources are followed for 48 hours more: late numbers are the rule."""


class RunCancel(Naming, frozen=True, tag="run_cancel"):
    """The run is given up."""


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    """Tell me what happens: turns the connection into a stream of events, until either end closes it.

    First comes `subscribed`, then every event in the order of its number, none missed and none twice; a `heartbeat`
    whenever nothing else has come for a while; `lagged` when the reader is so slow that what follows is read from disk.
    """

    since: int | None = None
    """Begin behind this number; with what happens from now on when left out."""
    run: str | None = None
    """Only this run's events."""
    heartbeat_ms: int = 15_000
    """A heartbeat after so much silence, at least 100 ms; 0 means none."""


class Hook(Naming, frozen=True, kw_only=True, tag="hook"):
    """A Claude Code hook: what is to be answered? `hints` are those of the hook's own environment."""

    input: bytes
    """The JSON that the hook was given."""
    whole: bool = True
    """False: it was too long, and this is its beginning."""


class StatusLine(Naming, frozen=True, kw_only=True, tag="statusline"):
    """A line for Claude Code's status line."""

    input: bytes = b""
    """The JSON that the status line's command was given; empty: there was none."""
    width: int | None = None
    """The cells that the line may take; null: as many as it needs."""
    colour: bool = False


class Doctor(Request, frozen=True, tag="doctor"):
    """What does the daemon know to be wrong?"""


AnyRequest = (
    Ping
    | Remaining
    | Check
    | Status
    | RunStart
    | RunList
    | RunShow
    | RunSet
    | RunAttach
    | RunDetach
    | RunFinish
    | RunCancel
    | Advance
    | Estimates
    | TriageRequest
    | Report
    | Calibrate
    | Subscribe
    | Hook
    | StatusLine
    | Doctor
)


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """What every answer has."""

    ok: bool = True


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """A run's budget and what has become of it, in tokens of the run's cost basis."""

    budget: int | None
    """Null: unlimited."""
    spent: int
    """measured + provisional."""
    measured: int
    provisional: int
    reserved: int
    remaining: int | None
    """max(0, budget - spent - reserved); null when unlimited."""
    pct: float | None
    """spent / budget · 100; null when unlimited."""
    state: BudgetState
    stale: bool
    """True: a source cannot be read, these are the last known numbers."""
    stale_why: str | None
    """Which source, and its state."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it stands."""

    id: str
    scope: str | None
    project_dir: str
    goal: str
    complexity: int
    phases: tuple[str, ...]
    phase: str
    token_budget: int | None
    warn_pct: int
    enforcement: Enforcement
    cost_basis: CostBasis
    status: RunStatus
    started_at: str
    ended_at: str | None


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """A run with its spend: one entry of `status` and `run_list` (its goal cut to 200 characters)."""

    run: RunInfo
    spend: Spend
    sessions: int
    pending: int
    """Sub-agents seen whose tokens have not been measured yet."""
    burn: int = 0
    """Tokens of the run's cost basis per minute, over the last ten minutes."""
    minutes_left: int | None = None
    """How long what remains lasts at this rate; null when there is no telling."""


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """A sum of usage records."""

    name: str
    records: int
    pending: int
    input: int
    output: int
    cache_read: int
    cache_creation: int
    billing: int
    """input + output."""
    total: int
    """billing + cache_read + cache_creation."""


class PhaseLine(Tally, frozen=True, kw_only=True):
    """What was measured in a phase, and what counts for it."""

    state: PhaseState
    """A phase that is in no chain of the run's has been named by a source: it is `completed`."""
    since: str | None
    until: str | None
    spent: int
    """Measured + provisional, in tokens of the run's cost basis."""
    provisional: int
    """The estimate, while nothing has been measured of a completed phase."""
    estimate: int
    """What the phase is expected to cost; of a completed phase, what it was expected to when the run moved on."""
    estimate_source: EstimateSource
    sample_size: int
    """How many measured runs a calibrated estimate rests on."""
    override: str | None
    """Why the run left the phase with an exceeded budget."""


class StageLine(Tally, frozen=True, kw_only=True):
    """What was measured in a macro-stage, and what it may cost."""

    spent: int
    """Measured + provisional, in tokens of the run's cost basis."""
    provisional: int
    allocated: int | None
    """Its part of the budget; null for a run without one, and for phases that belong to no stage."""


class AttachmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which a session's usage belongs to the run."""

    session: str
    since: str | None
    """Null: from the session's start."""
    until: str | None
    """Null: still attached."""
    origin: Literal["asked", "bead"]
    """"bead": a row of the session names the run's scope."""


class SessionSources(msgspec.Struct, frozen=True, kw_only=True):
    """What the two sources say of a session's usage, whichever runs it belongs to. Only one of them counts."""

    session: str
    counts: Literal["transcripts", "interstat"]
    """The one that counts: the transcripts, when they hold usage."""
    transcripts_billing: int
    transcripts_total: int
    interstat_billing: int
    interstat_total: int
    ratio: float | None
    """interstat's total / the transcripts'; null when either has nothing."""
    words: str
    """What is odd about that; else empty."""


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A source and whether it can be read."""

    name: str
    path: str
    state: str
    """`ok`, or why it cannot be read: `unread` (not looked at yet), `absent`, `empty`, `locked`, `slow`, `corrupt`,
    `not_a_database`, `schema_drift`, `unreadable`."""
    detail: str
    hint: str
    since: str
    """When this state began."""
    notes: tuple[str, ...]
    """What is readable but not as it should be (an index or an optional column that is missing)."""
    anomalies: int
    """Counts dropped because they were negative or not whole numbers, in the sessions that are followed."""


class Unattributed(msgspec.Struct, frozen=True, kw_only=True):
    """Usage that belongs to no run, among the latest 10 000 rows and the sessions that are followed."""

    sessions: int
    billing: int
    total: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong, and what to do."""

    what: str
    hint: str


class PingAnswer(Answer, frozen=True, kw_only=True, tag="ping"):
    """The daemon's identity."""

    version: str
    protocol: int
    pid: int
    started_at: str


class RemainingAnswer(Answer, frozen=True, kw_only=True, tag="remaining"):
    """The run that was meant, and its spend."""

    run: str
    phase: str
    spend: Spend


class CheckAnswer(Answer, frozen=True, kw_only=True, tag="check"):
    """`allowed`, or the line that says why not: `budget_exceeded|PHASE|SPENT/BUDGET billing tokens`."""

    run: str
    phase: str
    allowed: bool
    refusal: str | None
    overridden: str | None
    """The reason for which an exceeded budget was let pass."""
    note: str
    """Why an override that was given does not count; else empty."""
    spend: Spend


class AdvanceAnswer(Answer, frozen=True, kw_only=True, tag="advance"):
    """The run has moved on, or the line that says why not."""

    run: str
    advanced: bool
    line: str
    """`advanced|P|Q`, `budget_exceeded|P|…` or `stale_phase|P|…`."""
    phase: str
    """The phase that the run is in now."""
    completed: PhaseLine | None
    """The phase that was left, as it was recorded."""
    overridden: str | None
    note: str
    spend: Spend


class AgentEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of what an agent has cost so far."""

    est_tokens: int
    """All kinds of tokens."""
    est_billing: int
    sample_size: int
    source: Literal["interstat"] = "interstat"


class EstimatesAnswer(Answer, frozen=True, kw_only=True, tag="estimates"):
    """Means for the agents with enough rows, defaults by category for the others."""

    estimates: dict[str, AgentEstimate]
    defaults: dict[str, int]
    slicing_multiplier: float
    """1 unless slicing is on."""
    stale_why: str | None


class TriageLine(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an agent."""

    name: str
    score: float
    stage: int
    category: str
    protected: bool
    """Always selected: Stage 1, and exempt agents."""
    est_tokens: int
    """In tokens of the triage's cost basis."""
    source: Literal["interstat", "default"]
    sample_size: int
    sliced: bool
    """The estimate has been multiplied for slicing."""
    action: TriageAction


class TriagePart(msgspec.Struct, frozen=True, kw_only=True):
    """Some agents, and what they are expected to cost."""

    agents: int
    est_tokens: int


class TriageStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's agents."""

    selected: TriagePart
    deferred: TriagePart


class TriageAnswer(Answer, frozen=True, kw_only=True, tag="triage"):
    """The cut: which agents are launched. Under `blocked` nobody is."""

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
    """What counted: the tighter of the two below."""
    type_budget: int
    sprint_remaining: int | None
    """Null without a run, or without a budget."""
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
    """What a person should know of the verdict; else empty."""
    stale_why: str | None


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
    source: Literal["interstat", "default"]
    slicing_applied: bool


class ReportDeferred(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was not selected."""

    name: str
    stage: int
    estimated: int
    reason: str
    actual_billing: int | None
    """What it has used all the same; null when it did not run."""


class ReportStage(msgspec.Struct, frozen=True, kw_only=True):
    """The launched agents of a stage."""

    agents: int
    estimated: int
    actual: Arrived
    """In tokens of the cost basis."""
    partial: bool


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """A review's cost, expected and actual. What has not arrived is `pending`, never 0."""

    budget: int | None
    budget_type: str
    """The input type; `run` for all of a run's reviews."""
    cost_basis: CostBasis
    estimated_total: int
    actual_billing: Arrived
    actual_total: Arrived
    cache_read_total: Arrived
    partial: bool
    """The actual sums miss something."""
    pending: tuple[str, ...]
    """The agents of which nothing has arrived."""
    agents: tuple[ReportAgent, ...]
    deferred: tuple[ReportDeferred, ...]
    not_listed: int
    """Agents of older reviews that are in the sums, but in none of the lists."""
    by_stage: dict[str, ReportStage]
    """`stage_1`, `stage_2`."""


class ReportAnswer(Answer, frozen=True, kw_only=True, tag="report"):
    """The cost report."""

    run: str | None
    triages: tuple[str, ...]
    report: CostReport
    stale_why: str | None


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """What something has cost, in tokens."""

    mean: int
    p50: int
    p90: int


class PhaseCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What runs have spent in a phase; used from three measured runs on."""

    billing: Spread
    total: Spread
    sample_size: int


class AgentCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's rows have cost."""

    billing: Spread
    total: Spread
    sample_size: int


class SlicingCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What slicing saves: sliced runs against the median of the same agents' full runs."""

    multiplier: float | None
    """What is proposed; null: too few runs, or the present one is near enough."""
    median: float | None
    sliced_runs: int
    full_runs: int
    was: float


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration came from."""

    at: str
    version: str
    ledger: str
    interstat: str
    runs: int
    rows: int
    triages: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What history teaches; as a file, `calibration.json` beside the configuration."""

    provenance: Provenance
    phases: dict[str, PhaseCalibration]
    agents: dict[str, AgentCalibration]
    slicing: SlicingCalibration
    v: int = 1


class CalibrateAnswer(Answer, frozen=True, kw_only=True, tag="calibrate"):
    """What history teaches. Nothing is written: that is the sender's to do, at `path`."""

    calibration: Calibration
    path: str
    stale_why: str | None


class StatusAnswer(Answer, frozen=True, kw_only=True, tag="status"):
    """The runs asked for, newest first, in pages."""

    runs: tuple[RunLine, ...]
    next: str | None
    """Ask again with this as `after`; null: this was the last page."""
    sources: tuple[SourceInfo, ...]
    unattributed: Unattributed


class RunAnswer(Answer, frozen=True, kw_only=True, tag="run"):
    """The run as it stands after a change that is on disk."""

    run: RunInfo
    changed: bool
    """False: it was so already."""


class RunListAnswer(Answer, frozen=True, kw_only=True, tag="run_list"):
    """The runs, newest first, in pages."""

    runs: tuple[RunLine, ...]
    next: str | None
    """Ask again with this as `after`; null: this was the last page."""


class RunShowAnswer(Answer, frozen=True, kw_only=True, tag="run_show"):
    """One run, whole."""

    run: RunInfo
    spend: Spend
    totals: Tally
    by_phase: tuple[PhaseLine, ...]
    by_stage: tuple[StageLine, ...]
    by_agent: tuple[Tally, ...]
    by_model: tuple[Tally, ...]
    by_session: tuple[Tally, ...]
    sources: tuple[SessionSources, ...]
    """Per session, what each source says; up to 200 of them."""
    attachments: tuple[AttachmentInfo, ...]


class ChannelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A channel on which warnings are told, and whether that works."""

    name: str
    state: ChannelState
    """`resting`: there is nothing to tell it to (no desktop session); it is tried again."""
    detail: str
    hint: str
    since: str
    """When this state began."""
    told: int
    """The number of the last event that it is done with."""
    waiting: int
    """Events that it has not looked at yet."""


class DoctorAnswer(Answer, frozen=True, kw_only=True, tag="doctor"):
    """What the daemon knows of itself."""

    version: str
    pid: int
    state_dir: str
    ledger: str
    sources: tuple[SourceInfo, ...]
    sessions: tuple[SessionSources, ...]
    """What each source says of the followed sessions, those first of which they say different things; up to 200."""
    findings: tuple[Finding, ...]
    active_runs: int
    followed_runs: int
    connections: int
    channels: tuple[ChannelInfo, ...] = ()


class SubscribedAnswer(Answer, frozen=True, kw_only=True, tag="subscribed"):
    """The stream begins."""

    since: int
    """What comes has higher numbers. Less than what was asked for: the ledger is a new one, and begins anew."""
    last: int
    """The number of the last event so far."""


class EventAnswer(Answer, frozen=True, kw_only=True, tag="event"):
    """Something has happened."""

    seq: int
    """Increasing for ever."""
    at: str
    run: str | None
    """Null for a source's events."""
    kind: str
    data: dict[str, str | int | float | None]


class HeartbeatAnswer(Answer, frozen=True, kw_only=True, tag="heartbeat"):
    """Nothing has happened."""

    at: str
    seq: int
    """The stream has told everything up to this number."""


class LaggedAnswer(Answer, frozen=True, kw_only=True, tag="lagged"):
    """The reader was too slow for what is kept in memory; nothing is missing, the following is read from disk."""

    at: str
    seq: int
    """The stream has told everything up to this number."""
    behind: int
    """How many numbers lie between that and the last event."""


class HookAnswer(Answer, frozen=True, kw_only=True, tag="hook"):
    """What the hook prints and exports."""

    output: str = ""
    """JSON for stdout; empty: print nothing."""
    exports: str = ""
    """Lines to append to the file that `$CLAUDE_ENV_FILE` names."""


class StatusLineAnswer(Answer, frozen=True, kw_only=True, tag="statusline"):
    """One line, without its end."""

    run: str
    line: str
    stale_why: str | None


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why not. The codes stand in `codes.ERROR_CODES`."""

    code: str
    message: str
    hint: str


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request that was not carried out."""

    error: ErrorInfo
    ok: bool = False


AnyAnswer = (
    PingAnswer
    | RemainingAnswer
    | CheckAnswer
    | StatusAnswer
    | RunAnswer
    | RunListAnswer
    | RunShowAnswer
    | AdvanceAnswer
    | EstimatesAnswer
    | TriageAnswer
    | ReportAnswer
    | CalibrateAnswer
    | SubscribedAnswer
    | EventAnswer
    | HeartbeatAnswer
    | LaggedAnswer
    | HookAnswer
    | StatusLineAnswer
    | DoctorAnswer
)


class Envelope(msgspec.Struct, frozen=True):
    """The part of a request that every version of the protocol keeps."""

    v: int
    op: str


_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_answer_decoder: msgspec.msgpack.Decoder[AnyAnswer] = msgspec.msgpack.Decoder(AnyAnswer)
_error_decoder = msgspec.msgpack.Decoder(ErrorAnswer)

encode = _encoder.encode
OPERATIONS = frozenset(kind.__struct_config__.tag for kind in get_args(AnyRequest))


def decode_request(body: bytes) -> AnyRequest:
    """Return the request; raises `msgspec.DecodeError` (with `envelope` one can say why)."""
    return _request_decoder.decode(body)


def decode_envelope(body: bytes) -> Envelope:
    """Return version and operation of a message that is not a request of this version; raises `msgspec.DecodeError`."""
    return _envelope_decoder.decode(body)


def decode_answer(body: bytes) -> AnyAnswer | ErrorAnswer:
    """Return the answer; raises `msgspec.DecodeError` when it is not one."""
    try:
        return _answer_decoder.decode(body)
    except msgspec.ValidationError:
        return _error_decoder.decode(body)
