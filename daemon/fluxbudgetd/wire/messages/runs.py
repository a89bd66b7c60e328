"""Runs and their sessions: start, list, show, change, end."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import Answer, CostBasis, Enforcement, Hints, Naming, Request, RunStatus
from fluxbudgetd.wire.messages.spend import Earlier, PhaseLine, SessionSources, Spend, StageLine, Tally


class RunStart(Request, frozen=True, kw_only=True, tag="run_start"):
    """Start a run, or find the one that the same arguments started before. A null field takes its default."""

    id: str | None = None
    scope: str | None = None
    project_dir: str
    """Absolute; used for a new run."""
    project_given: bool = False
    """True if the user named the directory; an existing run must then have the same one."""
    goal: str | None = None
    complexity: int | None = None
    token_budget: int | Literal["none"] | None = None
    warn_pct: int | None = None
    enforcement: str | None = None
    cost_basis: str | None = None
    phases: tuple[str, ...] | None = None
    session: str | None = None
    """Attach this session too."""
    whole: bool = False
    """As in `run_attach`."""
    transcript: str | None = None
    """The path of the session's transcript; if omitted, it is found by the session's id."""


class RunList(Request, frozen=True, kw_only=True, tag="run_list"):
    """List the active runs; with `all`, the ended ones too."""

    all: bool = False
    after: str | None = None
    """A page's `next`: asks for the following page."""
    cwd: str | None = None
    """As for `status`."""


class RunShow(Naming, frozen=True, tag="run_show"):
    """Show one run, with its totals by phase, macro-stage, agent, model and session."""


class RunSet(Naming, frozen=True, kw_only=True, tag="run_set"):
    """Change an active run's budget, warning percentage or enforcement. A null field stays as it is."""

    token_budget: int | Literal["none"] | None = None
    warn_pct: int | None = None
    enforcement: str | None = None


class RunAllow(Naming, frozen=True, kw_only=True, tag="run_allow"):
    """Let a run with hard enforcement go on once: for some tokens or some time, or else for 10 % of its budget.

    A run that nothing stops, because it is soft or has no budget, is not changed.
    """

    tokens: int | None = None
    """How many tokens beyond what it has spent or may already spend, whichever is more."""
    minutes: int | None = None
    """For how long it may go on, however much it spends; at most a week."""


class RunAttach(Request, frozen=True, kw_only=True, tag="run_attach"):
    """Attach a session to this run from now on. A session's first attachment counts from the start of the run."""

    attach: str
    """The session's id."""
    whole: bool = False
    """Count all usage of the session that belongs to no other run, even if it is attached to this run already."""
    run: str | None = None
    scope: str | None = None
    transcript: str | None = None
    """The path of the session's transcript; if omitted, it is found by the session's id."""
    hints: Hints = Hints()


class RunDetach(Request, frozen=True, kw_only=True, tag="run_detach"):
    """Detach a session: from now on it belongs to no run."""

    detach: str
    """The session's id."""
    run: str | None = None
    scope: str | None = None


class RunFinish(Naming, frozen=True, tag="run_finish"):
    """End a run as done. Its sources are followed for another 48 hours, because numbers often arrive late."""


class RunCancel(Naming, frozen=True, tag="run_cancel"):
    """End a run as cancelled."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run's settings and state."""

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
    allowed_to: int | None = None
    """How many tokens the run may spend in all, although its budget is smaller; null: its budget."""
    allowed_until: str | None = None
    """Until when the run may go on, however much it spends."""
    adopted_from: str | None = None
    """Where the run was adopted from: the path of intercore's database, or `beads`; null: it was started by hand."""
    kept: tuple[str, ...] = ()
    """The settings that a person has set; they no longer follow the other program."""
    withheld: str = ""
    """The looser values that the other program has set although the run is hard; they await a person's confirmation."""


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """A run and its spend: one entry of `status` and `run_list` (the goal truncated to 200 characters)."""

    run: RunInfo
    spend: Spend
    sessions: int
    pending: int
    """Sub-agents that have been seen but not measured yet."""
    burn: int = 0
    """Tokens of the run's cost basis per minute, over the last ten minutes."""
    minutes_left: int | None = None
    """How long the remaining budget lasts at this rate; null without a limit or recent usage, or beyond 7 days."""
    lower_bound: bool = False
    """True: some usage cannot be read from the transcripts, so more may have been used than is counted."""
    lower_bound_why: tuple[str, ...] = ()
    """The first reasons, each with its file."""


class AttachmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A period in which a session's usage belongs to the run."""

    session: str
    since: str | None
    """The time from which its usage counts; null: all of it."""
    until: str | None
    """Null: still attached."""
    origin: Literal["asked", "bead"]
    """"bead": a row of the session names the run's scope."""
    claimed: bool = False
    """True: the attachment comes from a claim or an attribution in intercore's database."""


class RunAnswer(Answer, frozen=True, kw_only=True, tag="run"):
    """The run after the change, which is on disk."""

    run: RunInfo
    changed: bool
    """False if there was nothing to change."""
    moved_from: str | None = None
    """The run that the session left for this one; null if it left none."""
    tied: tuple[str, ...] = ()
    """All active runs of the new run's directory, if it is not the only one."""
    hard_by: str | None = None
    """The project's file because of which the new run is hard, although the request did not ask for it."""
    rule_fault: str | None = None
    """Why a file of the project could not be read; its rule about enforcement is not applied."""


class RunListAnswer(Answer, frozen=True, kw_only=True, tag="run_list"):
    """The runs, newest first, in pages."""

    runs: tuple[RunLine, ...]
    next: str | None
    """Send this as `after` to get the following page; null on the last page."""


class RunShowAnswer(Answer, frozen=True, kw_only=True, tag="run_show"):
    """Everything about one run."""

    run: RunInfo
    spend: Spend
    totals: Tally
    by_phase: tuple[PhaseLine, ...]
    by_stage: tuple[StageLine, ...]
    by_agent: tuple[Tally, ...]
    by_model: tuple[Tally, ...]
    by_session: tuple[Tally, ...]
    sources: tuple[SessionSources, ...]
    """What each source says about each session; at most 200 sessions."""
    attachments: tuple[AttachmentInfo, ...]
    earlier: Earlier = Earlier()
    """What the run's sessions used before their usage began to count for it; not part of any other sum."""
    lower_bound: bool = False
    """True: some usage cannot be read from the transcripts, so more may have been used than is counted."""
    lower_bound_why: tuple[str, ...] = ()
    """The first reasons, each with its file."""
