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


class Check(Naming, frozen=True, tag="check"):
    """May this run go on?"""


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


class AttachmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which a session's usage belongs to the run."""

    session: str
    since: str | None
    """Null: from the session's start."""
    until: str | None
    """Null: still attached."""
    origin: Literal["asked", "bead"]
    """"bead": a row of the session names the run's scope."""


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
    spend: Spend


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
    by_phase: tuple[Tally, ...]
    by_stage: tuple[Tally, ...]
    by_agent: tuple[Tally, ...]
    by_model: tuple[Tally, ...]
    by_session: tuple[Tally, ...]
    attachments: tuple[AttachmentInfo, ...]


class DoctorAnswer(Answer, frozen=True, kw_only=True, tag="doctor"):
    """What the daemon knows of itself."""

    version: str
    pid: int
    state_dir: str
    ledger: str
    sources: tuple[SourceInfo, ...]
    findings: tuple[Finding, ...]
    active_runs: int
    followed_runs: int
    connections: int


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
    PingAnswer | RemainingAnswer | CheckAnswer | StatusAnswer | RunAnswer | RunListAnswer | RunShowAnswer | DoctorAnswer
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
